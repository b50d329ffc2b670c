"""Layer norm over channels on a GPU, with the conversion of its result to another dtype inside, both ways.

A program of one warp goes through groups of rows; where channels are many it has more warps. Means and
variances are of a row that lies in registers, so each pass reads its inputs once. Sums over rows are partial sums that
are added in order: the same call gives the same bits.

Counted for a float32 x and a 16-bit y, which are the least: forward reads 4 and writes 2 bytes an
element, backward reads 4 + 2 and writes 4. Norm and conversion one after the other move 14, and 26 back.
Instructions an element for 128 channels are 20 forward and 30 backward, fewer for more of them (compiled for sm_90).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from vmamba.kernels.triton import processors
from vmamba.kernels.triton.jit import Bound, kernel
from vmamba.kernels.triton.layers.sums import add_parts

MOST_CHANNELS = 4096
_ELEMENTS = 512  # of a warp at once: 64 bytes a lane are on their way in float32


class Way(NamedTuple):
    """A configuration of one of the two kernels.

    Attributes:
        most: channels of a warp; with more of them a program has more warps.
        warps_per_processor: that are wanted.
        least_rows: of a program.
    """

    most: int
    warps_per_processor: int
    least_rows: int


FORWARD = Way(1024, 32, 4)
BACKWARD = Way(512, 12, 4)  # each leaves a part of the sums over rows


@triton.jit
def _rows(pid, rows, channels, c, ROWS: tl.constexpr):
    """Which rows a group has, whether they are there, and where their elements lie."""
    row = pid * ROWS + tl.arange(0, ROWS)
    return row, row < rows, row[:, None] * channels + c[None, :]


@triton.jit
def _mask(there, inside, V: tl.constexpr):
    return tl.max_constancy(there[:, None] & inside[None, :], [1, V])


@kernel
def normalize(
    x, weight, bias, y, mean, rstd, rows, channels, groups, eps,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, SAVE: tl.constexpr, ROWS: tl.constexpr, BC: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """``y = (x - mean) · rstd · weight + bias`` for some groups of rows."""
    first = tl.program_id(0).to(tl.int64) * groups
    c = tl.arange(0, BC)
    inside = c < channels
    w = tl.load(weight + c, inside, 0.0).to(tl.float32)[None, :] if WEIGHT else 1.0
    b = tl.load(bias + c, inside, 0.0).to(tl.float32)[None, :] if BIAS else 0.0
    size: tl.constexpr = V * x.dtype.element_ty.primitive_bitwidth // 8
    y_size: tl.constexpr = V * y.dtype.element_ty.primitive_bitwidth // 8
    for group in range(groups):
        row, there, at = _rows(first + group, rows, channels, c, ROWS)
        mask = _mask(there, inside, V)
        x_at = tl.max_contiguous(tl.multiple_of(x + at, [size, size]), [1, V])
        found = tl.load(x_at, mask, 0.0).to(tl.float32)
        middle = tl.sum(found, 1) / channels
        apart = tl.where(mask, found - middle[:, None], 0.0)
        scale = tl.rsqrt(tl.sum(apart * apart, 1) / channels + eps)
        if SAVE:
            tl.store(mean + row, middle, there)
            tl.store(rstd + row, scale, there)
        out = apart * scale[:, None] * w + b
        y_at = tl.max_contiguous(tl.multiple_of(y + at, [y_size, y_size]), [1, V])
        tl.store(y_at, out.to(y.dtype.element_ty), mask)


@triton.jit
def _next(dy, x, mean, rstd, group, rows, channels, c, there, ROWS: tl.constexpr, V: tl.constexpr):
    """What a group of rows is made of, in the memory's dtypes; zeros unless ``there``."""
    x_size: tl.constexpr = V * x.dtype.element_ty.primitive_bitwidth // 8
    y_size: tl.constexpr = V * dy.dtype.element_ty.primitive_bitwidth // 8
    row, row_there, at = _rows(group, rows, channels, c, ROWS)
    row_there = row_there & there
    mask = _mask(row_there, c < channels, V)
    found = tl.load(tl.max_contiguous(tl.multiple_of(x + at, [x_size, x_size]), [1, V]), mask, 0.0)
    slope = tl.load(tl.max_contiguous(tl.multiple_of(dy + at, [y_size, y_size]), [1, V]), mask, 0.0)
    return found, slope, tl.load(mean + row, row_there, 0.0), tl.load(rstd + row, row_there, 0.0)


@kernel
def gradients(
    dy, x, weight, mean, rstd, dx, parts, rows, channels, groups,
    WEIGHT: tl.constexpr, SUMS: tl.constexpr, ROWS: tl.constexpr, BC: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """``dx`` for some groups of rows, and their parts of the gradients of weight and bias.

    A group is loaded while the one before it is computed: sums over a row keep a warp waiting, and memory must not.
    """
    pid = tl.program_id(0).to(tl.int64)
    first = pid * groups
    c = tl.arange(0, BC)
    inside = c < channels
    size: tl.constexpr = V * dx.dtype.element_ty.primitive_bitwidth // 8
    d_weight, d_bias = tl.zeros([ROWS, BC], tl.float32), tl.zeros([ROWS, BC], tl.float32)
    x_next, dy_next, mean_next, rstd_next = _next(dy, x, mean, rstd, first, rows, channels, c, True, ROWS, V)
    w = tl.load(weight + c, inside, 0.0).to(tl.float32)[None, :] if WEIGHT else 1.0
    for group in range(groups):
        scale = rstd_next[:, None]
        # Beside the row this is not zero, but what it is multiplied with is.
        normal = (x_next.to(tl.float32) - mean_next[:, None]) * scale
        slope = dy_next.to(tl.float32)
        x_next, dy_next, mean_next, rstd_next = _next(
            dy, x, mean, rstd, first + group + 1, rows, channels, c, group + 1 < groups, ROWS, V
        )
        if SUMS:
            d_weight += slope * normal
            d_bias += slope
        slope *= w
        along = tl.sum(slope * normal, 1)[:, None] / channels
        level = tl.sum(slope, 1)[:, None] / channels
        out = (slope - level - normal * along) * scale
        _, there, at = _rows(first + group, rows, channels, c, ROWS)
        dx_at = tl.max_contiguous(tl.multiple_of(dx + at, [size, size]), [1, V])
        tl.store(dx_at, out.to(dx.dtype.element_ty), _mask(there, inside, V))
    if SUMS:
        part = parts + pid * 2 * channels + c
        tl.store(part, tl.sum(d_weight, 0), inside)
        tl.store(part + channels, tl.sum(d_bias, 0), inside)


class _Cut(NamedTuple):
    """How a call is cut into programs: fixed by its sizes and the number of multiprocessors."""

    rows: int  # of a group
    block: int
    warps: int
    groups: int  # of a program
    programs: int

    def constants(self, lanes: int) -> dict[str, int]:
        return {"ROWS": self.rows, "BC": self.block, "V": lanes, "num_warps": self.warps, "num_stages": 1}


def _cut(rows: int, channels: int, way: Way, on: int) -> _Cut:
    """On so many multiprocessors."""
    block = 1 << (channels - 1).bit_length()
    warps = max(1, block // way.most)
    at_once = min(32, max(1, _ELEMENTS // block))
    groups = -(-rows // at_once)
    # As many programs as keep the machine busy, but none with less to do than it takes to begin and end.
    programs = max(1, way.warps_per_processor // warps) * on
    per_program = max(-(-way.least_rows // at_once), -(-groups // programs))
    return _Cut(at_once, block, warps, per_program, -(-groups // per_program))


def _lanes(channels: int, *tensors: Tensor) -> int:
    """How many channels, at most 4, a lane can move at once."""
    numbers = channels
    for t in tensors:
        numbers |= t.data_ptr() // t.element_size()
    return 4 if numbers % 4 == 0 else 2 if numbers % 2 == 0 else 1


# Launches but for their tensors, for each layer of a model: finding one takes as long as the kernel on a small map.


@functools.lru_cache(1024)
def _forward(rows: int, channels: int, lanes: int, on: int, eps: float, weight: bool, bias: bool, save: bool) -> Bound:
    cut = _cut(rows, channels, FORWARD, on)
    return normalize.bound(
        cut.programs, rows, channels, cut.groups, eps, WEIGHT=weight, BIAS=bias, SAVE=save, **cut.constants(lanes)
    )


@functools.lru_cache(1024)
def _backward(rows: int, channels: int, lanes: int, on: int, weight: bool, sums: bool) -> tuple[int, Bound]:
    """And how many parts there are of sums."""
    cut = _cut(rows, channels, BACKWARD, on)
    return cut.programs, gradients.bound(
        cut.programs, rows, channels, cut.groups, WEIGHT=weight, SUMS=sums, **cut.constants(lanes)
    )


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    y: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
) -> None:
    """Fill ``y``, and ``mean`` and ``rstd`` where they are given; not for empty tensors.

    Args:
        x: ``(…, c)``, contiguous; float32, bfloat16 or float16; c at most `MOST_CHANNELS`.
        weight, bias: ``(c)``, in any of these dtypes, or None.
        eps: added to the variance.
        y: as ``x``, in any of these dtypes.
        mean, rstd: ``(rows)``, float32: what backward needs; both or none.
    """
    channels = x.shape[-1]
    rows, lanes, given = x.numel() // channels, _lanes(channels, x, y), (weight is not None, bias is not None)
    launch = _forward(rows, channels, lanes, processors(x.device), eps, *given, mean is not None)
    launch(x, _contiguous(weight), _contiguous(bias), y, y if mean is None else mean, y if rstd is None else rstd)


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    dx: Tensor,
    d_weight: Tensor | None,
    d_bias: Tensor | None,
    workspace: Callable[[int], Tensor],
) -> None:
    """Fill the gradients; not for empty tensors.

    Args:
        dy: ``(…, c)``, contiguous, in any of these dtypes.
        x, weight, mean, rstd: as `forward` had them.
        dx: as ``x``.
        d_weight, d_bias: ``(c)``, contiguous, in any of these dtypes, or None where they are not wanted.
        workspace: makes float32 memory for this call.
    """
    channels, sums = x.shape[-1], d_weight is not None or d_bias is not None
    rows, lanes = x.numel() // channels, _lanes(channels, x, dy, dx)
    count, launch = _backward(rows, channels, lanes, processors(x.device), weight is not None, sums)
    parts = workspace(count * 2 * channels) if sums else None
    launch(dy, x, _contiguous(weight), mean, rstd, dx, mean if parts is None else parts)
    if parts is not None:
        add_parts(parts, count, channels, 1, d_weight, d_bias)


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()
