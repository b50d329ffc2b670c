"""``vmamba::order_scan``: the 2-d scan's kernels, told by a table which place each direction reads next."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vmamba import _torch
from vmamba.kernels.gradients import differentiable
from vmamba.scan.schema.kernels import (
    as_float,
    checked,
    checked_places,
    dense,
    kernels_of,
    kernels_on,
    memory_like,
    narrowed,
)
from vmamba.scan.schema.run import Scan, run
from vmamba.scan.schema.ss2d_scan import ss2d_scan_gradients, ss2d_scan_kernel


@torch.library.custom_op("vmamba::order_scan", mutates_args=())
def _order_scan(
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    places: Tensor,
    delta_softplus: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    checked(kernels_of(x), (x, x_dbl), (dt_weight, dt_bias, A, D))
    places = checked_places(places, dt_weight.shape[0], x.shape[1:3], x.device)
    y, saved = ss2d_scan_kernel(x, x_dbl, dt_weight, dt_bias, A, D, places, delta_softplus, save)
    return y, y.new_empty(0) if saved is None else saved


@_order_scan.register_fake
def _(
    x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A: Tensor, *others: Any
) -> tuple[Tensor, Tensor]:
    shape = kernels_of(x).ss2d_scan.saved_shape(x, A, dt_weight.shape[0]) if others[-1] else (0,)
    return dense(x), x.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("vmamba::order_scan_backward", mutates_args=())
def _order_scan_backward(
    dy: Tensor,
    saved: Tensor,
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    places: Tensor,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, x_dbl, dt_weight, dt_bias, A and D, empty where the input is None."""
    checked(kernels_of(x), (x, x_dbl), (dt_weight, dt_bias, A, D, saved, dy))
    inputs = (x, x_dbl, dt_weight, dt_bias, A, D)
    places = checked_places(places, dt_weight.shape[0], x.shape[1:3], x.device)
    return ss2d_scan_gradients(dy, saved, *inputs, places, delta_softplus)  # type: ignore[return-value]


@_order_scan_backward.register_fake
def _(dy: Tensor, saved: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return memory_like(inputs[:6])


_SCAN = Scan(ss2d_scan_kernel, _order_scan, ss2d_scan_gradients, _order_scan_backward)
differentiable("order_scan", _order_scan, _order_scan_backward, 6, constants=1)


def order_scan(
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    places: Tensor,
    delta_softplus: bool,
) -> Tensor:
    """See `vmamba.scan.any_order.order_scan`; the map is one line, ``(b, 1, l, d)``, the orders are a table of places.

    ``places (k, l)`` is int32 and contiguous, a permutation for each direction. Other tensors as of `ss2d_scan`.
    """
    tensors = (x, narrowed(x_dbl), dt_weight.float(), as_float(dt_bias), A.float(), as_float(D))
    return run(_SCAN, tensors, places, delta_softplus)[0]


@_torch.constant_in_graphs
def has_places(device: str) -> bool:
    """Whether the kernels of a device type follow tables of places."""
    return getattr(kernels_on(device).ss2d_scan, "PLACES", False)
