"""Pictures of a run: data in, matplotlib Figure out. No pyplot, so no window, no global state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vmamba.output import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vmamba.train.run_folder import EpochRow

#: Up to this many classes every cell of a confusion matrix carries its count,
MAX_COUNTED = 12
#: and up to this many its axes carry class names.
MAX_NAMED = 40

_TRAIN, _VAL, _QUIET = "#d1761c", "#1f5fa8", "#666666"


def curves_figure(rows: Sequence[EpochRow], best_epoch: int | None = None, title: str = "") -> Figure:
    """Loss, accuracy and learning rate against the epoch; the best epoch is marked."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(11, 3.6), dpi=120, layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3, width_ratios=(1, 1, 0.7))
    epochs = [row.epoch for row in rows]
    marker = "o" if len(rows) < 3 else None  # a line of one point is invisible
    style: dict[str, Any] = {"linewidth": 1.8, "marker": marker, "markersize": 4}

    loss.plot(epochs, [row.train_loss for row in rows], color=_TRAIN, label="train", **style)
    loss.plot(epochs, [row.val_loss for row in rows], color=_VAL, label="validation", **style)
    loss.set_title("Loss (nats)")
    accuracy.plot(epochs, [row.train_accuracy for row in rows], color=_TRAIN, label="train", **style)
    accuracy.plot(epochs, [row.val_accuracy for row in rows], color=_VAL, label="validation", **style)
    accuracy.set_title("Accuracy")
    accuracy.set_ylim(top=min(1.02, accuracy.get_ylim()[1]))
    bottom, top = accuracy.get_ylim()
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if top - bottom > 0.05 else 1))
    rate.plot(epochs, [row.lr for row in rows], color=_QUIET, **style)
    rate.set_title("Learning rate")
    rate.yaxis.set_major_formatter("{x:.3g}")
    rate.set_ylim(bottom=0)

    best = next((row for row in rows if row.epoch == best_epoch), None)
    if best is not None:
        for axes, value in ((loss, best.val_loss), (accuracy, best.val_accuracy)):
            axes.axvline(best.epoch, color=_QUIET, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
            axes.plot([best.epoch], [value], "o", color=_VAL, markersize=7, markeredgecolor="white", zorder=5)
        accuracy.plot([], [], "o", color=_VAL, markeredgecolor="white", label=_best_label(best))
    for axes in (loss, accuracy, rate):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for axes, place in ((loss, "upper right"), (accuracy, "lower right")):
        axes.legend(loc=place, frameon=True, framealpha=0.85, edgecolor="none")
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return figure


def _best_label(best: EpochRow) -> str:
    return f"best: epoch {best.epoch}, {best.val_accuracy:.2%}"


def confusion_figure(confusion: Sequence[Sequence[int]], classes: Sequence[str], title: str = "") -> Figure:
    """A confusion matrix: rows are true classes, columns predictions; shades are shares of the row."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    counts = np.asarray(confusion, dtype=np.int64)
    k = len(classes)
    if counts.shape != (k, k):
        raise ValueError(f"confusion has shape {counts.shape}, want {(k, k)} for {k} classes")
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)

    names = [name if len(name) <= 24 else name[:23] + "…" for name in classes]
    cell = 0.52 if k <= MAX_COUNTED else 0.27 if k <= MAX_NAMED else 7.0 / k
    side = max(cell * k, 2.6)
    # Characters of a class name are about 0.075 inch wide at this size.
    margin = 0.6 + (0.075 * max(map(len, names), default=0) if k <= MAX_NAMED else 0.3)
    figure = Figure(figsize=(side + margin + 1.0, side + margin + 0.4), dpi=120, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    bar.set_label("share of the true class")
    bar.outline.set_visible(False)

    if k <= MAX_NAMED:
        small = 9 if k <= MAX_COUNTED else 7.5
        upright = max(map(len, names), default=0) <= 3
        axes.set_xticks(range(k), names, fontsize=small, rotation=0 if upright else 90)
        axes.set_yticks(range(k), names, fontsize=small)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if k <= MAX_COUNTED:
        for i, j in zip(*np.nonzero(counts), strict=True):
            shade = "white" if shares[i, j] > 0.5 else "#222222"
            axes.text(j, i, f"{counts[i, j]:,}", ha="center", va="center", fontsize=8.5, color=shade)
        axes.set_xticks(np.arange(k + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(k + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="#dddddd", linewidth=0.6)
        axes.tick_params(which="minor", length=0)
    total = int(counts.sum())
    hits = int(np.trace(counts))
    share = f"{hits:,} of {total:,} right ({hits / total:.2%})" if total else "no images"
    axes.set_title(f"{title}: {share}" if title else share, fontsize=10)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically, the same bytes for the same figure.

    Raises:
        OutputError: the place cannot be written.
    """
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", metadata={"Software": None}))
