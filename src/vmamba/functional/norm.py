"""Layer norm over channels with the conversion of its result: the scan gives float32, the layers after it 16 bits.

On a GPU one kernel reads the one and writes the other. Where `torch.compile` traces, the standard operations stay: it
joins them by itself, with the gate or the activation after them besides, and an operator would keep it from that.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba.functional import gpu
from vmamba.functional.cpu import needs_gradients, standard_gradients
from vmamba.functional.operators import kernels, workspace

_MOST_CHANNELS = 4096  # of the kernel: a row must fit into registers


def layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Layer norm (arXiv 1607.06450) over the last axes, computed in the dtype of ``x``, or autocast's for norms.

    Args:
        x: ``(…, c)``.
        shape: ``(c,)``, or more axes, which only standard operations take.
        weight, bias: ``(c)`` or None, of a dtype that may be narrower than that of ``x``.
        eps: added to the variance.
        dtype: what the result is converted to; None for what it was computed in.

    Returns:
        ``(…, c)``.
    """
    if (
        gpu.takes_kernels(x, weight, bias)
        and not torch.compiler.is_compiling()
        and len(shape) == 1
        and x.shape[-1:] == tuple(shape)  # else F.layer_norm says what is wrong
        and shape[0] <= _MOST_CHANNELS
        and (dtype is None or dtype in gpu.DTYPES)
    ):
        made = dtype or (x.dtype if gpu.autocast_dtype(x) is None else torch.float32)
        if needs_gradients(x, weight, bias):
            y: Tensor = _LayerNorm.apply(x, weight, bias, eps, made)
            return y
        return _forward(x.contiguous(), weight, bias, eps, made, None, None)
    y = _standard(x, shape, weight, bias, eps)
    return y if dtype is None else y.to(dtype)


def _standard(x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    weight = None if weight is None else weight.to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    return F.layer_norm(x, shape, weight, bias, eps)


def _forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    mean: Tensor | None,
    rstd: Tensor | None,
) -> Tensor:
    y = torch.empty_like(x, dtype=dtype)
    with torch.cuda.device_of(x):
        kernels("norm").forward(x, weight, bias, eps, y, mean, rstd)
    return y


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype
    ) -> Tensor:
        x = x.contiguous()
        mean, rstd = workspace(x)(x.numel() // x.shape[-1]), workspace(x)(x.numel() // x.shape[-1])
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.eps, ctx.dtype = eps, dtype
        return _forward(x, weight, bias, eps, dtype, mean, rstd)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled() or not gpu.takes_kernels(dy):
            standard = partial(_in_dtype, eps=ctx.eps, dtype=ctx.dtype)
            return *standard_gradients(standard, (x, weight, bias), needed, dy), None, None
        dx = torch.empty_like(x)
        d_weight, d_bias = (
            torch.empty_like(t, memory_format=torch.contiguous_format) if need else None
            for t, need in zip((weight, bias), needed[1:], strict=True)
        )
        with torch.cuda.device_of(x):
            kernels("norm").backward(dy.contiguous(), x, weight, mean, rstd, dx, d_weight, d_bias, workspace(x))
        return dx if needed[0] else None, d_weight, d_bias, None, None


def _in_dtype(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
    return _standard(x.to(torch.promote_types(x.dtype, dtype)), x.shape[-1:], weight, bias, eps).to(dtype)
