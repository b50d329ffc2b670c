"""The selective scan as exports of a fixed size hold it: plain operations that a compiler makes short work of.

A sequence is cut into blocks of `_BLOCK` places. Each block's recurrence is written out, place by place, as operations
on all blocks at once: first for the product of a block's decays and the state that it ends with from zero; these
follow the same recurrence, one item a block, and are solved the same way; then once more, from the state that enters
each block. So a compiler sees loops over blocks and channels with a short straight body, where it would see one pass
of shifted reads for each doubling of a parallel prefix. Only products of decays are formed, never quotients, so where
the recurrence decays nothing overflows, and inside a block the states are those of the plain recurrence.

On a map the blocks lie along the rows (the columns, in directions that read by column), and what the rows end with is
one more sequence, across them: nothing is transposed, and directions along the same axis are one tensor.

The sizes of the map are numbers when it is traced; `vmamba.kernels.torch_prefix` serves open ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba.scan.orders import Direction, directions_of

#: Places in a block.
_BLOCK = 8

#: From the state that enters an axis, or None for zero, to the states that enter each of its items.
Entering = Callable[[Tensor | None], Tensor]


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """See `vmamba.scan.selective_scan`."""
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    u, delta, A, B, C = (t.to(dtype) for t in (u, delta, A, B, C))
    delta = step_size(delta, None if delta_bias is None else delta_bias.to(dtype)[:, None], delta_softplus)
    k = B.shape[1]
    d = u.shape[1] // k
    step, scaled = (t.unflatten(1, (k, d)).transpose(2, 3) for t in (delta, delta * u))  # (b, k, l, d)
    B, C = B.transpose(2, 3), C.transpose(2, 3)  # (b, k, l, n)
    A = A.unflatten(0, (k, d)).transpose(1, 2)[:, None]  # (k, 1, n, d)
    decay, drive, C = recurrence(step, scaled, A, B, C)
    y = _scan(decay, drive, C, 2, across=False)
    y = y.transpose(2, 3).flatten(1, 2)  # (b, k·d, l)
    return y if D is None else y + D.to(dtype)[:, None] * u


def ss2d_scan(
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    scan_mode: str,
    delta_softplus: bool,
) -> Tensor:
    """See `vmamba.scan.ss2d_scan`."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    x, x_dbl, dt_weight, A = (t.to(dtype) for t in (x, x_dbl, dt_weight, A))
    k, d, _ = dt_weight.shape
    A = A.unflatten(0, (k, d)).transpose(1, 2)  # (k, n, d)
    bias = None if dt_bias is None else dt_bias.to(dtype)
    parts = []
    for by_column in (False, True):
        own = [(i, way) for i, way in enumerate(directions_of(scan_mode)) if way.by_column == by_column]
        if own:
            # (b, across, along, …)
            turned, turned_dbl = (t.transpose(1, 2) if by_column else t for t in (x, x_dbl))
            numbers, ways = [i for i, _ in own], [way for _, way in own]
            step = (dt_weight[numbers], None if bias is None else bias[numbers])
            part = _directions(turned, turned_dbl[..., numbers, :], *step, A[numbers], ways, delta_softplus)
            parts.append(part.transpose(1, 2) if by_column else part)
    y = reduce(torch.add, parts)
    return y if D is None else y + x * D.to(dtype).unflatten(0, (k, d)).sum(0)


def _directions(
    u: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    ways: list[Direction],
    delta_softplus: bool,
) -> Tensor:
    """The sum of the g directions that read along the same axis, without their skips.

    Args:
        u: ``(b, across, along, d)``: h and w, or w and h of directions that read by column.
        x_dbl: ``(b, across, along, g, r + 2n)``.
        dt_weight, dt_bias, A: ``(g, d, r)``, ``(g, d)`` or None, ``(g, n, d)``.
        ways: their flips.
        delta_softplus: as in `ss2d_scan`.

    Returns:
        ``(b, across, along, d)``.
    """
    n, r = A.shape[1], dt_weight.shape[2]
    flips = [_flips(way) for way in ways]
    u = torch.stack([u.flip(flip) if flip else u for flip in flips])
    x_dbl = torch.stack([t.flip(flip) if flip else t for t, flip in zip(x_dbl.unbind(3), flips, strict=True)])
    low_rank, B, C = x_dbl.split([r, n, n], dim=-1)  # (g, b, across, along, …)
    delta = torch.bmm(low_rank.flatten(1, 3), dt_weight.transpose(1, 2)).unflatten(1, low_rank.shape[1:4])
    delta = step_size(delta, None if dt_bias is None else dt_bias[:, None, None, None], delta_softplus)
    decay, drive, C = recurrence(delta, delta * u, A[:, None, None, None], B, C)
    y = _scan(decay, drive, C, 3, across=True)
    images = (part.flip(flip) if flip else part for part, flip in zip(y.unbind(0), flips, strict=True))
    return reduce(torch.add, images)


def _flips(way: Direction) -> list[int]:
    """The axes of ``(b, across, along, …)`` that a direction turns over."""
    across, along = (way.flip_w, way.flip_h) if way.by_column else (way.flip_h, way.flip_w)
    return [axis for axis, flip in ((1, across), (2, along)) if flip]


def recurrence(step: Tensor, scaled: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Decays, drives, and what states are multiplied by.

    ``step, scaled (…, d)``, ``A`` like ``(…, n, d)``, ``B, C (…, n)`` → each like ``(…, d)``, or ``(…, n, d)`` where
    n > 1.
    """
    if A.shape[-2] == 1:
        return torch.exp(step * A[..., 0, :]), scaled * B, C
    return torch.exp(step[..., None, :] * A), scaled[..., None, :] * B[..., None], C[..., None]


def _scan(decay: Tensor, drive: Tensor, C: Tensor, axis: int, *, across: bool) -> Tensor:
    """``y_t = C_t · h_t`` of ``h_t = decay_t h_{t-1} + drive_t`` along ``axis``.

    With ``across`` the sequences follow each other along the axis before, each from the state that the last one ended
    with; else all start from zero.
    """
    length, with_states = decay.shape[axis], decay.dim() > axis + 2
    decay, drive, C = _cut(decay, axis, 1.0), _cut(drive, axis, 0.0), _cut(C, axis, 0.0)
    products, ends = _fold(decay, drive, axis + 1)
    *row, entering = _solve(products, ends, axis)
    first = _solve(row[0], row[1], axis - 1)[2](None) if across else None
    state, y = entering(first), []
    for a, x, c in zip(*(t.unbind(axis + 1) for t in (decay, drive, C)), strict=True):
        state = a * state + x
        y.append((c * state).sum(-2) if with_states else c * state)
    return _joined(torch.stack(y, axis + 1), axis, length)


def _solve(decay: Tensor, drive: Tensor, axis: int) -> tuple[Tensor, Tensor, Entering]:
    """The product of the decays along ``axis``, the state at its end from zero, and what enters each item."""
    length = decay.shape[axis]
    if length <= _BLOCK:
        return (*_fold(decay, drive, axis), lambda first: _unfold(decay, drive, first, axis))
    decay, drive = _cut(decay, axis, 1.0), _cut(drive, axis, 0.0)
    product, state, above = _solve(*_fold(decay, drive, axis + 1), axis)

    def entering(first: Tensor | None) -> Tensor:
        return _joined(_unfold(decay, drive, above(first), axis + 1), axis, length)

    return product, state, entering


def _cut(t: Tensor, axis: int, filler: float) -> Tensor:
    """Cut ``axis`` into blocks, the last filled up: ``(…, l, …) → (…, blocks, _BLOCK, …)``."""
    length = t.shape[axis]
    block = min(length, _BLOCK)
    blocks = (length + block - 1) // block
    padding = blocks * block - length
    if padding:
        t = F.pad(t, (0, 0) * (t.dim() - 1 - axis) + (0, padding), value=filler)
    cut: Tensor = t.unflatten(axis, (blocks, block))
    return cut


def _joined(t: Tensor, axis: int, length: int) -> Tensor:
    """The inverse of `_cut`."""
    return t.flatten(axis, axis + 1).narrow(axis, 0, length)


def _fold(decay: Tensor, drive: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The product of the decays along ``axis`` and the state at its end, from zero."""
    (product, *decays), (state, *drives) = decay.unbind(axis), drive.unbind(axis)
    for a, x in zip(decays, drives, strict=True):
        product, state = a * product, a * state + x
    return product, state


def _unfold(decay: Tensor, drive: Tensor, first: Tensor | None, axis: int) -> Tensor:
    """The states that enter each item of ``axis``, where ``first`` enters the first."""
    states = [torch.zeros_like(drive.select(axis, 0)) if first is None else first]
    for a, x in zip(decay.unbind(axis)[:-1], drive.unbind(axis)[:-1], strict=True):
        states.append(x if first is None and len(states) == 1 else a * states[-1] + x)
    return torch.stack(states, axis)


def step_size(delta: Tensor, bias: Tensor | None, delta_softplus: bool) -> Tensor:
    """The step with its bias, already in shape, and softplus where asked for."""
    if bias is not None:
        delta = delta + bias
    return softplus(delta) if delta_softplus else delta


#: ``log1p(2s / (1 - s)) / 2s``, s in [0, 1/3], in powers of (2s)², lowest first: Chebyshev, error 1.7e-7.
_SERIES = (0.9999998361942392, 0.08334497253256096, 0.012371893634349535, 0.0026736292017209523)


def softplus(x: Tensor) -> Tensor:
    """``log(1 + e^x)`` as ``max(x, 0) + log1p(e^-|x|)``, to 3e-7 of itself; of float64 PyTorch's own.

    Inductor's log1p takes 70 % of a compiled scan's time, ONNX Runtime's Softplus several times as long as all of this,
    and ONNX has no log1p. ``log1p(z)`` is ``2 artanh(s)`` of ``s = z / (2 + z) = 1 / (1 + 2 e^|x|)``, and none of its
    sums cancels, so that no optimizer can spoil it by reordering.
    """
    if x.dtype == torch.float64:
        return F.softplus(x)
    twice = torch.reciprocal(torch.exp(x.abs()) + 0.5)  # 2s; 0 where the exponential overflows
    square = twice * twice
    series = square * _SERIES[-1] + _SERIES[-2]
    for coefficient in _SERIES[-3::-1]:
        series = series * square + coefficient
    return torch.relu(x) + twice * series
