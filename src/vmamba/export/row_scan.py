"""The selective scan as ONNX gets it: a recurrence along pieces of sequences, all at once, then from piece to piece.

ONNX has one standard operator for a recurrence, Scan, which runs a small graph once for each item of an axis, and a run
costs microseconds for each of its operations. Along a whole sequence that would be h·w runs over d channels each, too
little work a run. Here every direction's sequence is cut into h pieces of w places, which for directions that read by
row are the rows. One Scan goes along the pieces, all of them and all directions at once, as if each began from zero;
what a piece ends with enters the next by a second one, over pieces; and the product of a piece's decays carries it to
each place. So the four directions take w + h runs together. Only products of decays are formed, never quotients, so
where the recurrence decays nothing overflows.

The module answers as a backend does, in plain operations and one operator, which an exporter turns into Scan.
Run eagerly it is a loop, for tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from vmamba.export.block_scan import recurrence, step_size
from vmamba.scan.orders import Direction, directions_of


@torch.library.custom_op("vmamba::scan_pieces", mutates_args=())
def scan_pieces(decay: Tensor, drive: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run ``h_t = decay_t h_{t-1} + drive_t`` along the first axis from 0.

    Args:
        decay, drive: ``(t, …)``.
        C: what states are multiplied by, ``(t, …)`` up to broadcasting.

    Returns:
        ``C_t h_t (t, …)``; ``C_t`` times the product of the decays up to t ``(t, …)``; the last state, and the product
        of all decays, each ``(…)``.
    """
    state, product = drive.new_zeros(drive.shape[1:]), decay.new_ones(decay.shape[1:])
    y, carried = drive.new_empty(drive.shape), decay.new_empty(decay.shape)  # contiguous
    for t in range(len(drive)):
        state = decay[t] * state + drive[t]
        product = decay[t] * product
        y[t], carried[t] = C[t] * state, C[t] * product
    return y, carried, state.contiguous(), product.contiguous()


# Contiguous: of strides like the inputs' the tracer would have to know which sizes are 1.
@scan_pieces.register_fake
def _(decay: Tensor, drive: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        drive.new_empty(drive.shape),
        decay.new_empty(decay.shape),
        drive.new_empty(drive.shape[1:]),
        decay.new_empty(decay.shape[1:]),
    )


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
    """See `vmamba.scan.selective_scan`; one run a position, which suits many short sequences (``cascade2d``)."""
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    u, delta, A, B, C = (t.to(dtype) for t in (u, delta, A, B, C))
    delta = step_size(delta, None if delta_bias is None else delta_bias.to(dtype)[:, None], delta_softplus)
    k, n = B.shape[1], B.shape[2]
    d = u.shape[1] // k
    step, scaled = (t.unflatten(1, (k, d)).permute(3, 0, 1, 2) for t in (delta, delta * u))  # (l, b, k, d)
    B, C = (t.permute(3, 0, 1, 2) for t in (B, C))  # (l, b, k, n)
    A = A.unflatten(0, (k, d)).transpose(1, 2)  # (k, n, d)
    y: Tensor = scan_pieces(*recurrence(step, scaled, A, B, C))[0]
    y = y if n == 1 else y.sum(-2)
    y = y.permute(1, 2, 3, 0).flatten(1, 2)  # (b, k·d, l)
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
    k, d, r = dt_weight.shape
    n, (b, h, _, _) = A.shape[1], x.shape
    order = _Order.of(directions_of(scan_mode))
    numbers = order.rows + order.columns  # in this order from here on
    u = _pieces([x] * k, order)
    low_rank, B, C = _pieces(x_dbl.unbind(3), order).split([r, n, n], dim=-1)
    dt_weight = dt_weight[numbers].transpose(1, 2)  # (k, r, d)
    A = A.unflatten(0, (k, d))[numbers].transpose(1, 2)[:, None]  # (k, 1, n, d)
    if dt_bias is not None:  # as one column more; an addition would be one pass more over all steps
        dt_weight = torch.cat([dt_weight, dt_bias.to(dtype)[numbers][:, None]], 1)
        low_rank = torch.cat([low_rank, torch.ones_like(low_rank[..., :1])], -1)
    delta = step_size(torch.matmul(low_rank, dt_weight), None, delta_softplus)  # (w, k, b·h, d)

    y: Tensor
    y, carried, *ends = scan_pieces(*recurrence(delta, delta * u, A, B, C))
    states, products = (t.flatten(0, 1).unflatten(0, (k * b, h)).transpose(0, 1) for t in ends)  # (h, k·b, …)
    # The same operator, with C = 1: OpenVINO gives wrong values where a state itself is a result (seen in 2026.4).
    one = y.new_ones((h,) + (1,) * (states.dim() - 1))
    states = scan_pieces(products, states, one)[0]
    entering = torch.cat([torch.zeros_like(states[:1]), states[:-1]])
    y = y + carried * entering.transpose(0, 1).flatten(0, 1).unflatten(0, (k, b * h))
    y = _merged(y if n == 1 else y.sum(-2), x.shape, order)
    return y if D is None else y + x * D.to(dtype).unflatten(0, (k, d)).sum(0)


class _Order(NamedTuple):
    """Which directions read by row, which by column, and how each turns the map over first: along h, along w."""

    rows: list[int]
    columns: list[int]
    row_flips: list[tuple[bool, bool]]
    column_flips: list[tuple[bool, bool]]

    @classmethod
    def of(cls, ways: Sequence[Direction]) -> _Order:
        """Of the directions of a scan mode; in every mode some read by row."""
        rows, columns = ([i for i, way in enumerate(ways) if way.by_column == by] for by in (False, True))
        return cls(rows, columns, *([(ways[i].flip_h, ways[i].flip_w) for i in own] for own in (rows, columns)))


# Reshapes come before transposes here. ONNX Runtime would melt a transpose into the one that brings a convolution's
# result to channels-last, and has no fast kernel for what comes of that (ten times as slow as the two).


def _pieces(maps: Sequence[Tensor], order: _Order) -> Tensor:
    """Each direction's map ``(b, h, w, c)`` as pieces of its sequence: ``(w, k, b·h, c)``, by row first."""
    by_row = _stacked([maps[i] for i in order.rows], order.row_flips)
    stacks = [by_row]
    if order.columns:
        same = order.row_flips == order.column_flips and all(t is maps[0] for t in maps)
        by_column = by_row if same else _stacked([maps[i] for i in order.columns], order.column_flips)
        stacks.append(by_column.transpose(1, 2).reshape(by_column.shape))
    pieces: Tensor = torch.cat(stacks).flatten(0, 1).transpose(0, 1).unflatten(1, (len(maps), -1))
    return pieces


def _stacked(maps: Sequence[Tensor], flips: Sequence[tuple[bool, bool]]) -> Tensor:
    """``(b, h, w, c)`` each, turned over, below each other: ``(g·b, h, w, c)``."""
    turned = [_flipped(t, *flip).flatten(1, 2) for t, flip in zip(maps, flips, strict=True)]
    stack: Tensor = torch.cat(turned).unflatten(1, maps[0].shape[1:3])
    return stack


def _flipped(t: Tensor, flip_h: bool, flip_w: bool) -> Tensor:
    b, h, w, c = t.shape
    if flip_h and flip_w:
        t = t.flatten(1, 2).flip(1).unflatten(1, (h, w))
    elif flip_h:
        t = t.flatten(2).flip(1).unflatten(2, (w, c))
    elif flip_w:
        t = t.flatten(0, 1).flip(1).unflatten(0, (b, h))
    return t


def _merged(y: Tensor, shape: torch.Size, order: _Order) -> Tensor:
    """The reverse of `_pieces`: ``(w, k, b·h, d)`` put back into maps of ``shape``, and all directions added."""
    b, h, w, d = shape
    y = y.flatten(1, 2).transpose(0, 1).unflatten(0, (-1, h))  # (k·b, h, w, d)
    flips = order.row_flips
    if order.columns:
        y, by_column = y.split([len(order.rows) * b, len(order.columns) * b])
        by_column = by_column.reshape(-1, w, h, d).transpose(1, 2)
        if order.row_flips == order.column_flips:
            y = y + by_column
        else:
            y, flips = torch.cat([y, by_column]), order.row_flips + order.column_flips
    maps = (_flipped(t, *flip) for t, flip in zip(y.unflatten(0, (len(flips), b)), flips, strict=True))
    return reduce(torch.add, maps)
