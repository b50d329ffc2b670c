"""Pictures of what the analyses give: matplotlib Figures, no pyplot. Colours are viridis's, for every kind of eye."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vmamba.analysis.cam import ClassMap
from vmamba.analysis.erf import SHARES, ReceptiveField
from vmamba.analysis.scan_map import ScanMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: An image to draw: ``(H, W)`` or ``(H, W, 3)``, in 0 to 1.
Pixels = npt.NDArray[np.float32]

_COLOURS = "viridis"
_MARK = "#d1761c"


def scan_map_figure(found: ScanMap, image: Pixels, title: str = "") -> Figure:
    """The merged map over the image, and each direction's beside it, each on its own scale.

    Args:
        found: the map.
        image: what the model saw.
        title: above all.
    """
    from matplotlib.figure import Figure

    directions = found.per_direction()
    figure = Figure(figsize=(12.6, 6.0), dpi=120, layout="constrained")
    cells = figure.subplot_mosaic(
        [["image", "merged", "0", "1"], ["image", "merged", "2", "3"]], width_ratios=(2, 2, 1, 1)
    )
    _image(cells["image"], image, "image, query marked")
    shown = _heat(cells["merged"], found.merged(skip=False), image, "all directions together")
    figure.colorbar(
        shown, ax=cells["merged"], location="bottom", shrink=0.8, label="mean |weight| over channels, without the skip"
    )
    for i, direction in enumerate(found.directions):
        _heat(cells[str(i)], directions[i], image, _words(direction))
    for axes in cells.values():
        _mark(axes, found.query, found.weights.shape[-2:], image)
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return figure


def class_map_figure(found: ClassMap, image: Pixels, label: str, title: str = "") -> Figure:
    """The image, and the class map over it.

    Args:
        found: the map.
        image: what the model saw.
        label: the class's name.
        title: above all.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 4.4), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    _image(left, image, "image")
    shown = _heat(right, found.weights, image, f"{label} (logit {found.logit:.2f})")
    figure.colorbar(shown, ax=right, shrink=0.8, label="Grad-CAM, share of the largest")
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return figure


def receptive_fields_figure(fields: Sequence[ReceptiveField], title: str = "") -> Figure:
    """Receptive fields side by side, each with its area ratios.

    Influence spans many powers of ten, so what is drawn is log10 of each pixel's share of the strongest one's.

    Args:
        fields: one or more.
        title: above all.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(0.8 + 3.2 * len(fields), 4.2), dpi=120, layout="constrained")
    row: list[Axes] = list(figure.subplots(1, len(fields), squeeze=False)[0])
    shown: Any = None
    for axes, field in zip(row, fields, strict=True):
        relative = (field.influence / field.influence.max().clamp(min=1e-300)).clamp(min=1e-300).log10().numpy()
        shown = axes.imshow(relative, cmap=_COLOURS, vmin=-4, vmax=0)
        axes.set_title(field.name, fontsize=10)
        areas = "  ".join(f"{100 * share:.0f} %: {100 * field.area(share):.1f} %" for share in SHARES[:2])
        more = "  ".join(f"{100 * share:.0f} %: {100 * field.area(share):.1f} %" for share in SHARES[2:])
        height, width = relative.shape
        axes.set_xlabel(f"{width}×{height} pixels; influence: area that holds it\n{areas}\n{more}", fontsize=8)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.colorbar(shown, ax=row, shrink=0.75, label="log10 of influence on the middle, largest = 0")
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return figure


def _image(axes: Axes, image: Pixels, title: str) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=1)
    axes.set_title(title, fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])


def _heat(axes: Axes, weights: Any, image: Pixels, title: str) -> Any:
    """Draw a map over the image, faint where it says little."""
    height, width = image.shape[:2]
    values = weights.float().cpu().numpy()
    _image(axes, image if image.ndim == 2 else image.mean(-1), title)
    top = max(float(np.quantile(values, 0.995)), float(np.finfo(np.float32).tiny))
    return axes.imshow(
        values, cmap=_COLOURS, vmin=0, vmax=top, alpha=0.75, extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        interpolation="nearest",
    )  # fmt: skip


def _mark(axes: Axes, place: tuple[int, int], shape: Sequence[int], image: Pixels) -> None:
    height, width = image.shape[:2]
    x, y = ((place[1] + 0.5) * width / shape[1] - 0.5, (place[0] + 0.5) * height / shape[0] - 0.5)
    axes.plot([x], [y], "+", color=_MARK, markersize=11, markeredgewidth=2.2)


def _words(direction: Any) -> str:
    """A scan order in words, by where it starts."""
    along = "columns" if direction.by_column else "rows"
    corner = f"{'bottom' if direction.flip_h else 'top'} {'right' if direction.flip_w else 'left'}"
    return f"{along}, from {corner}"
