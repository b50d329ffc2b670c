"""The feed-forward part as one operation, which keeps less for backward than its pieces do on a CPU.

In pieces, autograd keeps the input of each product and of GELU: of c channels in, c + 4c + 4c for each place. GELU's
output is cheap to compute again, in the pass over memory that its gradient takes anyway; so here c + 4c are kept.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba.functional.eager import plain_eager_cpu, standard_gradients
from vmamba.functional.linear import linear, linear_add
from vmamba.kernels.native import library as native


class _ForwardArgs(ctypes.Structure):  # vmamba::GeluForwardArgs
    _fields_ = (
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("threads", ctypes.c_int64),
    )


class _BackwardArgs(ctypes.Structure):  # vmamba::GeluBackwardArgs
    _fields_ = (
        ("x", ctypes.c_void_p),
        ("dy", ctypes.c_void_p),
        ("dx", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("threads", ctypes.c_int64),
    )


def mlp_gelu(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    residual: Tensor | None = None,
) -> Tensor:
    """``linear(gelu(linear(x, weight1, bias1)), weight2, bias2)`` with the exact GELU (arXiv 1606.08415).

    Ordinary float32 calls on a CPU run the compiled kernels, if they are there; all others standard operations.

    Args:
        x: ``(…, c_in)``.
        weight1, bias1: ``(hidden, c_in)``, and ``(hidden)`` or None.
        weight2, bias2: ``(c_out, hidden)``, and ``(c_out)`` or None.
        residual: ``(…, c_out)``, to be added, or None.

    Returns:
        ``(…, c_out)`` in the dtype of ``x``, or autocast's.
    """
    tensors = (x, weight1, bias1, weight2, bias2)
    with_kernels = plain_eager_cpu(*tensors) and native.obstacle() is None
    if with_kernels and torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        result: Tensor = _MlpGelu.apply(*tensors)
        return result if residual is None else residual + result
    h = linear(x, weight1, bias1)
    if with_kernels:
        h = h.contiguous()
        g = gelu(h, out=h)
    else:
        g = F.gelu(h)
    return linear(g, weight2, bias2) if residual is None else linear_add(g, weight2, bias2, residual)


class _MlpGelu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None
    ) -> Tensor:
        h = linear(x, weight1, bias1).contiguous()
        ctx.save_for_backward(x, weight1, bias1, weight2, bias2, h)
        return linear(gelu(h), weight2, bias2)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight1, bias1, weight2, bias2, h = ctx.saved_tensors
        if torch.is_grad_enabled() or not plain_eager_cpu(dy):
            return standard_gradients(_standard, (x, weight1, bias1, weight2, bias2), ctx.needs_input_grad, dy)
        needs_x, needs_weight1, needs_bias1, needs_weight2, needs_bias2 = ctx.needs_input_grad
        flat_dy = dy.reshape(-1, weight2.shape[0])
        dx = d_weight1 = d_bias1 = None
        if needs_x or needs_weight1 or needs_bias1:
            dh = linear(dy, weight2.t()).contiguous()  # of GELU's output; becomes its input's in place
            g = gelu_backward(h, dh)
            flat_dh = dh.view(-1, weight1.shape[0])
            dx = linear(dh, weight1.t()) if needs_x else None
            d_weight1 = flat_dh.t() @ x.reshape(-1, weight1.shape[1]) if needs_weight1 else None
            d_bias1 = flat_dh.sum(0) if needs_bias1 else None
        elif needs_weight2:
            g = gelu(h)
        d_weight2 = flat_dy.t() @ g.view(-1, weight1.shape[0]) if needs_weight2 else None
        d_bias2 = flat_dy.sum(0) if needs_bias2 else None
        return dx, d_weight1, d_bias1, d_weight2, d_bias2


def _standard(x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None) -> Tensor:
    return F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2)


def gelu(x: Tensor, out: Tensor | None = None) -> Tensor:
    """The kernel: exact GELU of a contiguous float32 tensor, into ``out`` (which may be ``x``) or a new one.

    Its error is below 2.5e-7 of ``|x|``; -∞ gives 0, the limit, where PyTorch gives NaN.
    """
    y = torch.empty_like(x) if out is None else out
    native.call("gelu_forward", _ForwardArgs(x.data_ptr(), y.data_ptr(), x.numel(), torch.get_num_threads()))
    return y


def gelu_backward(x: Tensor, dy: Tensor) -> Tensor:
    """The kernel: turn ``dy`` into the gradient of ``x``, and return GELU of ``x``. Contiguous float32 tensors."""
    y = torch.empty_like(x)
    args = _BackwardArgs(x.data_ptr(), dy.data_ptr(), dy.data_ptr(), y.data_ptr(), x.numel(), torch.get_num_threads())
    native.call("gelu_backward", args)
    return y
