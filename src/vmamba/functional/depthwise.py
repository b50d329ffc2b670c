"""The depthwise convolution before the scan with its SiLU, as one operation.

In pieces, autograd keeps the convolution's input and, for SiLU's gradient, its output. Here backward computes the
convolution again, nine products for each element of a map that it reads anyway, and only the input is kept.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba.functional import gpu, operators
from vmamba.functional.cpu import needs_gradients, standard_gradients, takes_kernels
from vmamba.kernels.native import depthwise as kernels
from vmamba.kernels.native import library


def depthwise3x3(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """Convolve each channel with a 3×3 kernel of its own, stride 1 and zeros around; then SiLU if asked for.

    Ordinary float32 calls on a CPU run the compiled kernels, if they are there; 16- and 32-bit ones on a GPU those in
    Triton, as one operator in compiled graphs too; all others standard operations.

    Args:
        x: ``(b, h, w, c)``.
        weight: ``(c, 1, 3, 3)``.
        bias: ``(c)`` or None.
        silu: whether SiLU follows.

    Returns:
        ``(b, h, w, c)`` in the dtype of ``x``, or autocast's.
    """
    fits = x.dim() == 4 and weight.shape == (x.shape[3], 1, 3, 3)  # else F.conv2d says what is wrong
    if fits and gpu.takes_kernels(x, weight, bias):
        cast = gpu.autocast_dtype(x)
        if cast is not None or (x.dtype == weight.dtype and (bias is None or x.dtype == bias.dtype)):
            return _on_gpu(x if cast is None else x.to(cast), weight, bias, silu)
    if not fits or not takes_kernels(x, weight, bias) or library.obstacle() is not None:
        return _standard(x, weight, bias, silu)
    if needs_gradients(x, weight, bias):
        result: Tensor = _Depthwise.apply(x, weight, bias, silu)
        return result
    return _forward(x, weight, bias, silu)


def _on_gpu(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    if torch.compiler.is_compiling():
        y: Tensor = operators.depthwise3x3(x, weight, bias, silu)
    elif needs_gradients(x, weight, bias):
        y = _GpuDepthwise.apply(x, weight, bias, silu)
    else:
        y = operators.depthwise_forward(x, weight, bias, silu)
    return y


def _standard(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    # The permutations are views, so oneDNN and cuDNN see torch.channels_last memory.
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=weight.shape[0]).permute(0, 2, 3, 1)
    return F.silu(y) if silu else y


def _with_dense_channels(t: Tensor) -> Tensor:
    return t if t.stride(3) == 1 else t.contiguous()


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    y = x.new_empty(x.shape)
    bias = None if bias is None else bias.contiguous()
    library.run(
        kernels.forward_call(_with_dense_channels(x), kernels.taps_of(weight), bias, "silu" if silu else "none", y)
    )
    return y


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.silu = silu
        return _forward(x, weight, bias, silu)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled() or not takes_kernels(dy):
            standard = partial(_standard, silu=ctx.silu)
            return *standard_gradients(standard, (x, weight, bias), needed, dy), None
        dx, sums = x.new_empty(x.shape), x.new_empty(kernels.TAPS + 1, x.shape[3])
        kernels.backward(
            _with_dense_channels(x),
            kernels.taps_of(weight),
            None if bias is None else bias.contiguous(),
            ctx.silu,
            _with_dense_channels(dy),
            dx,
            sums,
            x.new_empty,
        )
        found = (dx, sums[: kernels.TAPS].t().reshape(weight.shape), sums[kernels.TAPS])
        return *(gradient if need else None for gradient, need in zip(found, needed, strict=True)), None


class _GpuDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.silu = silu
        return operators.depthwise_forward(x, weight, bias, silu)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled() or not gpu.takes_kernels(dy):
            return *standard_gradients(partial(_in_dtype_of_x, silu=ctx.silu), (x, weight, bias), needed, dy), None
        found = operators.depthwise_gradients(dy, x, weight, bias, ctx.silu, needed[0], needed[1] or needed[2])
        return *(gradient if need else None for gradient, need in zip(found, needed, strict=True)), None


def _in_dtype_of_x(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    return _standard(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), silu)
