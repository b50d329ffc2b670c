"""How the places of a map become a sequence and a sequence a map, for whoever scans maps of any number of axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Way(NamedTuple):
    """In which order a map's places are read.

    Attributes:
        axes: nested loops over the map's axes, the outermost first.
        flips: the axes that are read from their end.
        places: the places' numbers in row-major order ``(l)``; where given, axes and flips are not looked at.
    """

    axes: tuple[int, ...]
    flips: tuple[int, ...] = ()
    places: Tensor | None = None

    def forth(self) -> tuple[Way, bool]:
        """The way itself or the one backwards, the same one for both, and whether it is the one backwards."""
        if self.places is None and self.axes[-1] in self.flips:
            return Way(self.axes, tuple(axis for axis in sorted(self.axes) if axis not in self.flips)), True
        return self, False

    def read(self, t: Tensor, first: int) -> Tensor:
        """``t`` with the map's axes, from ``first`` on, as one."""
        end = first + len(self.axes)
        if self.places is not None:
            return t.flatten(first, end - 1).index_select(first, self.places)
        t = t.flip([first + axis for axis in self.flips]) if self.flips else t
        loops = (first + axis for axis in self.axes)
        return t.permute(*range(first), *loops, *range(end, t.dim())).flatten(first, end - 1)

    def put(self, t: Tensor, sizes: Sequence[int], first: int) -> Tensor:
        """The inverse of `read`: ``t`` with the axis ``first`` as a map's axes of these ``sizes``."""
        if self.places is not None:
            order = torch.arange(self.places.shape[0], device=t.device)
            back = torch.zeros_like(order).scatter(0, self.places.long(), order)
            image: Tensor = t.index_select(first, back).unflatten(first, tuple(sizes))
            return image
        image = t.unflatten(first, tuple(sizes[axis] for axis in self.axes))
        places = (first + self.axes.index(axis) for axis in range(len(sizes)))
        image = image.permute(*range(first), *places, *range(first + len(sizes), image.dim()))
        return image.flip([first + axis for axis in self.flips]) if self.flips else image
