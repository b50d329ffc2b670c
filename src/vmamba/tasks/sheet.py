"""Answers about images side by side, each in a cell."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def picture_sheet(
    answers: Sequence[Any],
    total: int,
    title: str,
    said: Callable[[Any], str],
    *,
    cell: tuple[float, float],
    name_length: int,
) -> Figure:
    """A cell for each answer: its ``picture()``, its file's name, and what is said of it.

    Args:
        answers: one or more.
        total: how many there are, those not shown too.
        title: above all.
        said: the line below an image's name.
        cell: width and height of a cell, inches.
        name_length: letters of a file's name that are shown.
    """
    from matplotlib.figure import Figure

    columns = min(6, len(answers), math.ceil(math.sqrt(len(answers) * 1.6)))
    rows = math.ceil(len(answers) / columns)
    size = (max(4.4, columns * cell[0] + 0.4), rows * cell[1] + 0.8)
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    shown = f"{total:,} image{'s' if total != 1 else ''}"
    shown = f"the first {len(answers)} of {shown}" if len(answers) < total else shown
    figure.suptitle(f"{title}\n{shown}", fontsize=9, x=0.01, ha="left", parse_math=False)
    for axes in (every := figure.subplots(rows, columns, squeeze=False).ravel()):
        axes.set_axis_off()
    for axes, answer in zip(every, answers, strict=False):
        axes.imshow(answer.picture())
        text = f"{shortened(answer.path.name, name_length)}\n{said(answer)}"
        axes.set_title(text, fontsize=6.5, color="#566270", parse_math=False)
    return figure


def shortened(text: str, length: int) -> str:
    """``text``, or its beginning and an ellipsis, of ``length`` letters at most."""
    return text if len(text) <= length else f"{text[: length - 1]}…"
