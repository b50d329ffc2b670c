"""What the three compiled scans share: one forward and one backward pass by `vmamba.scan.selective_scan`.

The real ones have no gradients of their own: an autograd function calls ``fwd`` in its forward and ``bwd`` in its
backward. So these compute without a graph, and ``bwd`` makes one for itself. It computes forward once more, as the real
kernel does too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vmamba import _torch
from vmamba.errors import InputError
from vmamba.integrations.mamba_ssm.matrices import grouped, refuse_complex
from vmamba.scan import selective_scan

#: The real kernels keep a state each so many places.
PLACES_A_STATE = 2048


class Inputs(NamedTuple):
    """The tensors of one scan; ``d`` channels in ``g`` groups, ``n`` states, ``l`` places.

    Attributes:
        u, z: ``(b, d, l)``; z may be None.
        delta: ``(b, d, l)``, or ``(b, e, l)`` where each of e steps serves d / e neighbouring channels.
        A: ``(d, n)``.
        B, C: ``(b, g, n, l)``, ``(b, n, l)``, or ``(d, n)`` where they do not vary with the input.
        D: ``(d,)`` or None.
        delta_bias: as the channels of delta, or None.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None


def forward(inputs: Inputs, softplus: bool) -> tuple[Tensor, Tensor]:
    """Return ``y (b, d, l)`` before the gate, in float32 (float64 for float64 u), and ``x`` as the kernels keep it.

    ``x (b, d, ⌈l/2048⌉, 2n)`` is zero but for the last state, in ``x[:, :, -1, 1::2]``: what the real kernel keeps
    besides is for its own backward pass.
    """
    with torch.no_grad(), _torch.without_autocast(inputs.u.device.type):
        u, delta, A, B, C, D, _, delta_bias = _ready(inputs)
        y, last = selective_scan(u, delta, A, B, C, D, delta_bias, softplus, return_last_state=True)
        b, channels, length = u.shape
        x = last.new_zeros(b, channels, -(-length // PLACES_A_STATE), 2 * A.shape[1])
        x[:, :, -1, 1::2] = last
    return y, x


def gated(y: Tensor, z: Tensor) -> Tensor:
    """Return ``y · silu(z)`` in z's dtype."""
    with torch.no_grad():
        return (y * torch.nn.functional.silu(z.to(y.dtype))).to(z.dtype)


def backward(inputs: Inputs, dout: Tensor, softplus: bool) -> tuple[list[Tensor | None], Tensor]:
    """The gradients of u, delta, A, B, C, D, delta_bias and z, each in its input's dtype, and the output that was run.

    Args:
        inputs: as in forward.
        dout: gradient ``(b, d, l)`` of the output, behind the gate where there is z.
        softplus: as in forward.
    """
    if dout.shape != inputs.u.shape:
        raise InputError(f"dout has shape {tuple(dout.shape)}, want u's shape {tuple(inputs.u.shape)}")
    nowhere = InputError(
        "bwd was called where autograd is off (in torch.inference_mode or an operator of torch.library); call it in "
        "the backward of a torch.autograd.Function"
    )
    if torch.is_inference_mode_enabled():
        raise nowhere
    leaves = Inputs(*(None if t is None else t.detach().requires_grad_() for t in inputs))  # type: ignore[arg-type]
    with torch.enable_grad(), _torch.without_autocast(dout.device.type):
        u, delta, A, B, C, D, z, delta_bias = _ready(leaves)
        y = selective_scan(u, delta, A, B, C, D, delta_bias, softplus, z=z)
    if not y.requires_grad:
        raise nowhere
    order = (leaves.u, leaves.delta, leaves.A, leaves.B, leaves.C, leaves.D, leaves.delta_bias, leaves.z)
    found = iter(torch.autograd.grad(y, [t for t in order if t is not None], dout.to(y.dtype)))
    return [None if t is None else next(found) for t in order], y.detach()


def _ready(t: Inputs) -> Inputs:
    """The inputs in the shapes that `selective_scan` takes: one step for each channel, B and C for each place."""
    refuse_complex(t._asdict())
    B, C = grouped(t.u, t.A, t.B, t.C)
    channels, delta, delta_bias = t.u.shape[1], t.delta, t.delta_bias
    if delta.dim() == 3 and 0 < delta.shape[1] < channels and channels % delta.shape[1] == 0:
        serves = channels // delta.shape[1]
        if delta_bias is not None and delta_bias.shape == delta.shape[1:2]:
            delta_bias = delta_bias.repeat_interleave(serves)
        delta = delta.repeat_interleave(serves, 1)
    return Inputs(t.u, delta, t.A, B, C, t.D, t.z, delta_bias)
