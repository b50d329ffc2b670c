"""Images of any size through a network that gives every pixel scores: whole or in windows; at several scales, mirrored.

The scores of all classes at all places are never held at once: 150 classes of a 2000×3000 image would be 3.6 GB. Kept
are the network's own maps, at its own stride, and of these only what later rows need; what a pixel shows is decided
band by band. At most, in float32 values, with k classes and a network that gives maps of a stride s:

* whole: k·h·w / s² for each view (one without scales and mirror), and the bands;
* windows: k·wh·w / s² · ``overlap`` for each view, whatever the image's height; ``overlap`` is how many windows share a
  pixel, 4 where the stride is half the window; and the bands;
* windows of a network that gives maps of the image's size (s = 1: exported files, U-Nets): k·wh·w for each view,
  and one batch of windows; and the bands;
* bands: about four times `BAND`.

The network's inner maps come on top; with windows they are those of one window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vmamba.errors import ConfigError

#: Float32 values in a band of scores: 64 MB.
BAND = 16 * 2**20
#: Smaller images are filled up with zeros to this side, which every network of this package takes.
LEAST = 32

#: Pixels ``(b, c, h, w)`` to scores ``(b, k, h', w')``, which are resized to the pixels' size.
Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Tiling:
    """How an image goes through a network.

    Attributes:
        mode: whole (at once), or slide (in windows).
        window: height and width of a window, pixels; a smaller image is filled up with zeros.
        stride: pixels from one window to the next, down and across; the last one is shifted back inside.
        blend: what a window's scores count in the mean: mean (all the same, as upstream), triangular or gaussian (less
            towards its border, a deviation of an eighth of the window).
        batch: windows in one forward pass.
    """

    mode: Literal["whole", "slide"] = "whole"
    window: tuple[int, int] = (512, 512)
    stride: tuple[int, int] = (341, 341)
    blend: Literal["mean", "triangular", "gaussian"] = "mean"
    batch: int = 1

    def __post_init__(self) -> None:
        if self.mode not in ("whole", "slide"):
            raise ConfigError(f"mode={self.mode!r}: want whole or slide")
        if self.blend not in ("mean", "triangular", "gaussian"):
            raise ConfigError(f"blend={self.blend!r}: want mean, triangular or gaussian")
        if min(self.window) < 1 or self.batch < 1:
            raise ConfigError(f"window={self.window}, batch={self.batch}: want whole numbers, 1 or more")
        if any(not 1 <= step <= side for step, side in zip(self.stride, self.window, strict=True)):
            raise ConfigError(f"stride={self.stride}: want 1 or more, and no more than window={self.window}")


@dataclass(frozen=True)
class View:
    """One look at an image.

    Attributes:
        pixels: ``(c, h, w)``, what the network takes.
        mirrored: whether left and right are changed over in it.
    """

    pixels: Tensor
    mirrored: bool = False


@torch.no_grad()
def segment(network: Network, views: Sequence[View], size: tuple[int, int], tiling: Tiling | None = None) -> Tensor:
    """What each pixel shows.

    Of one view the class with the highest score. Of several the one with the highest mean probability: scores are
    un-mirrored, resized to ``size``, and a softmax taken, as in upstream's multi-scale testing.

    Args:
        network: see `Network`.
        views: the image at one scale, or at several and mirrored.
        size: height and width of the answer.
        tiling: how views go through the network; by default whole.

    Returns:
        ``size``, a class each, on the CPU; uint8 for up to 256 classes, else int32.
    """
    maps = [scores_of(network, view, tiling or Tiling()) for view in views]
    classes = maps[0].classes
    labels = torch.empty(size, dtype=torch.uint8 if classes <= 256 else torch.int32)
    step = max(1, BAND // (classes * size[1]))
    for top in range(0, size[0], step):
        bottom = min(top + step, size[0])
        total: Tensor | None = None
        for one in maps:
            rows = one.resized(size, top, bottom)
            if len(maps) > 1:
                rows = rows.softmax(0)
            total = rows if total is None else total.add_(rows)
        assert total is not None
        labels[top:bottom] = total.argmax(0)
    return labels


def scores_of(network: Network, view: View, tiling: Tiling) -> Scores:
    """A view's scores, to be read row by row, from the top down."""
    return (_Slide if tiling.mode == "slide" else _Whole)(network, view, tiling)


class Scores:
    """Scores of a view's pixels, computed as they are read from the top down; rows above those asked for are gone."""

    def __init__(self, network: Network, view: View, tiling: Tiling) -> None:
        self.network = network
        self.tiling = tiling
        self.mirrored = view.mirrored
        self.height, self.width = view.pixels.shape[-2:]
        least = tiling.window if tiling.mode == "slide" else (LEAST, LEAST)
        down, right = (max(0, want - have) for want, have in zip(least, (self.height, self.width), strict=True))
        self.pixels = F.pad(view.pixels, (0, right, 0, down)) if down or right else view.pixels

    @property
    def classes(self) -> int:
        """How many scores a pixel has."""
        raise NotImplementedError

    def _rows(self, top: int, bottom: int) -> Tensor:
        """``(k, bottom - top, w)`` of the pixels, filled-up ones included."""
        raise NotImplementedError

    def rows(self, top: int, bottom: int) -> Tensor:
        """``(k, bottom - top, width)``, un-mirrored; of the view's own rows."""
        rows = self._rows(top, bottom)[..., : self.width]
        return rows.flip(-1) if self.mirrored else rows

    def resized(self, size: tuple[int, int], top: int, bottom: int) -> Tensor:
        """Rows ``top`` to ``bottom`` of the scores resized to ``size``: ``(k, bottom - top, size[1])``."""
        if size == (self.height, self.width):
            return self.rows(top, bottom)
        first, second, share = _between(size[0], self.height, top, bottom)
        start, end = int(first[0]), int(second[-1]) + 1
        return _across(_blended(self.rows(start, end), first - start, second - start, share), size[1])


class _Whole(Scores):
    @cached_property
    def _map(self) -> Tensor:
        return self.network(self.pixels[None])[0].float()

    @property
    def classes(self) -> int:
        return len(self._map)

    def _rows(self, top: int, bottom: int) -> Tensor:
        return _resized_rows(self._map, self.pixels.shape[-2:], top, bottom)


class _Slide(Scores):
    def __init__(self, network: Network, view: View, tiling: Tiling) -> None:
        super().__init__(network, view, tiling)
        sides = self.pixels.shape[-2:]
        self.starts = [starts(n, *pair) for n, *pair in zip(sides, tiling.window, tiling.stride, strict=True)]
        device = self.pixels.device
        self._weights = [_weights(side, tiling.blend).to(device) for side in tiling.window]
        # The sum of the weights at a pixel is a product, as the windows are a grid.
        self._sums = [torch.zeros(side, device=device) for side in sides]
        for total, places, weights in zip(self._sums, self.starts, self._weights, strict=True):
            for place in places:
                total[place : place + len(weights)] += weights
        self._waiting = list(self.starts[0])  # rows of windows that have not been run, by their first pixels' row
        # Maps of the network's stride wait until they are read, by their window's first row and column. Those as large
        # as the window would take that much for every window: they are added up as they come, in bands of rows.
        self._maps: dict[tuple[int, int], Tensor] = {}
        self._bands: dict[int, Tensor] = {}
        self._classes = self._top = 0

    @property
    def classes(self) -> int:
        self._run_to(1)
        return self._classes

    def _rows(self, top: int, bottom: int) -> Tensor:
        assert top >= self._top, f"rows from {self._top} on are kept, asked for {top}"
        self._top, height = top, self.tiling.window[0]
        self._maps = {place: scores for place, scores in self._maps.items() if place[0] + height > top}
        self._bands = {first: band for first, band in self._bands.items() if first + band.shape[1] > top}
        self._run_to(bottom)
        total = self.pixels.new_zeros(self._classes, bottom - top, self.pixels.shape[-1], dtype=torch.float32)
        for first, band in self._bands.items():
            begin, end = max(top, first), min(bottom, first + band.shape[1])
            if begin < end:
                total[:, begin - top : end - top] = band[:, begin - first : end - first]
        for place, scores in self._maps.items():
            self._add(total, top, place, scores)
        return total.div_(self._sums[0][top:bottom, None] * self._sums[1])

    def _run_to(self, bottom: int) -> None:
        """Run the windows that have pixels above the row ``bottom``."""
        while self._waiting and self._waiting[0] < bottom:
            row, step = self._waiting.pop(0), self.tiling.batch
            for i in range(0, len(self.starts[1]), step):
                self._run([(row, column) for column in self.starts[1][i : i + step]])

    def _run(self, places: Sequence[tuple[int, int]]) -> None:
        height, width = self.tiling.window
        windows = [self.pixels[:, row : row + height, column : column + width] for row, column in places]
        for place, scores in zip(places, self.network(torch.stack(windows)).float(), strict=True):
            self._classes = len(scores)
            if scores.shape[-2:] == self.tiling.window:
                self._add_to_bands(place, scores)
            else:
                self._maps[place] = scores

    def _add_to_bands(self, place: tuple[int, int], scores: Tensor) -> None:
        rows, columns = self.pixels.shape[-2:]
        step = max(1, BAND // (len(scores) * columns))
        for first in range(place[0] // step * step, place[0] + self.tiling.window[0], step):
            if first not in self._bands:
                self._bands[first] = scores.new_zeros(len(scores), min(step, rows - first), columns)
            self._add(self._bands[first], first, place, scores)

    def _add(self, total: Tensor, top: int, place: tuple[int, int], scores: Tensor) -> None:
        """Add a window's weighted scores where it lies in ``total``, rows from ``top`` on."""
        (row, column), (height, width) = place, self.tiling.window
        begin, end = max(top, row), min(top + total.shape[1], row + height)
        if begin >= end:
            return
        part = _resized_rows(scores, self.tiling.window, begin - row, end - row)
        if self.tiling.blend != "mean":
            down, across = self._weights
            part = part * (down[begin - row : end - row, None] * across)
        total[:, begin - top : end - top, column : column + width] += part


def starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin: every ``stride`` pixels, the last shifted back inside; ``length`` is a window or more."""
    last = length - window
    return [*range(0, last, stride), last]


def _weights(side: int, blend: str) -> Tensor:
    """What a pixel counts, by its place along one axis of the window."""
    if blend == "mean":
        return torch.ones(side)
    distance = (torch.arange(side) - (side - 1) / 2).abs()
    if blend == "triangular":
        return 1 - distance / ((side + 1) / 2)
    return torch.exp(-0.5 * (distance / (side / 8)) ** 2)


def _resized_rows(scores: Tensor, size: Sequence[int], top: int, bottom: int) -> Tensor:
    """Rows of a map ``(k, h, w)`` resized to ``size``, bilinear, without aligned corners: `F.interpolate`'s."""
    height, width = size
    if scores.shape[-2] == height:
        return _across(scores[:, top:bottom], width)
    return _across(_blended(scores, *_between(height, scores.shape[-2], top, bottom)), width)


def _between(length: int, source: int, top: int, bottom: int) -> tuple[Tensor, Tensor, Tensor]:
    """For places ``top`` to ``bottom`` of ``length``: the two of ``source`` around each, and the second's share."""
    places = ((torch.arange(top, bottom, dtype=torch.float64) + 0.5) * (source / length) - 0.5).clamp(min=0)
    first = places.floor().long().clamp(max=source - 1)
    return first, (first + 1).clamp(max=source - 1), (places - first).float()


def _blended(scores: Tensor, first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    first, second, share = (each.to(scores.device) for each in (first, second, share))
    return torch.lerp(scores[:, first], scores[:, second], share[:, None])


def _across(rows: Tensor, width: int) -> Tensor:
    """``(k, r, w) → (k, r, width)``; the rows keep their number."""
    if rows.shape[-1] == width:
        return rows
    return F.interpolate(rows[None], (rows.shape[-2], width), mode="bilinear", align_corners=False).squeeze(0)
