"""``vmamba::ss2d_scan``: its signature, shapes for tracers, gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vmamba.kernels.gradients import differentiable, given
from vmamba.kernels.interface import ScanRun, record
from vmamba.scan.orders import readings_of
from vmamba.scan.schema.kernels import (
    as_float,
    checked,
    dense,
    kernels_of,
    memory_for_states,
    memory_like,
    narrowed,
    workspace,
)
from vmamba.scan.schema.run import Scan, run


def ss2d_scan_kernel(
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    readings: Sequence[int] | Tensor,
    delta_softplus: bool,
    save: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return ``y``, and the states that backward starts from if asked to save. Parameters are float32."""
    scan, detail = kernels_of(x).ss2d_scan, ""
    y = dense(x)
    saved = memory_for_states(x, scan.saved_shape(x, A, *_directions(dt_weight, readings))) if save else None
    if y.numel():
        detail = scan.forward(x, x_dbl, dt_weight, dt_bias, A, D, readings, delta_softplus, y, saved, workspace(x))
    record(ScanRun("oflex", "ss2d_scan", detail))
    return y, saved


def _directions(dt_weight: Tensor, readings: Sequence[int] | Tensor) -> tuple[int, ...]:
    """How many there are, where it is not the scan modes' four."""
    return (dt_weight.shape[0],) if isinstance(readings, Tensor) else ()


@torch.library.custom_op("vmamba::ss2d_scan", mutates_args=())
def _ss2d_scan(
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    readings: Sequence[int],
    delta_softplus: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    checked(kernels_of(x), (x, x_dbl), (dt_weight, dt_bias, A, D))
    y, saved = ss2d_scan_kernel(x, x_dbl, dt_weight, dt_bias, A, D, readings, delta_softplus, save)
    return y, y.new_empty(0) if saved is None else saved


@_ss2d_scan.register_fake
def _(
    x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A: Tensor, *others: Any
) -> tuple[Tensor, Tensor]:
    shape = kernels_of(x).ss2d_scan.saved_shape(x, A) if others[-1] else (0,)
    return dense(x), x.new_empty(shape, dtype=torch.float32)


def ss2d_scan_gradients(dy: Tensor, saved: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """Return the gradients of x, x_dbl, dt_weight, dt_bias, A and D, empty where the input is None."""
    *inputs, readings, delta_softplus = arguments
    x, x_dbl = inputs[:2]
    if not x.numel():
        return tuple(g.zero_() for g in memory_like(inputs))
    gradients = memory_like(inputs, torch.float32)
    into = given(gradients, inputs)
    kernels_of(x).ss2d_scan.backward(dy.contiguous(), saved, *inputs, readings, delta_softplus, into, workspace(x))
    dx, dx_dbl, *of_parameters = gradients
    return dx.to(x.dtype), dx_dbl.to(x_dbl.dtype), *of_parameters


@torch.library.custom_op("vmamba::ss2d_scan_backward", mutates_args=())
def _ss2d_scan_backward(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `ss2d_scan_gradients`."""
    checked(kernels_of(x), (x, x_dbl), (dt_weight, dt_bias, A, D, saved, dy))
    inputs = (x, x_dbl, dt_weight, dt_bias, A, D)
    return ss2d_scan_gradients(dy, saved, *inputs, readings, delta_softplus)  # type: ignore[return-value]


@_ss2d_scan_backward.register_fake
def _(dy: Tensor, saved: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return memory_like(inputs[:6])


_SCAN = Scan(ss2d_scan_kernel, _ss2d_scan, ss2d_scan_gradients, _ss2d_scan_backward)
differentiable("ss2d_scan", _ss2d_scan, _ss2d_scan_backward, 6)


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
    """See `vmamba.scan.ss2d_scan`. Parameters, and a float64 ``x_dbl`` beside a narrower ``x``, become float32."""
    tensors = (x, narrowed(x_dbl), dt_weight.float(), as_float(dt_bias), A.float(), as_float(D))
    return run(_SCAN, tensors, readings_of(scan_mode), delta_softplus)[0]
