"""The feed-forward part as one operation, which keeps less for backward than its pieces do.

In pieces, autograd keeps the input of each product and of GELU: of c channels in, c + 4c + 4c for each place. GELU's
output is cheap to compute again, on a CPU in the pass over memory that its gradient takes anyway; so here c + 4c are
kept.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba.functional import gpu
from vmamba.functional.cpu import needs_gradients, standard_gradients, takes_kernels
from vmamba.functional.linear import linear
from vmamba.kernels.native import gelu, library


def mlp_gelu(x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None) -> Tensor:
    """``linear(gelu(linear(x, weight1, bias1)), weight2, bias2)`` with the exact GELU (arXiv 1606.08415).

    Ordinary float32 calls on a CPU run the compiled kernels, if they are there; all others standard operations, and on
    a GPU GELU once more in backward.

    Args:
        x: ``(…, c_in)``.
        weight1, bias1: ``(hidden, c_in)``, and ``(hidden)`` or None.
        weight2, bias2: ``(c_out, hidden)``, and ``(c_out)`` or None.

    Returns:
        ``(…, c_out)`` in the dtype of ``x``, or autocast's.
    """
    tensors = (x, weight1, bias1, weight2, bias2)
    if gpu.takes_kernels(*tensors) and needs_gradients(*tensors) and not torch.compiler.is_compiling():
        cast = gpu.autocast_dtype(x)
        if cast is not None:  # backward has no autocast, so that the second product gets its dtype here
            weight2, bias2 = weight2.to(cast), bias2 if bias2 is None else bias2.to(cast)
        y: Tensor = _GeluLinear.apply(F.linear(x, weight1, bias1), weight2, bias2)
        return y
    if not takes_kernels(*tensors) or library.obstacle() is not None:
        return linear(F.gelu(linear(x, weight1, bias1)), weight2, bias2)
    if needs_gradients(*tensors):
        result: Tensor = _MlpGelu.apply(*tensors)
        return result
    h = linear(x, weight1, bias1).contiguous()
    gelu.forward(h, h)
    return linear(h, weight2, bias2)


class _MlpGelu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None
    ) -> Tensor:
        h = linear(x, weight1, bias1).contiguous()
        ctx.save_for_backward(x, weight1, bias1, weight2, bias2, h)
        g = h.new_empty(h.shape)
        gelu.forward(h, g)
        return linear(g, weight2, bias2)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight1, bias1, weight2, bias2, h = ctx.saved_tensors
        if torch.is_grad_enabled() or not takes_kernels(dy):
            return standard_gradients(_standard, (x, weight1, bias1, weight2, bias2), ctx.needs_input_grad, dy)
        needs_x, needs_weight1, needs_bias1, needs_weight2, needs_bias2 = ctx.needs_input_grad
        flat_dy = dy.reshape(-1, weight2.shape[0])
        dx = d_weight1 = d_bias1 = None
        g = h.new_empty(h.shape)
        if needs_x or needs_weight1 or needs_bias1:
            dh = linear(dy, weight2.t()).contiguous()  # of GELU's output; becomes its input's in place
            gelu.backward(h, dh, g)
            flat_dh = dh.view(-1, weight1.shape[0])
            dx = linear(dh, weight1.t()) if needs_x else None
            d_weight1 = flat_dh.t() @ x.reshape(-1, weight1.shape[1]) if needs_weight1 else None
            d_bias1 = flat_dh.sum(0) if needs_bias1 else None
        elif needs_weight2:
            gelu.forward(h, g)
        d_weight2 = flat_dy.t() @ g.view(-1, weight1.shape[0]) if needs_weight2 else None
        d_bias2 = flat_dy.sum(0) if needs_bias2 else None
        return dx, d_weight1, d_bias1, d_weight2, d_bias2


class _GeluLinear(torch.autograd.Function):
    """``linear(gelu(h), weight, bias)`` that keeps h, not GELU's output."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(h, weight, bias)
        return _gelu_linear(h, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        h, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled() or not gpu.takes_kernels(dy):
            return standard_gradients(_gelu_linear, (h, weight, bias), ctx.needs_input_grad, dy)
        needs_h, needs_weight, needs_bias = ctx.needs_input_grad
        dh = d_weight = None
        flat_dy = dy.reshape(-1, weight.shape[0])
        if needs_weight:
            d_weight = flat_dy.t() @ F.gelu(h).reshape(-1, weight.shape[1])
        if needs_h:
            dh = torch.ops.aten.gelu_backward(dy @ weight, h)
        return dh, d_weight, flat_dy.sum(0) if needs_bias else None


def _gelu_linear(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(F.gelu(h), weight, bias)


def _standard(x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None) -> Tensor:
    return _gelu_linear(F.linear(x, weight1, bias1), weight2, bias2)
