"""The depthwise 3×3×3 convolution of volumes.

PyTorch's own is quick forwards on a CPU, but its backward takes 20 times as long. There the gradients are sums of 2-d
ones: the output's plane z is a sum of 2-d convolutions of the planes z-1, z and z+1, for which compiled kernels exist.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba.functional.cpu import needs_gradients, standard_gradients, takes_kernels
from vmamba.kernels.native import depthwise as kernels
from vmamba.kernels.native import library


def depthwise3x3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve each channel with a 3×3×3 kernel of its own, stride 1 and zeros around.

    Args:
        x: ``(b, z, h, w, c)``.
        weight: ``(c, 1, 3, 3, 3)``.
        bias: ``(c)`` or None.

    Returns:
        ``(b, z, h, w, c)`` in the dtype of ``x``, or autocast's.
    """
    fits = x.dim() == 5 and weight.shape == (x.shape[4], 1, 3, 3, 3)  # else F.conv3d says what is wrong
    if not fits or not takes_kernels(x, weight, bias) or not needs_gradients(x, weight, bias) or library.obstacle():
        return _standard(x, weight, bias)
    result: Tensor = _Depthwise.apply(x, weight, bias)
    return result


def _standard(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = F.conv3d(x.permute(0, 4, 1, 2, 3), weight, bias, padding=1, groups=weight.shape[0])
    return y.permute(0, 2, 3, 4, 1)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        return _standard(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        needed = ctx.needs_input_grad
        if torch.is_grad_enabled() or not takes_kernels(dy):
            return standard_gradients(_standard, (x, weight, bias), needed, dy)
        found = _gradients(x.contiguous(), weight, dy.contiguous())
        return tuple(gradient if need else None for gradient, need in zip(found, needed, strict=True))


def _gradients(x: Tensor, weight: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias."""
    depth, channels = x.shape[1], x.shape[4]
    dx, part = torch.zeros_like(x), torch.empty_like(x)
    sums = x.new_empty(3, x.shape[0], kernels.TAPS + 1, channels)
    for tap, (first, last) in enumerate(((0, depth - 1), (0, depth), (1, depth))):
        # This slice of the weight takes input planes first … last - 1 to output planes that lie 1 - tap further.
        inside, outside = slice(first, last), slice(first + 1 - tap, last + 1 - tap)
        if first == last:
            sums[tap].zero_()
            continue
        for image in range(x.shape[0]):
            kernels.backward(
                x[image, inside], kernels.taps_of(weight[:, :, tap]), None, False, dy[image, outside],
                part[image, inside], sums[tap, image], x.new_empty,
            )  # fmt: skip
        dx[:, inside] += part[:, inside]
    total = sums.sum(1)  # (3, 10, c)
    d_weight = total[:, : kernels.TAPS].permute(2, 0, 1).reshape(weight.shape)
    return dx, d_weight, total[1, kernels.TAPS]
