"""``"torch"``: Mamba-2's scan as matrix products in plain PyTorch, on any device (arXiv 2405.21060, §6).

One decay a head turns the scan of a chunk into a product with a masked matrix. The sequence is cut into chunks: inside
each, ``(C Bᵀ ∘ decays) x``; across them a state a chunk, carried on by a short recurrence. Here a sequence is what one
group of heads reads: ``b`` batch, ``g`` groups of ``m`` heads of ``p`` channels, ``l`` length, ``n`` states,
``s = b·g`` sequences, ``z`` chunks of ``q`` positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba import _torch
from vmamba.kernels.interface import ScanRun, record
from vmamba.kernels.linear_recurrence import solve

#: Positions in a chunk, and the length that one chunk takes whole.
_CHUNK, _ONE_CHUNK = 32, 64
#: Elements of ``x`` worked on at a time: near a CPU's cache; elsewhere as many as bound the memory.
_PART = {"cpu": 1 << 19}
_PART_ELSEWHERE = 1 << 26
#: Where no chunk's decays multiply to less than e^-60 (or more than e^60), quotients neither over- nor underflow.
_MOST_DECAY = 60.0


class _Cut(NamedTuple):
    """How a sequence is cut: ``chunks`` of ``size`` positions, of which the last ``padding`` are made up."""

    size: int
    chunks: int
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
    initial: Tensor | None,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor]:
    """`vmamba.scan.ssd_scan` with groups first; every derivative is autograd's.

    ``x (b, g, l, m, p)``, ``dt (b, g, l, m)``, ``A (g, m)``, ``B, C (b, g, l, n)``, ``D (g, m, p)`` or ``(g, m, 1)``,
    ``dt_bias (g, m)``, ``initial (b, g, m, p, n)`` → ``y (b, g, l, m, p)`` and the last states like ``initial``.
    """
    if not torch.compiler.is_compiling():
        record(ScanRun("torch", "ssd_scan"))
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    with _torch.without_autocast(x.device.type):
        x, dt, A, B, C = (t.to(dtype) for t in (x, dt, A, B, C))
        dt = dt if dt_bias is None else dt + dt_bias.to(dtype)[:, None]
        dt = F.softplus(dt) if dt_softplus else dt
        cut = _cut(x.shape[2], chunk_size)
        start = None if initial is None else initial.to(dtype).movedim(-1, 2).flatten(0, 1).flatten(2)  # (s, n, m·p)
        inputs = [_chunked(t, cut) for t in (x, dt, dt * A[:, None], B, C)]
        parts = [_scan(own, inputs, None if start is None else start[own]) for own in _parts(inputs[0])]
        ys, lasts = zip(*parts, strict=True)
        groups, heads = A.shape
        y = (ys[0] if len(ys) == 1 else torch.cat(ys)).flatten(1, 2)  # (s, z·q, m, p)
        if not isinstance(cut.padding, int):  # a slice would ask the tracer to prove that length is smaller
            y = F.pad(y, (0, 0, 0, 0, 0, -cut.padding))
        elif cut.padding:
            y = y[:, : -cut.padding]
        y = y.unflatten(0, (-1, groups))
        last = (lasts[0] if len(lasts) == 1 else torch.cat(lasts)).unflatten(-1, (heads, -1)).unflatten(0, (-1, groups))
        y = y if D is None else torch.addcmul(y, D.to(dtype)[:, None], x)
        return y, last.movedim(2, -1)


def _cut(length: int, size: int | None) -> _Cut:
    if size is None:
        size = _ONE_CHUNK if isinstance(length, int) and length <= _ONE_CHUNK else _CHUNK
    if not isinstance(length, int):
        # Even, so that the tracer can prove that it is never 1, a size that it would treat apart.
        chunks = 2 * ((length + 2 * size - 1) // (2 * size))
        return _Cut(size, chunks, size * chunks - length)
    chunks = -(-length // size)
    size = -(-length // chunks)  # as even as can be
    return _Cut(size, chunks, size * chunks - length)


def _chunked(t: Tensor, cut: _Cut) -> Tensor:
    """``(b, g, l, …)`` as ``(s, z, q, …)``. Positions made up take no step, so that they change nothing."""
    t = t.flatten(0, 1)
    if not isinstance(cut.padding, int) or cut.padding:
        t = F.pad(t, (0, 0) * (t.dim() - 2) + (0, cut.padding))
    chunks: Tensor = t.unflatten(1, (cut.chunks, cut.size))
    return chunks


def _parts(x: Tensor) -> Iterator[slice]:
    """Cut the sequences so that a part has some `_PART` elements; one part if traced, one, empty, of an empty batch."""
    if torch.compiler.is_compiling() or _torch.is_exporting():
        yield slice(None)
        return
    count = x.shape[0]
    items = max(1, _PART.get(x.device.type, _PART_ELSEWHERE) // x[:1].numel()) if count else 1
    for i in range(0, max(count, 1), items):
        yield slice(i, i + items)


def _scan(own: slice, inputs: Sequence[Tensor], start: Tensor | None) -> tuple[Tensor, Tensor]:
    """The scan of the sequences ``own``, without its skip.

    ``inputs``: ``x (s, z, q, m, p)``, ``dt, log_decay (s, z, q, m)``, ``B, C (s, z, q, n)``; ``start (s, n, m·p)`` →
    ``y`` like ``x`` and the last states ``(s, n, m·p)``.
    """
    x, dt, log_decay, B, C = (t[own] for t in inputs)
    total = log_decay.cumsum(2)  # the log of the decay since before the chunk
    run = _by_quotients if _may_divide(total) else _by_head
    return run(x, dt, total, B, C, start)


def _may_divide(total: Tensor) -> bool:
    """Whether decays between two positions may be formed as quotients.

    Asked on a CPU alone: elsewhere the answer would be waited for, and a graph cannot depend on it.
    """
    if total.device.type != "cpu" or _torch.is_traced() or _torch.is_transformed():
        return False
    if not total.numel() or total.shape[2] == 1:  # of one position the decay has no gradient but rounding
        return False
    return bool(total.detach().abs().amax() <= _MOST_DECAY)


def _by_quotients(
    x: Tensor, dt: Tensor, total: Tensor, B: Tensor, C: Tensor, start: Tensor | None
) -> tuple[Tensor, Tensor]:
    """With ``exp(total_i - total_j) = exp(total_i) / exp(total_j)`` a product serves all heads of a group at once."""
    decay = torch.exp(total)
    # Not divided by decay: the gradient of that would hold its square, which overflows.
    scaled = (x * (dt * torch.exp(-total))[..., None]).flatten(-2)  # (s, z, q, m·p)
    end = _over_channels(decay[:, :, -1], x.shape[-1])
    entering, last = _carry(end, (B.transpose(-1, -2) @ scaled) * end, start)
    y = (C @ B.transpose(-1, -2)).tril() @ scaled
    if entering is not None:
        y = y + C @ entering
    return y.unflatten(-1, x.shape[-2:]) * decay[..., None], last


def _by_head(x: Tensor, dt: Tensor, total: Tensor, B: Tensor, C: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor]:
    """With a matrix of decays for each head: no quotient, so that nothing over- or underflows, and traceable."""
    driven = x * dt[..., None]
    # Inside a chunk (§6, step 1), decays exp(total_i - total_j) for j ≤ i.
    by_head = total.movedim(-1, 1)  # (s, m, z, q)
    size = x.shape[2]
    future = torch.full((size, size), -math.inf, dtype=x.dtype, device=x.device).triu(1)
    decays = torch.exp(by_head[..., :, None] - by_head[..., None, :] + future)
    within = (C @ B.transpose(-1, -2))[:, None] * decays
    y = (within @ driven.movedim(3, 1)).movedim(1, 3)
    # What each chunk adds to the state (step 2), the states at the chunks' starts (3), and what they give (4).
    end = total[:, :, -1:]
    left = driven * torch.exp(end - total)[..., None]
    added = B.transpose(-1, -2) @ left.flatten(-2)
    entering, last = _carry(_over_channels(torch.exp(end.squeeze(2)), x.shape[-1]), added, start)
    if entering is not None:
        y = torch.addcmul(y, (C @ entering).unflatten(-1, x.shape[-2:]), torch.exp(total)[..., None])
    return y, last


def _over_channels(of_heads: Tensor, channels: int) -> Tensor:
    """``(s, z, m)`` as ``(s, z, 1, m·p)``."""
    return of_heads[..., None].expand(*of_heads.shape, channels).flatten(-2)[:, :, None]


def _carry(decay: Tensor, added: Tensor, start: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """Carry states from chunk to chunk: ``S_{z+1} = decay_z S_z + added_z``.

    ``decay (s, z, 1, m·p)``, ``added (s, z, n, m·p)``, ``start (s, n, m·p)``. Returns the states at the chunks' starts,
    None where all are zero, and the last state.
    """
    if isinstance(added.shape[1], int) and added.shape[1] == 1:
        first = added[:, 0]
        return (None, first) if start is None else (start[:, None], torch.addcmul(first, decay[:, 0], start))
    start = torch.zeros_like(added[:, 0]) if start is None else start
    if torch.compiler.is_compiling() or _torch.is_exporting():  # a loop would be as many operations in the graph
        drive = torch.cat([start[:, None], added], 1).movedim(1, -1)
        solved = solve(F.pad(decay, (0, 0, 0, 0, 1, 0)).movedim(1, -1), drive).movedim(-1, 1)
        return solved[:, :-1], solved[:, -1]
    states = [start]
    for kept, more in zip(decay.unbind(1), added.unbind(1), strict=True):
        states.append(torch.addcmul(more, kept, states[-1]))
    return torch.stack(states[:-1], 1), states[-1]
