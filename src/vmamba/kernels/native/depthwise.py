"""The compiled kernels of the depthwise 3×3 convolution with what follows it (``csrc/layers/depthwise.cpp``)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

from vmamba.kernels.native import library
from vmamba.kernels.native.library import KernelCall
from vmamba.kernels.native.structs import ACTIVATION_CODES, Activation, pointer, struct, tensor

TAPS = 9


def forward_call(x: Tensor, taps: Tensor, bias: Tensor | None, activation: Activation, y: Tensor) -> KernelCall:
    """Prepare the forward kernel; not for empty maps.

    Args:
        x: ``(b, h, w, c)``, dense over ``c``; float32, bfloat16 or float16.
        taps: the weight, ``(9, c)``, float32, see `taps_of`.
        bias: ``(c)``, dense, float32, or None.
        activation: what follows.
        y: the result, ``(b, h, w, c)``, contiguous, in the dtype of ``x``. Sums are float32.
    """
    args = struct("DepthwiseForwardArgs", in_=_inputs(x, taps, bias, activation), y=y.data_ptr())
    return KernelCall("depthwise_forward", args, (x, taps, bias, y))


def backward(
    x: Tensor,
    taps: Tensor,
    bias: Tensor | None,
    silu: bool,
    dy: Tensor,
    dx: Tensor,
    sums: Tensor,
    workspace: Callable[[int], Tensor],
) -> None:
    """Fill the gradients; the first arguments as `forward_call`'s, ``x`` in float32.

    Args:
        silu: whether SiLU follows; else nothing does.
        dy: ``(b, h, w, c)``, dense over ``c``, float32.
        dx: ``(b, h, w, c)``, contiguous, float32.
        sums: ``(10, c)``, contiguous, float32: the gradients of the taps, then that of the bias.
        workspace: makes a float32 workspace of so many elements.
    """
    batch, _, width, channels = x.shape
    threads = torch.get_num_threads()
    # Two cache lines a pixel at once, or one where there would be little to share among the threads.
    task_channels = 32 if batch * channels >= 128 * threads else 16
    image_sums = workspace(batch * (TAPS + 1) * channels)
    memory = workspace(threads * 3 * width * task_channels)
    args = struct(
        "DepthwiseBackwardArgs",
        in_=_inputs(x, taps, bias, "silu" if silu else "none"),
        dy=tensor(dy),
        dx=dx.data_ptr(),
        image_sums=image_sums.data_ptr(),
        sums=sums.data_ptr(),
        workspace=memory.data_ptr(),
        task_channels=task_channels,
    )
    library.call("depthwise_backward", args)


def taps_of(weight: Tensor) -> Tensor:
    """The weight ``(c, 1, 3, 3)`` as the kernels take it, ``(9, c)``."""
    return weight.reshape(-1, TAPS).t().contiguous()


def _inputs(x: Tensor, taps: Tensor, bias: Tensor | None, activation: Activation) -> ctypes.Structure:
    batch, height, width, channels = x.shape
    return struct(
        "DepthwiseInputs",
        batch=batch,
        height=height,
        width=width,
        channels=channels,
        activation=ACTIVATION_CODES[activation],
        threads=torch.get_num_threads(),
        x=tensor(x),
        weight=taps.data_ptr(),
        bias=pointer(bias),
    )
