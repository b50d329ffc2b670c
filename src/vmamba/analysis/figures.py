"""Pictures of what the analyses give: matplotlib Figures, no pyplot. Colours are viridis's, for every kind of eye."""

from __future__ import annotations

import math
import textwrap
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
    figure = Figure(figsize=(9.6, 4.8), dpi=120)
    figure.set_layout_engine("constrained", h_pad=0.07)
    cells = figure.subplot_mosaic(
        [["image", "merged", "0", "1"], ["image", "merged", "2", "3"]], width_ratios=(2, 2, 1, 1)
    )
    _image(cells["image"], image, "image, query marked", pixels=True)
    shown = _heat(cells["merged"], found.merged(skip=False), image, "all directions together")
    figure.colorbar(
        shown,
        ax=[cells["image"], cells["merged"]],
        location="bottom",
        shrink=0.6,
        label="mean |weight| over channels, without the skip; directions: each on its own scale",
    )
    for i, direction in enumerate(found.directions):
        _heat(cells[str(i)], directions[i], image, _words(direction), fontsize=8)
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

    figure = Figure(figsize=(8.4, 4.2), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    _image(left, image, "image", pixels=True)
    shown = _heat(right, found.weights, image, f"{label} (logit {found.logit:.2f})", top=1)
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

    columns = len(fields) if len(fields) <= 3 else math.ceil(math.sqrt(len(fields)))
    rows = math.ceil(len(fields) / columns)
    names = [_title(field) for field in fields]
    lines = max(name.count("\n") + 1 for name in names)
    size = (0.9 + 3.3 * columns, 0.3 + rows * (3.7 + 0.15 * lines))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    cells: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flatten())
    shown: Any = None
    for axes, field, name in zip(cells, fields, names, strict=False):
        relative = (field.influence / field.influence.max().clamp(min=1e-300)).clamp(min=1e-300).log10().numpy()
        shown = axes.imshow(relative, cmap=_COLOURS, vmin=-4, vmax=0)
        axes.set_title(name, fontsize=9)
        areas = "  ".join(f"{100 * share:.0f} %: {100 * field.area(share):.1f} %" for share in SHARES[:2])
        more = "  ".join(f"{100 * share:.0f} %: {100 * field.area(share):.1f} %" for share in SHARES[2:])
        height, width = relative.shape
        axes.set_xlabel(f"{width}×{height} pixels; influence: area that holds it\n{areas}\n{more}", fontsize=8)
        axes.set_xticks([])
        axes.set_yticks([])
    for axes in cells[len(fields) :]:
        axes.set_axis_off()
    figure.colorbar(shown, ax=cells, shrink=0.75, label="log10 of influence on the middle, largest = 0")
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return figure


def _title(field: ReceptiveField) -> str:
    """A network's name, its options below it, and its size."""
    name, _, rest = field.name.partition("(")
    options, _, state = rest.rpartition(")")
    lines = [name + state, textwrap.fill(options, 38)] if options else [field.name]
    return "\n".join(lines if field.parameters is None else [*lines, f"{field.parameters / 1e6:.2f} M parameters"])


def _image(axes: Axes, image: Pixels, title: str, pixels: bool = False, fontsize: int = 10) -> None:
    """Draw an image, perhaps with its pixels' numbers, as a query names them."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=1)
    axes.set_title(title, fontsize=fontsize)
    if pixels:
        axes.set_xlabel("column, pixels")
        axes.set_ylabel("row, pixels")
    else:
        axes.set_xticks([])
        axes.set_yticks([])


def _heat(axes: Axes, weights: Any, image: Pixels, title: str, fontsize: int = 10, top: float | None = None) -> Any:
    """Draw a map over the image, in colours up to ``top``; by default its largest values, but for single places."""
    height, width = image.shape[:2]
    _image(axes, image if image.ndim == 2 else image.mean(-1), title, fontsize=fontsize)
    values = weights.float().cpu().numpy()
    if top is None:
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
