"""The selective scan as ONNX gets it: a recurrence along each row, for all rows at once, then one from row to row.

ONNX has one standard operator for a recurrence, Scan, which runs a small graph once for each item of an axis. Along
a whole sequence that would be h·w runs over d channels each, too little work a run. Here it goes along the rows of the
map (the columns, in directions that read by column), all rows at once, as if each began from zero; what a row ends with
enters the next by a second recurrence, over rows; and the product of a row's decays carries it to each place. So a
direction takes w + h runs, of h·d and of d numbers, a reversed direction is a flag of the operator, and nothing is
flipped or padded. Only products of decays are formed, never quotients, so where the recurrence decays nothing
overflows.

The module answers as a backend does, in plain operations and one operator, which an exporter turns into Scan.
Run eagerly it is a loop, for tests.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vmamba.ops.backends.block_scan import recurrence, step_size
from vmamba.ops.cross_scan import Direction, directions_of


@torch.library.custom_op("vmamba::scan_rows", mutates_args=())
def scan_rows(decay: Tensor, drive: Tensor, C: Tensor, reverse: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run ``h_t = decay_t h_{t-1} + drive_t`` along the first axis from 0, or from its end with ``reverse``.

    Args:
        decay, drive: ``(t, …)``.
        C: what states are multiplied by, ``(t, …)`` up to broadcasting.
        reverse: whether ``h_t`` follows from ``h_{t+1}``.

    Returns:
        ``C_t h_t (t, …)``; ``C_t`` times the product of the decays up to t ``(t, …)``; the last state, and the product
        of all decays, each ``(…)``.
    """
    state, product = drive.new_zeros(drive.shape[1:]), decay.new_ones(decay.shape[1:])
    y, carried = drive.new_empty(drive.shape), decay.new_empty(decay.shape)  # contiguous
    for t in _order(drive, reverse):
        state = decay[t] * state + drive[t]
        product = decay[t] * product
        y[t], carried[t] = C[t] * state, C[t] * product
    return y, carried, state.contiguous(), product.contiguous()


def _order(t: Tensor, reverse: bool) -> Sequence[int]:
    return range(t.shape[0])[:: -1 if reverse else 1]


# Contiguous: of strides like the inputs' the tracer would have to know which sizes are 1.
@scan_rows.register_fake
def _(decay: Tensor, drive: Tensor, C: Tensor, reverse: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
    """See `vmamba.ops.selective_scan`; one run a position, which suits many short sequences (``cascade2d``)."""
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    u, delta, A, B, C = (t.to(dtype) for t in (u, delta, A, B, C))
    delta = step_size(delta, None if delta_bias is None else delta_bias.to(dtype)[:, None], delta_softplus)
    k, n = B.shape[1], B.shape[2]
    d = u.shape[1] // k
    step, scaled = (t.unflatten(1, (k, d)).permute(3, 0, 1, 2) for t in (delta, delta * u))  # (l, b, k, d)
    B, C = (t.permute(3, 0, 1, 2) for t in (B, C))  # (l, b, k, n)
    A = A.unflatten(0, (k, d)).transpose(1, 2)  # (k, n, d)
    y: Tensor = scan_rows(*recurrence(step, scaled, A, B, C), False)[0]
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
    """See `vmamba.ops.ss2d_scan`."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    x, x_dbl, dt_weight, A = (t.to(dtype) for t in (x, x_dbl, dt_weight, A))
    k, d, _ = dt_weight.shape
    A = A.unflatten(0, (k, d)).transpose(1, 2)  # (k, n, d)
    bias = None if dt_bias is None else dt_bias.to(dtype)
    y: Tensor | None = None
    for by_column in (False, True):
        # The axis that is scanned along, the images, the axis that is scanned across, the channels.
        order, back = ((1, 0, 2, 3), (1, 0, 2, 3)) if by_column else ((2, 0, 1, 3), (1, 2, 0, 3))
        turned, turned_dbl = x.permute(order), x_dbl.permute(*order, 4)
        part: Tensor | None = None
        for i, direction in enumerate(directions_of(scan_mode)):
            if direction.by_column == by_column:
                step = (dt_weight[i], None if bias is None else bias[i])
                one = _direction(turned, turned_dbl[..., i, :], *step, A[i], direction, delta_softplus)
                part = one if part is None else part + one
        if part is not None:
            part = part.permute(back)
            y = part if y is None else y + part
    assert y is not None
    return y if D is None else y + x * D.to(dtype).unflatten(0, (k, d)).sum(0)


def _direction(
    u: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    direction: Direction,
    delta_softplus: bool,
) -> Tensor:
    """One direction, without its skip.

    Args:
        u: ``(along, b, across, d)``: w and h, or h and w in a direction that reads by column.
        x_dbl: ``(along, b, across, r + 2n)``.
        dt_weight, dt_bias, A: ``(d, r)``, ``(d)`` or None, ``(n, d)``.
        direction: its flips.
        delta_softplus: as in `ss2d_scan`.

    Returns:
        ``(along, b, across, d)``.
    """
    n, r = A.shape[0], dt_weight.shape[1]
    low_rank, B, C = x_dbl.split([r, n, n], dim=-1)
    delta = torch.matmul(low_rank, dt_weight.t())
    delta = step_size(delta, dt_bias, delta_softplus)
    decay, drive, C = recurrence(delta, delta * u, A, B, C)
    back_along, back_across = direction.flip_w, direction.flip_h
    if direction.by_column:
        back_along, back_across = back_across, back_along
    y: Tensor
    y, carried, states, products = scan_rows(decay, drive, C, back_along)
    # The same operator, with C = 1: OpenVINO gives wrong values where a state itself is a result (seen in 2026.4).
    one = decay.new_ones((states.shape[1],) + (1,) * (states.dim() - 1))
    ends = scan_rows(products.transpose(0, 1), states.transpose(0, 1), one, back_across)[0]
    zero = torch.zeros_like(ends[:1])
    entering = torch.cat([ends[1:], zero] if back_across else [zero, ends[:-1]]).transpose(0, 1)
    y = y + carried * entering
    return y if n == 1 else y.sum(-2)
