"""The contact sheet: each image with its likeliest classes as bars. Predictions in, matplotlib Figure out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from vmamba.data.reading.arrays import preview
from vmamba.tasks.classification.prediction import Prediction, right_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Everything is placed by hand on one axes whose unit is an inch: sixty small axes would take matplotlib seconds.
_SIDE = 1.9  # of the square that an image is fitted into
_ROW = 0.19  # one class's bar
_CAPTION = 0.2
_GAP = 0.34
_MARGIN = 0.4
_HEADING = 0.62
_MAX_COLUMNS = 6
_THUMBNAIL = 320
_DPI = 130

_INK, _QUIET, _TRACK, _PANEL = "#1d2733", "#7a8591", "#eef1f4", "#f6f7f9"
_BEST = {True: "#8fd0a5", False: "#f2a093", None: "#93c1ee"}  # by whether the answer is right, if that is known
_OTHERS, _WARN = "#d3dde7", "#b3392b"


def contact_sheet(predictions: Sequence[Prediction], total: int, title: str) -> Figure:
    """Draw one cell an image: the picture, its file name, and a bar for each of its likeliest classes.

    Args:
        predictions: what to show; at least one.
        total: how many images there were, those not shown included.
        title: the heading.
    """
    from matplotlib.figure import Figure

    columns = min(_MAX_COLUMNS, math.ceil(math.sqrt(len(predictions) * 1.6)), len(predictions))
    rows = math.ceil(len(predictions) / columns)
    bars = max(len(prediction.classes) for prediction in predictions)
    cell = _SIDE + _CAPTION + bars * _ROW + _GAP
    width = max(2 * _MARGIN + columns * (_SIDE + _GAP) - _GAP, 4.4)
    height = _MARGIN + _HEADING + rows * cell - _GAP + _MARGIN
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()

    _write(axes, _MARGIN, _MARGIN, _shorten(title, int(width * 10)), size=11, weight="bold", va="center")
    _write(axes, _MARGIN, _MARGIN + 0.25, _summary(predictions, total), size=8.5, color=_QUIET, va="center")
    for place, prediction in enumerate(predictions):
        x = _MARGIN + (place % columns) * (_SIDE + _GAP)
        y = _MARGIN + _HEADING + (place // columns) * cell
        _cell(axes, x, y, prediction)
    # Set last, since drawing an image moves the limits. The origin is the top left corner.
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    return figure


def _summary(predictions: Sequence[Prediction], total: int) -> str:
    shown = f"{total:,} image{'s' if total != 1 else ''}"
    if len(predictions) < total:
        shown = f"the first {len(predictions)} of {shown}"
    if right := right_of(predictions):
        shown += f", {right}"
    return shown


def _cell(axes: Axes, x: float, y: float, prediction: Prediction) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((x, y), _SIDE, _SIDE, color=_PANEL, linewidth=0))
    image = _thumbnail(prediction.path)
    scale = _SIDE / max(image.size)
    w, h = image.width * scale, image.height * scale
    left, top = x + (_SIDE - w) / 2, y + (_SIDE - h) / 2
    pixels = np.asarray(image)
    # Small images are blurred, not blocky: so the model sees them too, once resized.
    kind = "lanczos" if max(image.size) < _SIDE * _DPI else "antialiased"
    axes.imshow(pixels, extent=(left, left + w, top + h, top), interpolation=kind, zorder=2)

    y += _SIDE
    caption = _shorten(prediction.path.name, 27)
    if prediction.right is False:
        caption = _shorten(prediction.path.name, 14)
        _write(
            axes, x + _SIDE, y + _CAPTION / 2, _shorten(f"is {prediction.truth}", 14), size=7, color=_WARN, ha="right"
        )
    _write(axes, x, y + _CAPTION / 2, caption, size=7, color=_QUIET)
    y += _CAPTION
    best = _BEST[prediction.right]
    for rank, (name, share) in enumerate(zip(prediction.classes, prediction.probabilities, strict=True)):
        bar = _ROW - 0.03
        axes.add_patch(Rectangle((x, y), _SIDE, bar, color=_TRACK, linewidth=0))
        axes.add_patch(Rectangle((x, y), _SIDE * share, bar, color=_OTHERS if rank else best, linewidth=0))
        weight = "normal" if rank else "bold"
        _write(axes, x + 0.05, y + bar / 2, _shorten(name, 22), size=7.5, weight=weight)
        percent = f"{share:.1%}" if share >= 0.0005 else "<0.1%"
        _write(axes, x + _SIDE - 0.05, y + bar / 2, percent, size=7.5, weight=weight, ha="right")
        y += _ROW


def _thumbnail(path: Path) -> Image.Image:
    image = preview(path)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return image


def _write(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    *,
    size: float,
    color: str = _INK,
    weight: str = "normal",
    ha: str = "left",
    va: str = "center_baseline",
) -> None:
    # A file may be called anything: no formulas, and bytes that are no text are shown as such.
    text = text.encode("utf-8", "backslashreplace").decode()
    axes.text(x, y, text, fontsize=size, color=color, fontweight=weight, ha=ha, va=va, parse_math=False)


def _shorten(text: str, length: int) -> str:
    """The text's beginning and end, with an ellipsis where more than ``length`` characters would be."""
    if len(text) <= length:
        return text
    end = (length - 1) // 2
    return f"{text[: length - 1 - end]}…{text[-end:]}"
