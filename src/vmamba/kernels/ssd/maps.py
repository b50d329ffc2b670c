"""Mamba-2's scan of a map in several directions: read out as sequences, scanned, put back and summed in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vmamba import _torch
from vmamba.kernels.reading import Way
from vmamba.kernels.ssd import chunks
from vmamba.kernels.ssd.states import Sequences

#: Elements of a map up to which, on a CPU, all directions are read out and scanned together.
_TOGETHER = 1 << 17


class MapScan(NamedTuple):
    """What is scanned, and how: the arguments of the operators too, in their order.

    Attributes:
        x: ``(b, *sizes, m, p)``.
        dt: step in each of the ``k`` directions ``(b, *sizes, k, m)``.
        log_decay: the log of what a step leaves of the state, like ``dt``.
        B, C: ``(b, *sizes, k, n)``.
        start: states to begin with ``(b, n, m·p)``, or None for zero; with one direction only.
        places: what each direction reads ``(k, l)``, or None where ``axes`` and ``flips`` tell.
        axes: one direction after the other, its loops over the map's axes, the outermost first.
        flips: as many, in the order of the map's axes; 1 for one that is read from its end.
        ends: whether the last states are wanted; with one direction only.
        chunk_size: positions in a chunk, or None for what is fast.
    """

    x: Tensor
    dt: Tensor
    log_decay: Tensor
    B: Tensor
    C: Tensor
    start: Tensor | None
    places: Tensor | None
    axes: Sequence[int]
    flips: Sequence[int]
    ends: bool
    chunk_size: int | None

    @property
    def differentiable(self) -> tuple[Tensor | None, ...]:
        """The fields that have gradients: the first of all."""
        return self.x, self.dt, self.log_decay, self.B, self.C, self.start

    def passes(self) -> list[tuple[list[Way], list[tuple[slice, bool]]]]:
        """In which ways the map is read out at a time; which directions are scanned of that, each whether backwards.

        Where the map is large for a CPU's cache, a way at a time, for the directions that read it forth and back: no
        copy is turned round. Elsewhere, and in graphs of exporters, there are fewer operations with all directions
        together.
        """
        ndim, k, ways = self.x.dim() - 3, self.dt.shape[-2], []
        for i in range(k):
            own = slice(i * ndim, (i + 1) * ndim)
            flipped = tuple(axis for axis in range(ndim) if self.flips[own][axis])
            ways.append(Way(tuple(self.axes[own]), flipped, None if self.places is None else self.places[i]))
        if k == 1 or self.x.device.type != "cpu" or _torch.is_exporting() or self.x.numel() <= _TOGETHER:
            return [(ways, [(slice(None), False)])]
        members: dict[object, tuple[list[Way], list[tuple[slice, bool]]]] = {}
        for i, way in enumerate(ways):
            forth, backwards = way.forth()
            _, those = members.setdefault(forth[:2] if self.places is None else i, ([forth], []))
            those.append((slice(i, i + 1), backwards))
        return list(members.values())

    def sequences(self, u: Tensor, ways: Sequence[Way], own: slice) -> Sequences:
        """What some directions scan: the map ``u`` as it was read out, and their own steps, B and C."""
        dt, log_decay, B, C = (_own_way(t[..., own, :], ways) for t in (self.dt, self.log_decay, self.B, self.C))
        return Sequences(u, dt, log_decay, B, C, self.start)


def forward(scan: MapScan) -> tuple[Tensor, Tensor]:
    """The scan without its skip: ``y`` like ``x`` and, where ``ends``, the last states like ``start``, else nothing."""
    sizes, merged, last = scan.x.shape[1:-2], None, scan.x
    for ways, members in scan.passes():
        u, summed = _each_way(scan.x, ways), None
        for own, backwards in members:
            y, last = chunks.forward(scan.sequences(u, ways, own), scan.ends, scan.chunk_size, backwards)
            summed = y if summed is None else summed + y
        assert summed is not None
        merged = _put(summed, ways, sizes, merged)
    assert merged is not None
    return merged, last


def gradients(dy: Tensor, dlast: Tensor | None, scan: MapScan) -> tuple[Tensor | None, ...]:
    """The gradients of ``sum(dy · y) + sum(dlast · last)`` for x, dt, log_decay, B, C and start."""
    sizes, dx, dstart = scan.x.shape[1:-2], None, None
    each = (scan.dt, scan.log_decay, scan.B, scan.C)
    of_directions = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in each]
    for ways, members in scan.passes():
        u, du, summed = _each_way(scan.x, ways), _each_way(dy, ways), None
        for own, backwards in members:
            given = scan.sequences(u, ways, own)
            of_u, *of_others, dstart = chunks.gradients(du, dlast, given, scan.chunk_size, backwards)
            assert of_u is not None
            summed = of_u if summed is None else summed + of_u
            for into, gradient in zip(of_directions, of_others, strict=True):
                assert gradient is not None
                parts = zip(
                    ways, into[..., own, :].unbind(-2), gradient.unflatten(0, (-1, len(ways))).unbind(1), strict=True
                )
                for way, place, part in parts:
                    place.copy_(way.put(part, sizes, 1))
        assert summed is not None
        dx = _put(summed, ways, sizes, dx)
    return dx, *of_directions, dstart


def _each_way(t: Tensor, ways: Sequence[Way]) -> Tensor:
    """``t (b, *sizes, m, p)`` read out in each of the ways, ``(b·k', l, m, p)``."""
    return _beside([way.read(t, 1) for way in ways])


def _own_way(t: Tensor, ways: Sequence[Way]) -> Tensor:
    """``t (b, *sizes, k', …)`` with each direction read out in its own way, ``(b·k', l, …)``."""
    return _beside([way.read(one, 1) for way, one in zip(ways, t.unbind(-2), strict=True)])


def _beside(sequences: list[Tensor]) -> Tensor:
    """Sequences ``(b, l, …)``, those of an item beside each other; one is not copied."""
    return sequences[0] if len(sequences) == 1 else torch.stack(sequences, 1).flatten(0, 1)


def _put(sequences: Tensor, ways: Sequence[Way], sizes: Sequence[int], onto: Tensor | None) -> Tensor:
    """``onto (b, *sizes, …)`` plus what of ``sequences (b·k', l, …)`` belongs at each place."""
    for way, part in zip(ways, sequences.unflatten(0, (-1, len(ways))).unbind(1), strict=True):
        image = way.put(part, sizes, 1)
        onto = image if onto is None else onto + image
    assert onto is not None
    return onto
