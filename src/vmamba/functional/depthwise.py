"""The depthwise convolution before the scan with its SiLU, as one operation.

In pieces, autograd keeps the convolution's input and, for SiLU's gradient, its output. Here backward computes the
convolution again, nine products for each element of a map that it reads anyway, and only the input is kept.
"""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba.functional.eager import plain_eager_cpu, standard_gradients
from vmamba.kernels.native import library as native
from vmamba.kernels.native.library import Step, TensorArg

_TAPS = 9


class _Inputs(ctypes.Structure):  # vmamba::DepthwiseInputs
    _fields_ = (
        ("batch", ctypes.c_int64),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("silu", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("x", TensorArg),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    )


class _ForwardArgs(ctypes.Structure):
    _fields_ = (("inputs", _Inputs), ("y", ctypes.c_void_p))


class _BackwardArgs(ctypes.Structure):
    _fields_ = (
        ("inputs", _Inputs),
        ("dy", TensorArg),
        ("dx", ctypes.c_void_p),
        ("image_sums", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("task_channels", ctypes.c_int64),
    )


def depthwise3x3(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """Convolve each channel with a 3×3 kernel of its own, stride 1 and zeros around; then SiLU if asked for.

    Ordinary float32 calls on a CPU run the compiled kernels, if they are there; all others standard operations.

    Args:
        x: ``(b, h, w, c)``.
        weight: ``(c, 1, 3, 3)``.
        bias: ``(c)`` or None.
        silu: whether SiLU follows.

    Returns:
        ``(b, h, w, c)`` in the dtype of ``x``, or autocast's.
    """
    fits = x.dim() == 4 and weight.shape == (x.shape[3], 1, 3, 3)  # else F.conv2d says what is wrong
    if not fits or not plain_eager_cpu(x, weight, bias) or native.obstacle() is not None:
        return _standard(x, weight, bias, silu)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        result: Tensor = _Depthwise.apply(x, weight, bias, silu)
        return result
    return _forward(x, weight, bias, silu)


def _standard(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    # The permutations are views, so oneDNN and cuDNN see torch.channels_last memory.
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=weight.shape[0]).permute(0, 2, 3, 1)
    return F.silu(y) if silu else y


def _with_dense_channels(t: Tensor) -> Tensor:
    return t if t.stride(3) == 1 else t.contiguous()


def _inputs(x: Tensor, taps: Tensor, bias: Tensor | None, silu: bool) -> _Inputs:
    """What both kernels take; the tensors, whose channels are dense, must outlive the call."""
    return _Inputs(
        *x.shape,
        silu,
        torch.get_num_threads(),
        native.tensor_arg(x),
        taps.data_ptr(),
        None if bias is None else bias.data_ptr(),
    )


def taps_of(weight: Tensor) -> Tensor:
    """The weight ``(c, 1, 3, 3)`` as the kernels take it, ``(9, c)``."""
    return weight.reshape(-1, _TAPS).t().contiguous()


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    y = torch.empty(x.shape, dtype=x.dtype)
    bias = None if bias is None else bias.contiguous()
    native.run(forward_step(_with_dense_channels(x), taps_of(weight), bias, silu, y))
    return y


def forward_step(x: Tensor, taps: Tensor, bias: Tensor | None, silu: bool, y: Tensor) -> Step:
    """The forward kernel: `depthwise3x3` without gradients.

    Args:
        x: ``(b, h, w, c)``, dense over ``c``, not empty; float32, bfloat16 or float16.
        taps: the weight, ``(9, c)``, float32, see `taps_of`.
        bias: ``(c)``, dense, float32, or None.
        silu: whether SiLU follows.
        y: the result, ``(b, h, w, c)``, contiguous, in the dtype of ``x``. Sums are float32.
    """
    args = _ForwardArgs(_inputs(x, taps, bias, silu), y.data_ptr())
    return Step("depthwise_forward", args, (x, taps, bias, y))


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
        if torch.is_grad_enabled() or not plain_eager_cpu(dy):
            standard = partial(_standard, silu=ctx.silu)
            return *standard_gradients(standard, (x, weight, bias), needed, dy), None
        x, dy, taps = _with_dense_channels(x), _with_dense_channels(dy), taps_of(weight)
        bias = None if bias is None else bias.contiguous()
        batch, _, width, channels = x.shape
        threads = torch.get_num_threads()
        # Two cache lines a pixel at once, or one where there would be little to share among the threads.
        task_channels = 32 if batch * channels >= 128 * threads else 16
        dx = torch.empty(x.shape, dtype=x.dtype)
        image_sums = torch.empty(batch, _TAPS + 1, channels)
        sums = torch.empty(_TAPS + 1, channels)
        workspace = torch.empty(threads * 3 * width * task_channels)
        args = _BackwardArgs(
            _inputs(x, taps, bias, ctx.silu),
            native.tensor_arg(dy),
            dx.data_ptr(),
            image_sums.data_ptr(),
            sums.data_ptr(),
            workspace.data_ptr(),
            task_channels,
        )
        native.call("depthwise_backward", args)
        d_weight = sums[:_TAPS].t().reshape(weight.shape)
        found = (dx, d_weight, sums[_TAPS])
        return *(gradient if need else None for gradient, need in zip(found, needed, strict=True)), None
