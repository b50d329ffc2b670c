"""The confusion matrix as a picture: counts in, matplotlib Figure out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Up to this many classes every cell carries its count,
MAX_COUNTED = 12
#: and up to this many the axes carry class names.
MAX_NAMED = 40


def confusion_figure(
    confusion: Sequence[Sequence[int]], classes: Sequence[str], title: str = "", in_percent: bool = False
) -> Figure:
    """A confusion matrix: rows are true classes, columns predictions; shades are shares of the row.

    Args:
        confusion: counts.
        classes: names.
        title: above.
        in_percent: whether cells say the share of the row instead of the count, which for pixels is long.
    """
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
    margin = 0.8 + (0.075 * max(map(len, names), default=0) if k <= MAX_NAMED else 0.3)
    figure = Figure(figsize=(side + margin + 1.4, side + margin + 0.4), dpi=120, layout="constrained")
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
            text = f"{shares[i, j]:.1%}" if in_percent else f"{counts[i, j]:,}"
            axes.text(j, i, text, ha="center", va="center", fontsize=8.5, color=shade)
        axes.set_xticks(np.arange(k + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(k + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="#dddddd", linewidth=0.6)
        axes.tick_params(which="minor", length=0)
    total = int(counts.sum())
    hits = int(np.trace(counts))
    share = f"{hits:,} of {total:,} right ({hits / total:.2%})" if total else "no images"
    apart = ":\n" if in_percent else ": "  # pixels are large numbers
    axes.set_title(f"{title}{apart}{share}" if title else share, fontsize=10)
    return figure
