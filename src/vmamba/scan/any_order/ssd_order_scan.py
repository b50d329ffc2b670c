"""Mamba-2's scan of a map in any number of directions, each in an order of its own (forward type ``m0``)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vmamba.errors import InputError
from vmamba.scan.any_order.orders import (
    AxisOrder,
    ScanOrder,
    check_axes,
    from_sequence,
    loops_of,
    places_of_all,
    to_sequence,
)
from vmamba.scan.reference import ssd_scan_reference
from vmamba.scan.selective_scan import check_same_place, savable
from vmamba.scan.ssd_scan import run_ssd, steps


def ssd_order_scan(
    x: Tensor,
    x_dbl: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    orders: Sequence[ScanOrder],
    dt_softplus: bool = True,
    *,
    backend: str | None = None,
) -> Tensor:
    """Scan a map with `ssd_scan` once in each of the orders, and sum what they give in place.

    Each direction has ``r`` heads, which share its B and C. An order and the one backwards read the map once.

    Args:
        x: input map ``(b, *sizes, d)``, ``d`` a multiple of ``r``; float32, bfloat16, float16 or float64.
        x_dbl: per place and direction the heads' steps, B and C, ``(b, *sizes, k, r + 2n)``: the x projection, applied
            once per place, since it commutes with the scan order.
        dt_bias: step bias ``(k, r)`` or None.
        A: decay of each head ``(k, r)``.
        D: skip ``(k, r, d/r)`` or None.
        orders: one for each of the ``k`` directions.
        dt_softplus: whether the steps go through softplus.
        backend: as in `ssd_scan`.

    Returns:
        ``y (b, *sizes, d)``, float32 (float64 for float64 ``x``).

    Raises:
        InputError: shapes, dtypes or devices that do not fit, or a map of another size than an order's.
        BackendError: an unknown backend, or a named one that cannot run this call.
    """
    orders = tuple(orders)
    _check(x, x_dbl, dt_bias, A, D, orders)
    x, x_dbl, dt_bias, A, D = savable(x, x_dbl, dt_bias, A, D)  # type: ignore[assignment]
    r = A.shape[1]
    n, ndim, sizes = (x_dbl.shape[-1] - r) // 2, x.dim() - 2, x.shape[1:-1]
    dt, B, C = x_dbl.split([r, n, n], dim=-1)  # each (b, *sizes, k, ·)
    u = x.unflatten(-1, (r, -1))
    loops, places = [order for order in orders if isinstance(order, AxisOrder)], None
    if len(loops) < len(orders):
        loops, places = [AxisOrder(tuple(range(ndim)))] * len(orders), places_of_all(orders, sizes, x.device)
    axes, flips = loops_of(loops, ndim)
    y, _ = run_ssd(
        u,
        *steps(x, dt, A, dt_bias, dt_softplus),
        B,
        C,
        places=places,
        axes=axes,
        flips=flips,
        backend=backend,
    )
    # All directions skip to the same places.
    y = y if D is None else torch.addcmul(y, D.to(y.dtype).sum(0), u.to(y.dtype))
    return y.flatten(-2)


def ssd_order_scan_reference(
    x: Tensor,
    x_dbl: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    orders: Sequence[ScanOrder],
    dt_softplus: bool = True,
) -> Tensor:
    """The oracle of `ssd_order_scan`: sequences read out, the recurrence step by step, and what it gives put back."""
    sizes, (_, r) = x.shape[1:-1], A.shape
    n, parts = (x_dbl.shape[-1] - r) // 2, []
    for i, order in enumerate(orders):
        u = to_sequence(x, order, len(sizes), 1).unflatten(-1, (r, -1))
        dt, B, C = to_sequence(x_dbl[..., i, :], order, len(sizes), 1).split([r, n, n], dim=-1)
        skip, bias = (None if t is None else t[i] for t in (D, dt_bias))
        y, _ = ssd_scan_reference(u, dt, A[i], B[:, :, None], C[:, :, None], skip, bias, dt_softplus)
        parts.append(from_sequence(y.flatten(2), order, sizes, 1))
    return torch.stack(parts).sum(0)


def _check(
    x: Tensor, x_dbl: Tensor, dt_bias: Tensor | None, A: Tensor, D: Tensor | None, orders: tuple[ScanOrder, ...]
) -> None:
    check_same_place({"x": x, "x_dbl": x_dbl, "dt_bias": dt_bias, "A": A, "D": D})

    def refuse(name: str, t: Tensor, want: str) -> InputError:
        return InputError(
            f"{name} has shape {tuple(t.shape)}, want {want}, given {len(orders)} orders, x {tuple(x.shape)}, x_dbl "
            f"{tuple(x_dbl.shape)}, A {tuple(A.shape)}"
        )

    check_axes(x, orders, refuse)
    d, k = x.shape[-1], len(orders)
    if k < 1 or A.dim() != 2 or A.shape[0] != k or A.shape[1] < 1 or d % A.shape[1]:
        raise refuse("A", A, f"(k, r) = ({k}, r), one row for each order, with r that divides d = {d}")
    r, lead = A.shape[1], (*x.shape[:-1], k)
    if x_dbl.shape[:-1] != lead or x_dbl.shape[-1] <= r or (x_dbl.shape[-1] - r) % 2:
        raise refuse("x_dbl", x_dbl, f"(b, *sizes, k, r + 2n) = {lead} and {r} + 2n with n ≥ 1")
    if dt_bias is not None and dt_bias.shape != A.shape:
        raise refuse("dt_bias", dt_bias, f"(k, r) = {(k, r)}")
    if D is not None and D.shape != (k, r, d // r):
        raise refuse("D", D, f"(k, r, d/r) = {(k, r, d // r)}")
