"""The course of a run as a picture: rows in, matplotlib Figure out. No pyplot, so no window, no global state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vmamba.tasks.protocol import Metric, Task
from vmamba.train.reports.rows import EpochRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TRAIN, _VAL, _QUIET = "#d1761c", "#1f5fa8", "#666666"


def curves_figure(
    rows: Sequence[EpochRow], task: type[Task] | Task, best_epoch: int | None = None, title: str = ""
) -> Figure:
    """Each of the task's figures, in training and validation, and the learning rate against the epoch.

    Args:
        rows: the epochs; at least one.
        task: whose figures.
        best_epoch: the epoch to mark.
        title: above all.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    known = rows[0].train.keys() | rows[0].val.keys()
    metrics = {metric.name: metric for metric in (*task.running, *task.metrics) if metric.name in known}
    figure = Figure(figsize=(3 + 4 * len(metrics), 3.6), dpi=120, layout="constrained")
    every: list[Axes] = list(figure.subplots(1, len(metrics) + 1, width_ratios=(*[1] * len(metrics), 0.7)))
    panels, rate = dict(zip(metrics, every, strict=False)), every[-1]
    epochs = [row.epoch for row in rows]
    marker = "o" if len(rows) < 3 else None  # a line of one point is invisible
    style: dict[str, Any] = {"linewidth": 1.8, "marker": marker, "markersize": 4}

    for name, axes in panels.items():
        if name in rows[0].train:
            axes.plot(epochs, [row.train[name] for row in rows], color=_TRAIN, label="train", **style)
        if name in rows[0].val:
            axes.plot(epochs, [row.val[name] for row in rows], color=_VAL, label="validation", **style)
        axes.set_title(metrics[name].title)
        if metrics[name].percent:
            _in_percent(axes)
    rate.plot(epochs, [row.lr for row in rows], color=_QUIET, **style)
    rate.set_title("Learning rate")
    rate.yaxis.set_major_formatter("{x:.3g}")
    rate.set_ylim(bottom=0)

    best = next((row for row in rows if row.epoch == best_epoch), None)
    if best is not None:
        for name, value in best.val.items():
            axes = panels[name]
            axes.axvline(best.epoch, color=_QUIET, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
            axes.plot([best.epoch], [value], "o", color=_VAL, markersize=7, markeredgecolor="white", zorder=5)
        headline = panels[task.headline]
        headline.plot([], [], "o", color=_VAL, markeredgecolor="white", label=_best(best, metrics[task.headline]))
    for axes in every:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for name, axes in panels.items():
        axes.legend(
            loc="lower right" if metrics[name].larger_is_better else "upper right",
            frameon=True,
            framealpha=0.85,
            edgecolor="none",
        )
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return figure


def _in_percent(axes: Axes) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.set_ylim(top=min(1.02, axes.get_ylim()[1]))
    bottom, top = axes.get_ylim()
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if top - bottom > 0.05 else 1))


def _best(row: EpochRow, metric: Metric) -> str:
    return f"best: epoch {row.epoch}, {metric.text(row.val[metric.name])}"
