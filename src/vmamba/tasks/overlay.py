"""Pictures of what pixels show: colours laid over an image, a mask with a palette, and the legend."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vmamba.data.segmentation.classes import PixelClasses

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What the colour counts beside the image's brightness.
OPACITY = 0.6


def overlay(image: Image.Image, labels: npt.NDArray[Any], classes: PixelClasses) -> Image.Image:
    """``labels (h, w)`` as colours over an RGB image of that size, outlined; a background stays as it is.

    Below the colours the image is grey, so that its own do not mix with them.
    """
    colours = np.zeros((max(len(classes), int(labels.max(initial=0)) + 1), 3), np.float32)
    colours[: len(classes)] = classes.palette
    shown = np.zeros(len(colours), np.float32)
    shown[: len(classes)] = 1
    shown[list(classes.background)] = 0
    pixels = np.asarray(image.convert("RGB"), np.float32)
    grey = np.asarray(image.convert("L"), np.float32)[..., None]
    mixed = np.where(shown[labels, None] > 0, grey * (1 - OPACITY) + colours[labels] * OPACITY, pixels)
    border = _borders(labels)
    mixed[border] = np.where(shown[labels[border], None] > 0, colours[labels[border]], mixed[border])
    return Image.fromarray(mixed.round().astype(np.uint8))


def _borders(labels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Pixels whose right or lower neighbour shows something else, and those neighbours."""
    border = np.zeros(labels.shape, bool)
    down, across = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    border[1:] |= down
    border[:-1] |= down
    border[:, 1:] |= across
    border[:, :-1] |= across
    return border


def mask_image(labels: npt.NDArray[Any], classes: PixelClasses) -> Image.Image:
    """``labels (h, w)`` as an image whose pixels are the classes' numbers: 8 bits with their colours as its palette,
    or 16 bits grey for more than 256 classes.
    """
    if len(classes) > 256:
        return Image.fromarray(labels.astype(np.uint16))
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette([part for colour in classes.palette for part in colour])
    return image


def legend_figure(classes: PixelClasses, shown: Sequence[int]) -> Figure:
    """The colours of the classes at the places ``shown``, with their numbers and names."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    rows = min(len(shown), 25)
    columns = -(-len(shown) // rows)
    width = 0.7 + 0.085 * max((len(classes.names[place]) for place in shown), default=0)
    width = max(1.4, min(width, 3.5))
    figure = Figure(figsize=(columns * width + 0.2, rows * 0.26 + 0.2), dpi=130, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for place, index in enumerate(shown):
        x, y = 0.1 + (place // rows) * width, 0.1 + (place % rows) * 0.26
        red, green, blue = (part / 255 for part in classes.palette[index])
        axes.add_patch(Rectangle((x, y), 0.34, 0.2, facecolor=(red, green, blue), edgecolor="#8a939c", linewidth=0.5))
        text = f"{index}  {classes.names[index]}"
        text = text if len(text) <= 34 else f"{text[:33]}…"
        axes.text(x + 0.42, y + 0.1, text, fontsize=7.5, va="center_baseline", color="#1d2733", parse_math=False)
    axes.set(xlim=(0, columns * width + 0.2), ylim=(rows * 0.26 + 0.2, 0), aspect="auto")
    return figure


def png(image: Image.Image) -> bytes:
    """An image as the bytes of a PNG file."""
    data = io.BytesIO()
    image.save(data, "PNG", optimize=False)
    return data.getvalue()
