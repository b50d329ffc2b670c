"""The selective scan of a map in any number of directions, each in an order of its own: `ss2d_scan` for every order.

Where the compiled CPU kernels run, they follow the orders by tables of places, in one pass over the map. Any other
backend reads the sequences out, scans them, and puts them back. Orders that are one of `ss2d_scan`'s modes go there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vmamba.errors import InputError
from vmamba.scan import dispatch
from vmamba.scan.any_order.named import MODE_ORDERS
from vmamba.scan.any_order.orders import AxisOrder, ScanOrder, check_axes, from_sequence, places_of_all, to_sequence
from vmamba.scan.reference import selective_scan_reference
from vmamba.scan.selective_scan import check_same_place, savable
from vmamba.scan.ss2d_scan import check_recurrence, ss2d_scan, step_projection

#: Orders of 2-d maps -> the scan mode that they are.
_MODE_OF: dict[tuple[ScanOrder, ...], str] = {orders: mode for mode, orders in MODE_ORDERS.items()}


def order_scan(
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    orders: Sequence[ScanOrder],
    delta_softplus: bool = True,
    *,
    backend: str | None = None,
) -> Tensor:
    """Scan a map once in each of the orders, and sum what they give in place.

    Args:
        x: input map ``(b, *sizes, d)``; float32, bfloat16, float16, or float64 where the backend has it.
        x_dbl: per place and direction the low-rank step, B and C, ``(b, *sizes, k, r + 2n)``.
        dt_weight: step projection ``(k, d, r)``.
        dt_bias: step bias ``(k, d)`` or None.
        A: decay ``(k·d, n)``.
        D: skip ``(k·d,)`` or None.
        orders: one for each of the ``k`` directions.
        delta_softplus: whether the step goes through softplus.
        backend: as in `selective_scan`.

    Returns:
        ``y (b, *sizes, d)``, float32 (float64 for float64 ``x``).

    Raises:
        InputError: shapes, dtypes or devices that do not fit, or a map of another size than an order's.
        BackendError: an unknown backend, or a named one that cannot run this call.
    """
    orders = tuple(orders)
    mode = _MODE_OF.get(orders) if all(isinstance(order, AxisOrder) for order in orders) else None
    if mode is not None and x.dim() == 4:
        return ss2d_scan(x, x_dbl, dt_weight, dt_bias, A, D, mode, delta_softplus, backend=backend)
    _check(x, x_dbl, dt_weight, dt_bias, A, D, orders)
    x, x_dbl, dt_weight, dt_bias, A, D = savable(x, x_dbl, dt_weight, dt_bias, A, D)  # type: ignore[assignment]
    sizes = x.shape[1:-1]
    # The kernels know maps of two axes: one line of all places.
    line, line_dbl = x.flatten(1, -2)[:, None], x_dbl.flatten(1, -3)[:, None]
    run = dispatch.operators(backend, "ss2d_scan", line, A, x_dbl, dt_weight, dt_bias, D)
    fused = getattr(run, "order_scan", None)
    if fused is None or not run.has_places(x.device.type):
        return _composed(run.selective_scan, x, x_dbl, dt_weight, dt_bias, A, D, orders, delta_softplus)
    places = places_of_all(orders, sizes, x.device)
    y: Tensor = fused(line, line_dbl, dt_weight, dt_bias, A, D, places, delta_softplus)
    return y.view(x.shape)


def order_scan_reference(
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    orders: Sequence[ScanOrder],
    delta_softplus: bool = True,
) -> Tensor:
    """The oracle of `order_scan`: sequences read out, the recurrence step by step, and what it gives put back."""
    orders = tuple(orders)
    return _composed(selective_scan_reference, x, x_dbl, dt_weight, dt_bias, A, D, orders, delta_softplus)


def _composed(
    selective_scan: Callable[..., Tensor],
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    orders: tuple[ScanOrder, ...],
    delta_softplus: bool,
) -> Tensor:
    """`order_scan` as sequences read out, step projection, a backend's ``selective_scan``, and sequences put back."""
    sizes = x.shape[1:-1]
    ndim, (k, d, r), n = len(sizes), dt_weight.shape, A.shape[1]
    image, maps = x.movedim(-1, 1), x_dbl.movedim((-2, -1), (1, 2))  # (b, d, *sizes), (b, k, r + 2n, *sizes)
    u = torch.stack([to_sequence(image, order, ndim) for order in orders], dim=1)  # (b, k, d, l)
    rows = torch.stack([to_sequence(maps[:, i], order, ndim) for i, order in enumerate(orders)], dim=1)
    low_rank, B, C = rows.split([r, n, n], dim=2)
    delta = step_projection(dt_weight, low_rank, x.dtype)  # (b, k, d, l)
    bias = None if dt_bias is None else dt_bias.flatten()
    y = selective_scan(u.flatten(1, 2), delta.flatten(1, 2), A, B, C, D, bias, delta_softplus).unflatten(1, (k, d))
    merged = from_sequence(y[:, 0], orders[0], sizes)
    for i, order in enumerate(orders[1:], start=1):
        merged = merged + from_sequence(y[:, i], order, sizes)
    return merged.movedim(1, -1)


def _check(
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    orders: tuple[ScanOrder, ...],
) -> None:
    check_same_place({"x": x, "x_dbl": x_dbl, "dt_weight": dt_weight, "dt_bias": dt_bias, "A": A, "D": D})
    k = len(orders)

    def refuse(name: str, t: Tensor, want: str) -> InputError:
        return InputError(
            f"{name} has shape {tuple(t.shape)}, want {want}, given {k} orders, x {tuple(x.shape)}, x_dbl "
            f"{tuple(x_dbl.shape)}, dt_weight {tuple(dt_weight.shape)}, A {tuple(A.shape)}"
        )

    check_axes(x, orders, refuse)
    d = x.shape[-1]
    if k < 1 or dt_weight.dim() != 3 or dt_weight.shape[:2] != (k, d):
        raise refuse("dt_weight", dt_weight, f"(k, d, r) = ({k}, {d}, r), one for each order")
    check_recurrence(x, x_dbl, dt_weight, dt_bias, A, D, "*sizes", refuse)
    if math.prod(x.shape[1:-1]) >= 2**31:
        raise refuse("x", x, "fewer than 2³¹ places")
