"""The Triton kernels of the depthwise convolution as functions, and as an operator for compiled graphs.

Without the operator `torch.compile` would call cuDNN's convolution and put SiLU into a kernel of its own, which reads
the map once more. Eager calls take the functions: an operator's way through the dispatcher takes as long as the kernel
does on a small map.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from math import prod
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from vmamba import _torch
from vmamba.errors import BackendError, InputError
from vmamba.flops import Work, register
from vmamba.kernels import triton
from vmamba.kernels.gradients import no_second_derivatives


@functools.cache
def kernels(name: str) -> ModuleType:
    """A module of `vmamba.kernels.triton.layers`, which imports Triton: not before it is needed."""
    return importlib.import_module(f"vmamba.kernels.triton.layers.{name}")


def workspace(like: Tensor) -> Callable[[int], Tensor]:
    """What makes float32 memory beside ``like``."""
    return lambda elements: like.new_empty(elements, dtype=torch.float32)


def depthwise_forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """``(b, h, w, c)``, contiguous, in the dtype of ``x``; the weight may have another. Sums are float32."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    if y.numel():
        with torch.cuda.device_of(x):
            kernels("depthwise").forward(x, weight, bias, silu, y)
    return y


def depthwise_gradients(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, of_x: bool, of_parameters: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias, empty where they are not wanted or there is no bias."""
    dx, d_weight, d_bias = _gradients_of(x, weight, bias, of_x, of_parameters)
    if not x.numel():
        return dx, d_weight.zero_(), d_bias.zero_()
    with torch.cuda.device_of(x):
        kernels("depthwise").backward(
            x,
            weight,
            bias,
            silu,
            dy,
            dx if of_x else None,
            d_weight if of_parameters else None,
            d_bias if of_parameters and bias is not None else None,
            workspace(x),
        )
    return dx, d_weight, d_bias


def _gradients_of(
    x: Tensor, weight: Tensor, bias: Tensor | None, of_x: bool, of_parameters: bool
) -> tuple[Tensor, Tensor, Tensor]:
    def memory(t: Tensor | None, wanted: bool) -> Tensor:
        if t is None or not wanted:
            return x.new_empty(0)
        return torch.empty_like(t, memory_format=torch.contiguous_format)

    return memory(x, of_x), memory(weight, of_parameters), memory(bias, of_parameters)


@torch.library.custom_op("vmamba::depthwise3x3", mutates_args=())
def depthwise3x3(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """See `depthwise_forward`."""
    _check(x, weight, bias)
    return depthwise_forward(x, weight, bias, silu)


@depthwise3x3.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("vmamba::depthwise3x3_backward", mutates_args=())
def depthwise3x3_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, of_x: bool, of_parameters: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See `depthwise_gradients`."""
    _check(x, weight, bias)
    return depthwise_gradients(dy, x, weight, bias, silu, of_x, of_parameters)


@depthwise3x3_backward.register_fake
def _(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, of_x: bool, of_parameters: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients_of(x, weight, bias, of_x, of_parameters)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """For whoever calls the operator by hand: every address must be one."""
    c = x.shape[-1]
    if x.dim() != 4 or weight.shape != (c, 1, 3, 3) or (bias is not None and bias.shape != (c,)):
        shapes = ", ".join(str(tuple(t.shape)) for t in (x, weight, bias) if t is not None)
        raise InputError(f"the kernel takes x (b, h, w, c), weight (c, 1, 3, 3), bias (c) or None, given {shapes}")
    for t in (x, weight, bias):
        if t is None:
            continue
        if t.dtype not in triton.DTYPES:
            raise BackendError(f"the depthwise kernel takes 16- and 32-bit tensors, given {t.dtype}")
        if t.device != x.device or t.layout != torch.strided or not _torch.has_memory(t):
            raise InputError(f"the depthwise kernel takes dense tensors on one device, given {t.layout} on {t.device}")


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.silu = inputs[3]


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
    found = depthwise3x3_backward(dy, *ctx.saved_tensors, ctx.silu, of_x, of_weight or of_bias)
    return *(g if need else None for g, need in zip(found, (of_x, of_weight, of_bias), strict=True)), None


depthwise3x3.register_autograd(_backward, setup_context=_keep)
no_second_derivatives(
    depthwise3x3_backward,
    "the depthwise kernel has no second derivatives in compiled graphs; do not compile this part",
)


def _convolution(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> Work:
    return Work(prod(x) * prod(weight[2:]))


def _of_gradients(
    dy: Sequence[int], x: Sequence[int], weight: Sequence[int], bias: Any, silu: bool, of_x: bool, of_parameters: bool
) -> Work:
    return _convolution(x, weight).times(of_x + of_parameters)


register(torch.ops.vmamba.depthwise3x3, _convolution)
register(torch.ops.vmamba.depthwise3x3_backward, _of_gradients)
