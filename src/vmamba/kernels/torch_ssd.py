"""``"torch"``: Mamba-2's scan as matrix products in plain PyTorch, on any device (arXiv 2405.21060, §6).

One decay a head turns the scan of a chunk into a product with a masked matrix. The sequence is cut into chunks: inside
each, ``(C Bᵀ ∘ decays) x``; across them a state a chunk, carried on by a short recurrence. The products between
``B``, ``C`` and states serve all heads of a group at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba import _torch
from vmamba.kernels.interface import ScanRun, record
from vmamba.kernels.linear_recurrence import solve

#: Positions in a chunk: longer ones take more decays (one for each pair of positions), shorter ones more states.
CHUNK_SIZE = 32
#: Decays (b·h·l·q) worked on at a time: near a CPU's cache; elsewhere as many as bound the memory, at 256 MiB a tensor.
_PART = {"cpu": 1 << 20}
_PART_ELSEWHERE = 1 << 26


class _Chunks(NamedTuple):
    """How a sequence is cut: ``count`` chunks of ``size`` positions, of which the last ``padding`` are made up."""

    size: int
    count: int
    padding: int


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    initial_states: Tensor | None,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor]:
    """See `vmamba.scan.ssd_scan`. Every derivative is autograd's; also returns the final states ``(b, h, p, n)``."""
    if not torch.compiler.is_compiling():
        record(ScanRun("torch", "ssd_scan"))
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    with _torch.without_autocast(x.device.type):
        x, dt, A, B, C = (t.to(dtype) for t in (x, dt, A, B, C))
        dt = dt if dt_bias is None else dt + dt_bias.to(dtype)
        dt = F.softplus(dt) if dt_softplus else dt
        initial = None if initial_states is None else initial_states.to(dtype)
        cut = _cut(x.shape[1], CHUNK_SIZE if chunk_size is None else chunk_size)
        parts = [
            _scan(x[own], dt[own], A, B[own], C[own], None if initial is None else initial[own], cut)
            for own in _parts(x, cut)
        ]
        y, last = parts[0] if len(parts) == 1 else (torch.cat(each) for each in zip(*parts, strict=True))
        if D is not None:
            y = torch.addcmul(y, D.to(dtype) if D.dim() == 2 else D.to(dtype)[:, None], x)
        return y, last


def _cut(length: int, size: int) -> _Chunks:
    if not isinstance(length, int):
        # Even, so that the tracer can prove that it is never 1, a size that it would treat apart.
        count = 2 * ((length + 2 * size - 1) // (2 * size))
        return _Chunks(size, count, size * count - length)
    count = -(-length // size)
    size = -(-length // count)  # as even as can be
    return _Chunks(size, count, size * count - length)


def _parts(x: Tensor, cut: _Chunks) -> Iterator[slice]:
    """Cut the batch so that a part has some `_PART` decays; one part if traced, and one, empty, of an empty batch."""
    if torch.compiler.is_compiling() or _torch.is_exporting():
        yield slice(None)
        return
    batch, length, heads, _ = x.shape
    items = max(1, _PART.get(x.device.type, _PART_ELSEWHERE) // (length * heads * cut.size))
    for i in range(0, max(batch, 1), items):
        yield slice(i, i + items)


def _scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor | None, cut: _Chunks
) -> tuple[Tensor, Tensor]:
    """``y (b, l, h, p)`` without the skip, and the last states ``(b, h, p, n)``. Letters: g groups of m heads each."""
    batch, length, heads, width = x.shape
    groups, n = B.shape[2:]
    per_group = heads // groups

    def chunked(t: Tensor, *tail: int) -> Tensor:
        """``(b, l, g·…)`` as ``(b, g, chunk, position, …)``; positions made up take no step, so that nothing changes."""
        t = t.reshape(batch, length, -1)
        if not isinstance(cut.padding, int) or cut.padding:
            t = F.pad(t, (0, 0, 0, cut.padding))
        return t.reshape(batch, cut.count, cut.size, groups, *tail).movedim(3, 1)

    steps = chunked(dt, per_group)  # (b, g, z, q, m)
    total = (steps * A.view(groups, 1, 1, per_group)).cumsum(3)  # log of the decay from the chunk's start
    driven = chunked(x, per_group, width) * steps[..., None]  # (b, g, z, q, m, p)
    B, C = chunked(B, n), chunked(C, n)

    # Inside a chunk (§6, step 1), decays exp(total_i - total_j) for j ≤ i.
    by_head = total.movedim(-1, 2)  # (b, g, m, z, q)
    future = torch.full((cut.size, cut.size), -math.inf, dtype=x.dtype, device=x.device).triu(1)
    decays = torch.exp(by_head[..., :, None] - by_head[..., None, :] + future)
    within = (C @ B.transpose(-1, -2))[:, :, None] * decays
    y = (within @ driven.permute(0, 1, 4, 2, 3, 5)).permute(0, 1, 3, 4, 2, 5)  # (b, g, z, q, m, p)

    # What each chunk adds to the state (step 2), the states at the chunks' starts (3), and what they give (4).
    end = total[:, :, :, -1:]
    left = driven * torch.exp(end - total)[..., None]
    added = (B.transpose(-1, -2) @ left.flatten(-2)).unflatten(-1, (per_group, width))  # (b, g, z, n, m, p)
    start = None if initial is None else initial.view(batch, groups, per_group, width, n).permute(0, 1, 4, 2, 3)
    entering, last = _carry(torch.exp(end.squeeze(3)), added, start)
    if entering is not None:
        from_before = (C @ entering.flatten(-2)).unflatten(-1, (per_group, width))
        y = torch.addcmul(y, from_before, torch.exp(total)[..., None])

    y = y.movedim(1, 3).reshape(batch, cut.size * cut.count, heads, width)
    if not isinstance(cut.padding, int):
        y = F.pad(y, (0, 0, 0, 0, 0, -cut.padding))  # a slice would ask the tracer to prove that length is smaller
    return y[:, :length] if isinstance(cut.padding, int) else y, last.permute(0, 1, 3, 4, 2).reshape(
        batch, heads, width, n
    )


def _carry(decay: Tensor, added: Tensor, start: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """Carry states from chunk to chunk: ``s_{z+1} = decay_z s_z + added_z``.

    ``decay (b, g, z, m)``, ``added (b, g, z, n, m, p)``, ``start (b, g, n, m, p)``. Returns the states at the chunks'
    starts, None where all are zero, and the last state.
    """
    count = added.shape[2]
    if isinstance(count, int) and count == 1:
        entering = None if start is None else start[:, :, None]
        last = added[:, :, 0] if start is None else added[:, :, 0] + decay[:, :, 0, None, :, None] * start
        return entering, last
    start = torch.zeros_like(added[:, :, 0]) if start is None else start
    if torch.compiler.is_compiling() or _torch.is_exporting():  # a loop would be as many operations in the graph
        drive = torch.cat([start[:, :, None], added], 2).movedim(2, -1)
        states = solve(F.pad(decay, (0, 0, 1, 0)).movedim(2, -1)[:, :, None, :, None], drive).movedim(-1, 2)
        return states[:, :, :-1], states[:, :, -1]
    states = [start]
    for kept, more in zip(decay[:, :, :, None, :, None].unbind(2), added.unbind(2), strict=True):
        states.append(torch.addcmul(more, kept, states[-1]))
    return torch.stack(states[:-1], 2), states[-1]
