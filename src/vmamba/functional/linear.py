"""Products over channels: `linear`, which takes oneDNN's where they are the faster ones on a CPU.

PyTorch multiplies float32 matrices on a CPU by MKL or another BLAS, and keeps oneDNN for convolutions. At the sizes of
vision models oneDNN is the faster one (on a machine with AVX-512, between 1.0 and 1.4 times as fast as MKL for outputs
of 96 channels or more, and as fast as a channels-last 1×1 convolution or faster), both for the product and for its
input's gradient. The weight's gradient, a product over many places, is not: it stays with the BLAS.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba import _torch
from vmamba.functional.cpu import takes_kernels

_LEAST_CHANNELS = 96  # for fewer outputs the BLAS is as fast, and has less to set up


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x · weightᵀ + bias`` over the last axis, as `torch.nn.functional.linear`.

    Args:
        x: ``(…, c_in)``.
        weight: ``(c_out, c_in)``.
        bias: ``(c_out)`` or None.

    Returns:
        ``(…, c_out)`` in the dtype of ``x``, or autocast's.
    """
    if takes_kernels(x, weight, bias) and _takes(x, weight):
        result: Tensor = _Linear.apply(x, weight, bias)
        return result
    return F.linear(x, weight, bias)


def _takes(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is there and the faster one; shapes that do not fit are for `F.linear` to refuse."""
    return weight.shape[0] >= _LEAST_CHANNELS and x.shape[-1:] == weight.shape[1:] and _one_dnn()


@functools.cache
def _one_dnn() -> bool:
    # It is not documented, so make sure that it is there and right.
    try:
        x, weight, bias = (torch.ones(shape, dtype=torch.float32, device="cpu") for shape in ((2, 3), (4, 3), (4,)))
        return torch.backends.mkldnn.is_available() and bool((_torch.linear_pointwise(x, weight, bias) == 4).all())
    except (AttributeError, RuntimeError):
        return False


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _torch.linear_pointwise(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        dx, d_weight, d_bias = ctx.needs_input_grad
        flat_dy = dy.reshape(-1, weight.shape[0])
        return (
            _input_gradient(dy, weight) if dx else None,
            flat_dy.t() @ x.reshape(-1, weight.shape[1]) if d_weight else None,
            flat_dy.sum(0) if d_bias else None,
        )


def _input_gradient(dy: Tensor, weight: Tensor) -> Tensor:
    # With gradients of gradients wanted, autograd must see a product that it can differentiate.
    if torch.is_grad_enabled() or not takes_kernels(dy, weight):
        return dy @ weight
    return _torch.linear_pointwise(dy, weight.t(), None)
