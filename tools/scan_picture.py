"""Draw docs/images/scans.png: the four ways in which SS2D reads an image, and how far one layer sees by them.

    python tools/scan_picture.py [FILE]

The orders come from `vmamba.cross_scan_fn`, the last picture from the gradients of a fresh `vmamba.SS2D`. The
photograph is flower.jpg of scikit-learn (vultilion on Flickr, CC BY 2.0), cropped and faded.
"""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

import vmamba

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

FILE = Path(__file__).parents[1] / "docs" / "images" / "scans.png"
GRID = 8  # patches a side in the pictures of the orders
SIDE = 29  # tokens a side in the picture of the reach
PIXELS = 320  # of a picture's side
COLOURS = 64  # of the file
TITLES = ("along rows", "along columns", "rows, backwards", "columns, backwards")
INK = "#1f2933"


def photograph() -> np.ndarray:
    """The middle of the photograph, faded so that lines on it can be seen: ``(PIXELS, PIXELS, 3)`` in 0…1."""
    image = Image.fromarray(load_sample_image("flower.jpg")).crop((150, 10, 560, 420))
    pixels = np.asarray(image.resize((PIXELS, PIXELS), Image.Resampling.LANCZOS)) / 255
    return 0.5 + 0.5 * pixels


def orders() -> torch.Tensor:
    """The places of the grid in the order of each direction: ``(4, GRID²)``."""
    places = torch.arange(GRID * GRID, dtype=torch.float32).view(1, 1, GRID, GRID)
    return vmamba.cross_scan_fn(places)[0, :, 0].long()


def reach() -> np.ndarray:
    """How much each token moves the middle one's output in a fresh SS2D: ``(SIDE, SIDE)``, its largest value 1."""
    torch.manual_seed(0)
    layer = vmamba.SS2D(d_model=32, d_state=1, d_conv=1, ssm_ratio=1.0, forward_type="v05_noz", channel_first=False)
    x = torch.randn(48, SIDE, SIDE, 32, requires_grad=True)
    layer(x)[:, SIDE // 2, SIDE // 2].pow(2).sum().backward()
    assert x.grad is not None
    strength = x.grad.norm(dim=-1).mean(dim=0)
    return (strength / strength.max()).numpy()


def draw_order(axes: Axes, image: np.ndarray, order: torch.Tensor, title: str) -> None:
    """The photograph with its patches, and a line through them from the first (dark) to the last (bright)."""
    axes.imshow(image, extent=(0, GRID, GRID, 0), interpolation="bilinear")
    for edge in range(GRID + 1):
        axes.axhline(edge, color="white", linewidth=1.1, alpha=0.9)
        axes.axvline(edge, color="white", linewidth=1.1, alpha=0.9)
    rows, columns = order.div(GRID, rounding_mode="floor") + 0.5, order % GRID + 0.5
    points = torch.stack([columns, rows], dim=-1).numpy()
    shades = matplotlib.colormaps["plasma"](np.linspace(0.0, 0.92, len(points) - 1))
    axes.add_collection(LineCollection(np.stack([points[:-1], points[1:]], axis=1), colors=shades, linewidth=2.2))
    axes.plot(*points[0], "o", color=shades[0], markersize=9, markeredgecolor="white", markeredgewidth=1.4)
    axes.annotate(
        "", points[-1] + 0.45 * np.sign(points[-1] - points[-2]), points[-2],
        arrowprops={"arrowstyle": "-|>,head_width=0.32,head_length=0.6", "color": shades[-1], "linewidth": 2.2},
    )  # fmt: skip
    axes.set_title(title, fontsize=12, color=INK, pad=7)
    axes.set_xlim(0, GRID)
    axes.set_ylim(GRID, 0)


def draw_reach(axes: Axes, strength: np.ndarray) -> None:
    """How far one layer sees, on a scale of powers of ten."""
    shown = np.log10(strength)
    low, high = np.quantile(shown, (0.02, 0.998))  # the middle itself outshines the rest
    axes.imshow(shown, cmap="magma", interpolation="nearest", vmin=low, vmax=high)
    axes.plot(SIDE // 2, SIDE // 2, "+", color="#10b981", markersize=9, markeredgewidth=2)
    axes.set_title("what the middle sees", fontsize=12, color=INK, pad=7)


def main(file: Path = FILE) -> None:
    """Draw everything and write the file."""
    image, strength = photograph(), reach()
    figure, row = plt.subplots(1, 5, figsize=(15, 3.35), dpi=110)
    for axes, order, title in zip(row, orders(), TITLES, strict=False):
        draw_order(axes, image, order, title)
    draw_reach(row[-1], strength)
    for axes in row:
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
    figure.subplots_adjust(left=0.005, right=0.995, top=0.9, bottom=0.015, wspace=0.05)
    drawn = BytesIO()
    figure.savefig(drawn, format="png", facecolor="white")
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.open(drawn).convert("RGB").quantize(COLOURS).save(file, optimize=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
