"""``vmamba::selective_scan_states``: the selective scan from a state to a state, and the gate behind it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba import _torch
from vmamba.kernels.gradients import differentiable, given
from vmamba.kernels.interface import ScanRun, record
from vmamba.scan.schema.kernels import (
    as_float,
    checked,
    dense,
    if_given,
    kernels_of,
    kernels_on,
    memory_for_states,
    memory_like,
    narrowed,
    workspace,
)
from vmamba.scan.schema.run import Scan, run


def _states_kernel(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    z: Tensor | None,
    initial: Tensor | None,
    delta_softplus: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return ``y``, the last state ``(b, k·d, n)``, and if asked to save what backward starts from.

    That are the states, and ``y`` before the gate. Parameters and states are float32; z is None where the kernels have
    no gates.
    """
    scan, detail = kernels_of(u).selective_scan, ""
    y, last = dense(u), u.new_empty(_state_shape(u, A), dtype=torch.float32)
    saved = memory_for_states(u, scan.saved_shape(u, A)) if save else None
    ungated = dense(u) if save and z is not None else None
    if y.numel():
        gate = {} if z is None else {"z": z, "ungated": ungated}
        inputs = (u, delta, A, B, C, D, delta_bias)
        detail = scan.forward(*inputs, delta_softplus, y, saved, workspace(u), initial=initial, last=last, **gate)
    record(ScanRun("oflex", "selective_scan", detail))
    return y, last, saved, ungated


def _state_shape(u: Tensor, A: Tensor) -> tuple[int, int, int]:
    return u.shape[0], u.shape[1], A.shape[1]


@torch.library.custom_op("vmamba::selective_scan_states", mutates_args=())
def _selective_scan_states(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    z: Tensor | None,
    initial: Tensor | None,
    delta_softplus: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    checked(kernels_of(u), (u, delta, B, C, *if_given(z)), (A, D, delta_bias, initial))
    y, last, *kept = _states_kernel(u, delta, A, B, C, D, delta_bias, z, initial, delta_softplus, save)
    saved, ungated = (y.new_empty(0) if t is None else t for t in kept)
    return y, last, saved, ungated


@_selective_scan_states.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    z, save = others[4], others[-1]
    shape = kernels_of(u).selective_scan.saved_shape(u, A) if save else (0,)
    ungated = dense(u) if save and z is not None else u.new_empty(0, dtype=torch.float32)
    last = u.new_empty(_state_shape(u, A), dtype=torch.float32)
    return dense(u), last, u.new_empty(shape, dtype=torch.float32), ungated


def _states_gradients(
    dy: Tensor, dlast: Tensor, saved: Tensor, ungated: Tensor | None, *arguments: Any
) -> tuple[Tensor, ...]:
    """Return the gradients of u, delta, A, B, C, D, delta_bias, z and initial, empty where the input is None."""
    *inputs, delta_softplus = arguments
    u, z, initial, gradients = inputs[0], *inputs[7:], memory_like(inputs)
    if not u.numel():
        return tuple(g.zero_() for g in gradients)
    *into, dz, dinitial = given(gradients, inputs)
    gate = {} if z is None else {"z": z, "ungated": ungated, "dz": dz}
    states = {"initial": initial, "dlast": dlast, "dinitial": dinitial}
    backward = kernels_of(u).selective_scan.backward
    backward(dy, saved, *inputs[:7], delta_softplus, into, workspace(u), **states, **gate)
    return gradients


@torch.library.custom_op("vmamba::selective_scan_states_backward", mutates_args=())
def _selective_scan_states_backward(
    dy: Tensor,
    dlast: Tensor,
    saved: Tensor,
    ungated: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    z: Tensor | None,
    initial: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `_states_gradients`."""
    parameters = (A, D, delta_bias, initial, saved, ungated, dlast)
    checked(kernels_of(u), (u, delta, B, C, dy, *if_given(z)), parameters)
    inputs = (u, delta, A, B, C, D, delta_bias, z, initial)
    return _states_gradients(dy, dlast, saved, ungated, *inputs, delta_softplus)  # type: ignore[return-value]


@_selective_scan_states_backward.register_fake
def _(dy: Tensor, dlast: Tensor, saved: Tensor, ungated: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return memory_like(inputs[:9])


_SCAN = Scan(_states_kernel, _selective_scan_states, _states_gradients, _selective_scan_states_backward, outputs=2)
differentiable("selective_scan_states", _selective_scan_states, _selective_scan_states_backward, 9, outputs=2)


def selective_scan_states(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    z: Tensor | None,
    initial_state: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """`selective_scan` with a gate and from a state; also the state that it ends with."""
    delta, B, C = (narrowed(t) for t in (delta, B, C))
    fused = None if z is None or not _has_gates(u.device.type) else narrowed(z)
    tensors = (u, delta, A.float(), B, C, as_float(D), as_float(delta_bias), fused, as_float(initial_state))
    y, last = run(_SCAN, tensors, delta_softplus)
    return y if z is None or fused is not None else y * F.silu(z.float()), last


@_torch.constant_in_graphs
def _has_gates(device: str) -> bool:
    """Whether the kernels of a device type have gates."""
    return getattr(kernels_on(device).selective_scan, "GATES", False)
