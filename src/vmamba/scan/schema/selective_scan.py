"""``vmamba::selective_scan``: its signature, shapes for tracers, gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vmamba.kernels.gradients import differentiable, given
from vmamba.kernels.interface import ScanRun, record
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


def _selective_scan_kernel(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    save: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return ``y``, and the states that backward starts from if asked to save. A, D, delta_bias: float32."""
    scan, detail = kernels_of(u).selective_scan, ""
    y = dense(u)
    saved = memory_for_states(u, scan.saved_shape(u, A)) if save else None
    if y.numel():
        detail = scan.forward(u, delta, A, B, C, D, delta_bias, delta_softplus, y, saved, workspace(u))
    record(ScanRun("oflex", "selective_scan", detail))
    return y, saved


@torch.library.custom_op("vmamba::selective_scan", mutates_args=())
def _selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    checked(kernels_of(u), (u, delta, B, C), (A, D, delta_bias))
    y, saved = _selective_scan_kernel(u, delta, A, B, C, D, delta_bias, delta_softplus, save)
    return y, y.new_empty(0) if saved is None else saved


@_selective_scan.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    shape = kernels_of(u).selective_scan.saved_shape(u, A) if others[-1] else (0,)
    return dense(u), u.new_empty(shape, dtype=torch.float32)


def _selective_scan_gradients(dy: Tensor, saved: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """Return the gradients of u, delta, A, B, C, D and delta_bias, empty where the input is None."""
    *inputs, delta_softplus = arguments
    u, gradients = inputs[0], memory_like(inputs)
    if u.numel():
        into = given(gradients, inputs)
        kernels_of(u).selective_scan.backward(dy, saved, *inputs, delta_softplus, into, workspace(u))
    else:
        gradients = tuple(g.zero_() for g in gradients)
    return gradients


@torch.library.custom_op("vmamba::selective_scan_backward", mutates_args=())
def _selective_scan_backward(
    dy: Tensor,
    saved: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `_selective_scan_gradients`."""
    checked(kernels_of(u), (u, delta, B, C, dy), (A, D, delta_bias, saved))
    return _selective_scan_gradients(dy, saved, u, delta, A, B, C, D, delta_bias, delta_softplus)  # type: ignore[return-value]


@_selective_scan_backward.register_fake
def _(dy: Tensor, saved: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return memory_like(inputs[:7])


_SCAN = Scan(_selective_scan_kernel, _selective_scan, _selective_scan_gradients, _selective_scan_backward)
differentiable("selective_scan", _selective_scan, _selective_scan_backward, 7)


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
    """See `vmamba.scan.selective_scan`. float64 tensors beside a 16- or 32-bit ``u`` are rounded to float32."""
    delta, B, C = (narrowed(t) for t in (delta, B, C))
    tensors = (u, delta, A.float(), B, C, as_float(D), as_float(delta_bias))
    return run(_SCAN, tensors, delta_softplus)[0]
