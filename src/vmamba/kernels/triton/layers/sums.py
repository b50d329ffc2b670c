"""The end of a sum over places: adds the parts that programs left, in their order, into gradients of their own dtype.

Standard operations would be a sum and a conversion for each of weight and bias, and a launch takes as long as the
kernel before it does on a small map.
"""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from vmamba.kernels.triton.jit import kernel

_PARTS = 512  # at once
_BLOCK = 8  # numbers of a program: 32 bytes, the least that memory moves
_WARPS = 8


@kernel
def add(
    parts, weight, bias, count, channels,
    TAPS: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, PARTS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """``weight[c, k]`` is the sum of ``parts[:, k, c]`` for k below TAPS, ``bias[c]`` that of ``parts[:, TAPS, c]``."""
    number = tl.program_id(0) * BC + tl.arange(0, BC)
    numbers = (TAPS + 1) * channels
    inside = number < numbers
    total = tl.zeros([PARTS, BC], tl.float32)
    for first in range(0, count, PARTS):
        part = first + tl.arange(0, PARTS)
        at = parts + part.to(tl.int64)[:, None] * numbers + number[None, :]
        total += tl.load(at, (part < count)[:, None] & inside[None, :], 0.0)
    found = tl.sum(total, 0)
    tap = number // channels
    c = number - tap * channels
    if WEIGHT:
        tl.store(weight + c * TAPS + tap, found.to(weight.dtype.element_ty), tap < TAPS)
    if BIAS:
        tl.store(bias + c, found.to(bias.dtype.element_ty), tap == TAPS)


def add_parts(parts: Tensor, count: int, channels: int, taps: int, weight: Tensor | None, bias: Tensor | None) -> None:
    """Fill ``weight`` and ``bias``, where they are given.

    Args:
        parts: ``(count, taps + 1, channels)``, float32: parts of the gradient of each tap and of the bias.
        count, channels, taps: its sizes.
        weight: ``(channels, taps)`` in this order in memory; float32, bfloat16 or float16.
        bias: ``(channels)``, in any of these dtypes.
    """
    add[(-(-(taps + 1) * channels // _BLOCK),)](
        parts, parts if weight is None else weight, parts if bias is None else bias, count, channels,
        TAPS=taps, WEIGHT=weight is not None, BIAS=bias is not None, PARTS=_PARTS, BC=_BLOCK,
        num_warps=_WARPS, num_stages=1,
    )  # fmt: skip
