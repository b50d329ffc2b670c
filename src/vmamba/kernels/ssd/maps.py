"""Mamba-2's scan of a map in several directions: read out as sequences, scanned, put back and summed in place.

Here an input is ``x (b, *sizes, m, p)``, and for each of ``k`` directions ``dt, log_decay (b, *sizes, k, m)``,
``B, C (b, *sizes, k, n)``; ``start (b, n, m·p)`` or None. A direction's loops over the map's axes are so many of
``axes``, with a 1 in ``flips`` where an axis is read from its end; or else ``places (k, l)`` tells all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vmamba import _torch
from vmamba.kernels.reading import Way
from vmamba.kernels.ssd import chunks
from vmamba.kernels.ssd.states import Sequences

#: Elements of a map up to which, on a CPU, all directions are read out and scanned together.
_TOGETHER = 1 << 17


def forward(
    x: Tensor,
    dt: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    start: Tensor | None,
    places: Tensor | None,
    axes: Sequence[int],
    flips: Sequence[int],
    ends: bool,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor]:
    """The scan without its skip: ``y`` like ``x`` and, where ``ends``, the last states like ``start``, else nothing.

    States there are with one direction only.
    """
    sizes, merged, last = x.shape[1:-2], None, x
    for ways, members in _passes(x, places, axes, flips, dt.shape[-2]):
        u, summed = _each_way(x, ways), None
        for own, backwards in members:
            others = (_own_way(t[..., own, :], ways) for t in (dt, log_decay, B, C))
            y, last = chunks.forward(Sequences(u, *others, start), ends, chunk_size, backwards)  # type: ignore[call-arg]
            summed = y if summed is None else summed + y
        assert summed is not None
        merged = _put(summed, ways, sizes, merged)
    assert merged is not None
    return merged, last


def gradients(
    dy: Tensor,
    dlast: Tensor | None,
    x: Tensor,
    dt: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    start: Tensor | None,
    places: Tensor | None,
    axes: Sequence[int],
    flips: Sequence[int],
    ends: bool,
    chunk_size: int | None,
) -> tuple[Tensor | None, ...]:
    """The gradients of ``sum(dy · y) + sum(dlast · last)`` for x, dt, log_decay, B, C and start."""
    sizes, dx, dstart = x.shape[1:-2], None, None
    of_directions = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (dt, log_decay, B, C)]
    for ways, members in _passes(x, places, axes, flips, dt.shape[-2]):
        u, du, summed = _each_way(x, ways), _each_way(dy, ways), None
        for own, backwards in members:
            others = (_own_way(t[..., own, :], ways) for t in (dt, log_decay, B, C))
            given = Sequences(u, *others, start)  # type: ignore[call-arg]
            found = chunks.gradients(du, dlast, given, chunk_size, backwards)
            of_u, *of_others, dstart = found
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


def _passes(
    x: Tensor, places: Tensor | None, axes: Sequence[int], flips: Sequence[int], k: int
) -> list[tuple[list[Way], list[tuple[slice, bool]]]]:
    """In which ways the map is read out at a time; and which directions are scanned of that, each whether backwards.

    Where the map is large for a CPU's cache, a way at a time, for the directions that read it forth and back: no copy
    is turned round. Elsewhere, and in graphs of exporters, there are fewer operations with all directions together.
    """
    ndim = x.dim() - 3
    ways = []
    for i in range(k):
        own = slice(i * ndim, (i + 1) * ndim)
        flipped = tuple(axis for axis in range(ndim) if flips[own][axis])
        ways.append(Way(tuple(axes[own]), flipped, None if places is None else places[i]))
    if k == 1 or x.device.type != "cpu" or _torch.is_exporting() or x.numel() <= _TOGETHER:
        return [(ways, [(slice(None), False)])]
    members: dict[object, tuple[list[Way], list[tuple[slice, bool]]]] = {}
    for i, way in enumerate(ways):
        forth, backwards = way.forth()
        _, those = members.setdefault(forth[:2] if places is None else i, ([forth], []))
        those.append((slice(i, i + 1), backwards))
    return list(members.values())


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
