"""The fused 2-d scan on a GPU: four directions over channels-last memory, projected inside, summed in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vmamba.kernels.triton.launch import Scan
from vmamba.kernels.triton.plan import Pairs, group_of, pairs

#: Makes a float32 workspace of so many elements.
Workspace = Callable[[int], Tensor]

_DIRECTIONS = 4


def saved_shape(x: Tensor, A: Tensor) -> tuple[int, ...]:
    """Where the kernels keep states for backward: before every group of places, ``(groups + 1, b, 4, n, d)``.

    There is room for one more, so that no size is 1, for which compilers make graphs of their own.
    """
    b, h, w, d = x.shape
    return (h * w - 1) // group_of(A.shape[1]) + 2, b, _DIRECTIONS, A.shape[1], d


def _scan(
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    readings: Sequence[int],
    delta_softplus: bool,
) -> Scan:
    _, h, w, _ = x.shape
    rank, states = dt_weight.shape[2], A.shape[1]
    walked: Pairs = pairs(readings, h, w)
    pixels, columns = x.flatten(1, 2), x_dbl.flatten(1, 2)  # (b, l, d), (b, l, k, r + 2n)
    if pixels.stride(2) != 1:
        pixels = pixels.contiguous()
    if columns.stride(3) != 1:
        columns = columns.contiguous()
    by_direction = columns.transpose(1, 2)  # (b, k, l, r + 2n)
    low_rank, B, C = by_direction.split([rank, states, states], dim=3)
    shared = pixels[:, None].expand(-1, _DIRECTIONS, -1, -1)  # all directions read the same pixels
    return Scan(shared, low_rank, dt_weight, dt_bias, A, B, C, D, walked, delta_softplus)


def forward(
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    readings: Sequence[int],
    delta_softplus: bool,
    y: Tensor,
    saved: Tensor | None,
    workspace: Workspace,
) -> str:
    """Fill ``y (b, h, w, d)``, contiguous, float32, and the states that backward starts from; not for empty maps.

    Args:
        x, x_dbl, dt_weight, dt_bias, A, D, delta_softplus: as of `vmamba.scan.ss2d_scan`; parameters float32.
        readings: of the scan mode, see `vmamba.scan.orders.readings_of`.
        saved: of `saved_shape`, or None where nothing is to be kept.
        workspace: makes memory for this call.

    Returns:
        what ran.
    """
    scan = _scan(x, x_dbl, dt_weight, dt_bias, A, D, readings, delta_softplus)
    out = y.flatten(1, 2)[:, None].expand(-1, _DIRECTIONS, -1, -1)
    return scan.forward(out, saved, workspace)


def backward(
    dy: Tensor,
    saved: Tensor,
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    readings: Sequence[int],
    delta_softplus: bool,
    gradients: Sequence[Tensor | None],
    workspace: Workspace,
) -> None:
    """Fill the gradients of ``x, x_dbl, dt_weight, dt_bias, A, D``, None where the input is; not for empty maps.

    Args:
        dy: ``(b, h, w, d)``, contiguous, float32.
        gradients: contiguous, float32, in their inputs' shapes.
    """
    dx, dx_dbl, d_dt_weight, d_dt_bias, dA, dD = gradients
    assert dx is not None
    assert dx_dbl is not None
    scan = _scan(x, x_dbl, dt_weight, dt_bias, A, D, readings, delta_softplus)
    every = (-1, _DIRECTIONS, -1, -1)
    out = dx.flatten(1, 2)[:, None].expand(every)
    dy = dy.flatten(1, 2)[:, None].expand(every)
    found = scan.backward(dy, saved, out, None, workspace)
    torch.sum(found.columns, 0, out=dx_dbl.view(found.columns.shape[1:]))
    found.fill(d_dt_weight, d_dt_bias, dA, dD)
