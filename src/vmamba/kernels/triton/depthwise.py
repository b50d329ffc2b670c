"""The depthwise 3×3 convolution with SiLU on a GPU, channels-last, both ways.

A program owns some columns, 32 channels of them, and slides down a strip of rows; a lane moves up to 16 bytes at once.
Each row is loaded once (its neighbours to the left and right are the same bytes again, from the cache nearby), and the
next one while this one is computed. The columns of all images are one line of columns, so that narrow maps fill
programs as wide ones do. Nothing depends on timing, and sums over places are partial sums that are added in order: the
same call gives the same bits.

Counted, not measured, per element in 16 / 32 bits:

- forward reads x and writes y once, 4 / 8 bytes, which is the least; 26 / 28 instructions (compiled for sm_90);
- backward is two kernels, `gradients` and `convolve` with the taps turned round. The gradient g of the convolution's
  output lies in memory between them, in the dtype of x: 10 / 20 bytes where 6 / 12 would be the least, and 45 + 21 /
  42 + 22 instructions. One kernel would compute the convolution and g three times, for a column and for both beside it.
  Without SiLU g is dy, and they are 8 / 16 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from vmamba.kernels.triton.jit import kernel
from vmamba.kernels.triton.plan import processors

TAPS = 9
_BLOCK = 32  # channels of a program: 64 bytes of a pixel in 16 bits; more of them would leave fewer columns to share
_PROGRAMS_PER_SM = 8
_LEAST_ROWS = 7  # of a strip, which reads two more than it has
_LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def _task(rows, strips, channels, BC: tl.constexpr):
    """A program's channels, first row, and which of the groups of columns it has."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(channels, BC)
    c = pid % blocks * BC + tl.arange(0, BC)
    pid = pid // blocks
    row0 = pid % strips * rows
    return c, row0, pid // strips


@triton.jit
def _columns(tile, images, width, BP: tl.constexpr):
    """The image and the place in a row of each column of a tile, and whether there is such an image."""
    first = tile.to(tl.int64) * BP
    image0 = first // width
    w = (first - image0 * width).to(tl.int32) + tl.arange(0, BP)
    more = w // width
    image = image0 + more
    return image, w - more * width, image < images


@triton.jit
def _moved(addresses, offset, V: tl.constexpr):
    """Addresses moved by so many elements, of which a lane moves V at once: the compiler must be told here."""
    size: tl.constexpr = addresses.dtype.scalar.element_ty.primitive_bitwidth // 8 * V
    return tl.max_contiguous(tl.multiple_of(addresses + offset, [size, size]), [1, V])


@triton.jit
def _cells(pointer, image, image_stride, row, row_stride, w, c, PIXEL: tl.constexpr):
    """The addresses ``[BP, BC]`` of a row."""
    of_column = pointer + image * image_stride + row.to(tl.int64) * row_stride + w.to(tl.int64) * PIXEL
    return of_column[:, None] + c[None, :]


@triton.jit
def _three(at, offset, left, here, right, PIXEL: tl.constexpr, V: tl.constexpr):
    """A row, in between its neighbours to the left and to the right: in the memory's dtype, zero outside the map."""
    x0 = tl.load(_moved(at, offset - PIXEL, V), left, 0.0)
    x1 = tl.load(_moved(at, offset, V), here, 0.0)
    x2 = tl.load(_moved(at, offset + PIXEL, V), right, 0.0)
    return x0, x1, x2


@triton.jit
def _weigh(total, w0, w1, w2, x0, x1, x2):
    total = w0 * x0.to(tl.float32) + total
    total = w1 * x1.to(tl.float32) + total
    return w2 * x2.to(tl.float32) + total


@triton.jit
def _sigmoid(z):
    # The square of the reciprocal root is one special function and a product; a division is eight instructions.
    root = tl.rsqrt(1.0 + tl.exp2(z * -_LOG2E))
    return root * root


@triton.jit
def _taps(weight, c, inside, row: tl.constexpr, FLIP: tl.constexpr):
    """A row of the taps, each ``[1, BC]``; FLIP takes them turned by half a turn."""
    first: tl.constexpr = 8 - 3 * row if FLIP else 3 * row
    step: tl.constexpr = -1 if FLIP else 1
    at = weight + c.to(tl.int64) * 9 + first
    w0 = tl.load(at, inside, 0.0).to(tl.float32)[None, :]
    w1 = tl.load(at + step, inside, 0.0).to(tl.float32)[None, :]
    w2 = tl.load(at + 2 * step, inside, 0.0).to(tl.float32)[None, :]
    return w0, w1, w2


@kernel
def convolve(
    x, weight, bias, y, x_image, x_row, y_image, y_row, images, height, width, channels, rows, strips,
    X_PIXEL: tl.constexpr, Y_PIXEL: tl.constexpr, BIAS: tl.constexpr, SILU: tl.constexpr, FLIP: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr, V: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """``y`` for BP columns of a strip of rows. A row is added to three sums, those of the outputs around it."""
    c, row0, tile = _task(rows, strips, channels, BC)
    image, w, there = _columns(tile, images, width, BP)
    inside = c < channels
    count = tl.minimum(rows, height - row0)
    here = there[:, None]
    if EDGE:
        here = tl.max_constancy(here & inside[None, :], [1, V])
    left, right = here & (w > 0)[:, None], here & (w < width - 1)[:, None]
    w00, w01, w02 = _taps(weight, c, inside, 0, FLIP)
    w10, w11, w12 = _taps(weight, c, inside, 1, FLIP)
    w20, w21, w22 = _taps(weight, c, inside, 2, FLIP)
    base = tl.zeros([1, BC], tl.float32)
    if BIAS:
        base += tl.load(bias + c, inside, 0.0).to(tl.float32)[None, :]

    at = _cells(x, image, x_image, row0, x_row, w, c, X_PIXEL)
    out = _cells(y, image, y_image, row0, y_row, w, c, Y_PIXEL)
    x_step, y_step = x_row.to(tl.int64), y_row.to(tl.int64)
    above = row0 > 0
    x0, x1, x2 = _three(at, -x_step, left & above, here & above, right & above, X_PIXEL, V)
    n0, n1, n2 = _three(at, 0 * x_step, left, here, right, X_PIXEL, V)
    next = _weigh(base, w00, w01, w02, x0, x1, x2)
    x0, x1, x2 = n0, n1, n2
    more = row0 + 1 < height
    n0, n1, n2 = _three(at, x_step, left & more, here & more, right & more, X_PIXEL, V)
    this = _weigh(next, w10, w11, w12, x0, x1, x2)
    next = _weigh(base, w00, w01, w02, x0, x1, x2)
    for i in range(count):
        x0, x1, x2 = n0, n1, n2
        more = (row0 + i + 2 < height) & (i + 1 < count)
        n0, n1, n2 = _three(at, (i + 2) * x_step, left & more, here & more, right & more, X_PIXEL, V)
        z = _weigh(this, w20, w21, w22, x0, x1, x2)
        this = _weigh(next, w10, w11, w12, x0, x1, x2)
        next = _weigh(base, w00, w01, w02, x0, x1, x2)
        if SILU:
            z *= _sigmoid(z)
        tl.store(_moved(out, i * y_step, V), z.to(y.dtype.element_ty), here)


@kernel
def gradients(
    x, weight, bias, dy, g, parts, x_image, x_row, dy_image, dy_row, g_image, g_row,
    images, height, width, channels, rows, strips, tiles,
    X_PIXEL: tl.constexpr, DY_PIXEL: tl.constexpr, G_PIXEL: tl.constexpr, BIAS: tl.constexpr, SILU: tl.constexpr,
    SUMS: tl.constexpr, STORE: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, V: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """``g``, the gradient of the convolution's output, and the parts of those of the taps and the bias."""
    c, row0, group = _task(rows, strips, channels, BC)
    inside = c < channels
    count = tl.minimum(rows, height - row0)
    if SILU:
        w00, w01, w02 = _taps(weight, c, inside, 0, False)
        w10, w11, w12 = _taps(weight, c, inside, 1, False)
        w20, w21, w22 = _taps(weight, c, inside, 2, False)
        base = tl.zeros([1, BC], tl.float32)
        if BIAS:
            base += tl.load(bias + c, inside, 0.0).to(tl.float32)[None, :]
    zero = tl.zeros([BP, BC], tl.float32)
    d00, d01, d02, d10, d11, d12, d20, d21, d22, d = zero, zero, zero, zero, zero, zero, zero, zero, zero, zero
    x_step, dy_step, g_step = x_row.to(tl.int64), dy_row.to(tl.int64), g_row.to(tl.int64)
    above = row0 > 0
    for tile in range(tiles):
        image, w, there = _columns(group * tiles + tile, images, width, BP)
        here = there[:, None]
        if EDGE:
            here = tl.max_constancy(here & inside[None, :], [1, V])
        left, right = here & (w > 0)[:, None], here & (w < width - 1)[:, None]
        at = _cells(x, image, x_image, row0, x_row, w, c, X_PIXEL)
        dy_at = _cells(dy, image, dy_image, row0, dy_row, w, c, DY_PIXEL)
        g_at = _cells(g, image, g_image, row0, g_row, w, c, G_PIXEL)
        x00, x01, x02 = _three(at, -x_step, left & above, here & above, right & above, X_PIXEL, V)
        x10, x11, x12 = _three(at, 0 * x_step, left, here, right, X_PIXEL, V)
        x00, x01, x02 = x00.to(tl.float32), x01.to(tl.float32), x02.to(tl.float32)
        x10, x11, x12 = x10.to(tl.float32), x11.to(tl.float32), x12.to(tl.float32)
        more = row0 + 1 < height
        n0, n1, n2 = _three(at, x_step, left & more, here & more, right & more, X_PIXEL, V)
        n = tl.load(_moved(dy_at, 0 * dy_step, V), here, 0.0)
        for i in tl.range(count, loop_unroll_factor=3):
            x20, x21, x22, slope = n0.to(tl.float32), n1.to(tl.float32), n2.to(tl.float32), n.to(tl.float32)
            more = (row0 + i + 2 < height) & (i + 1 < count)
            n0, n1, n2 = _three(at, (i + 2) * x_step, left & more, here & more, right & more, X_PIXEL, V)
            n = tl.load(_moved(dy_at, (i + 1) * dy_step, V), here & (i + 1 < count), 0.0)
            if SILU:
                z = _weigh(base, w00, w01, w02, x00, x01, x02)
                z = _weigh(z, w10, w11, w12, x10, x11, x12)
                z = _weigh(z, w20, w21, w22, x20, x21, x22)
                s = _sigmoid(z)
                slope *= s + z * s * (1.0 - s)
            if STORE:
                tl.store(_moved(g_at, i * g_step, V), slope.to(g.dtype.element_ty), here)
            if SUMS:
                d00, d01, d02 = d00 + slope * x00, d01 + slope * x01, d02 + slope * x02
                d10, d11, d12 = d10 + slope * x10, d11 + slope * x11, d12 + slope * x12
                d20, d21, d22 = d20 + slope * x20, d21 + slope * x21, d22 + slope * x22
                d += slope
            x00, x01, x02, x10, x11, x12 = x10, x11, x12, x20, x21, x22
    if SUMS:
        part = parts + (group * strips + row0 // rows).to(tl.int64) * 10 * channels
        of_taps = part + c.to(tl.int64) * 9
        tl.store(of_taps, tl.sum(d00, 0), inside)
        tl.store(of_taps + 1, tl.sum(d01, 0), inside)
        tl.store(of_taps + 2, tl.sum(d02, 0), inside)
        tl.store(of_taps + 3, tl.sum(d10, 0), inside)
        tl.store(of_taps + 4, tl.sum(d11, 0), inside)
        tl.store(of_taps + 5, tl.sum(d12, 0), inside)
        tl.store(of_taps + 6, tl.sum(d20, 0), inside)
        tl.store(of_taps + 7, tl.sum(d21, 0), inside)
        tl.store(of_taps + 8, tl.sum(d22, 0), inside)
        tl.store(part + channels.to(tl.int64) * 9 + c, tl.sum(d, 0), inside)


class _Cut(NamedTuple):
    """How a call is cut into programs: fixed by its sizes and the number of multiprocessors."""

    lanes: int
    warps: int
    columns: int
    rows: int
    strips: int
    tasks: int  # groups of columns

    @property
    def constants(self) -> dict[str, int]:
        return {"BP": self.columns, "BC": _BLOCK, "V": self.lanes, "num_warps": self.warps, "num_stages": 1}


def _cut(x: Tensor, lanes: int) -> _Cut:
    images, height, width, channels = x.shape
    wanted = _PROGRAMS_PER_SM * processors(x.device)
    blocks, most = -(-channels // _BLOCK), max(1, height // _LEAST_ROWS)
    warps = 4 if blocks * -(-images * width // (4 * lanes)) * most >= wanted else 1
    columns = warps * lanes  # of 32 channels, so that every lane has one group
    tasks = -(-images * width // columns)
    strips = min(most, max(1, -(-wanted // (blocks * tasks))))
    rows = -(-height // strips)
    return _Cut(lanes, warps, columns, rows, -(-height // rows), tasks)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, y: Tensor, *, turned: bool = False) -> None:
    """Fill ``y``; not for empty maps.

    Args:
        x: ``(b, h, w, c)``; float32, bfloat16 or float16.
        weight: ``(c, 1, 3, 3)``, in any of these dtypes.
        bias: ``(c)``, as weight, or None.
        silu: whether SiLU follows.
        y: ``(b, h, w, c)``, contiguous, in the dtype of ``x``. Sums are float32.
        turned: turn the taps by half a turn, as the gradient of ``x`` needs them.
    """
    x = _dense(x)
    images, height, width, channels = x.shape
    cut = _cut(x, _lanes(16 // x.element_size(), x, y))
    convolve[(cut.tasks * cut.strips * -(-channels // _BLOCK),)](
        x, weight.contiguous(), bias if bias is None else bias.contiguous(), y, *_strides(x), *_strides(y),
        images, height, width, channels, cut.rows, cut.strips,
        X_PIXEL=_pixel(x), Y_PIXEL=_pixel(y), BIAS=bias is not None, SILU=silu, FLIP=turned,
        EDGE=channels % _BLOCK != 0, **cut.constants,
    )  # fmt: skip


def backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    dy: Tensor,
    dx: Tensor | None,
    sums: bool,
    workspace: Callable[[int], Tensor],
) -> Tensor | None:
    """Fill ``dx`` where it is given; not for empty maps.

    Args:
        x, weight, bias, silu: as of `forward`.
        dy: ``(b, h, w, c)``.
        dx: ``(b, h, w, c)``, contiguous, in the dtype of ``x``.
        sums: whether the other gradients are wanted.
        workspace: makes float32 memory for this call.

    Returns:
        The parts of the other gradients, to be added, ``(parts, 10·c)``: those of the weight in its order, then those
        of the bias. None where they are not wanted.
    """
    x, dy = _dense(x), _dense(dy)
    images, height, width, channels = x.shape
    g = dy.new_empty(x.shape, dtype=x.dtype) if silu and dx is not None else dy
    parts = None
    if sums or g is not dy:
        cut = _cut(x, _lanes(4, x, dy, g))
        blocks = -(-channels // _BLOCK)
        # Sums over lanes at the end are for as many columns as possible, while there are programs enough.
        tiles = max(1, blocks * cut.tasks * cut.strips // (_PROGRAMS_PER_SM * processors(x.device)))
        groups = -(-cut.tasks // tiles)
        shape = (groups * cut.strips, (TAPS + 1) * channels)
        parts = workspace(math.prod(shape)).view(shape) if sums else None
        gradients[(groups * cut.strips * blocks,)](
            x, weight.contiguous(), bias if bias is None else bias.contiguous(), dy, g, g if parts is None else parts,
            *_strides(x), *_strides(dy), *_strides(g),
            images, height, width, channels, cut.rows, cut.strips, tiles,
            X_PIXEL=_pixel(x), DY_PIXEL=_pixel(dy), G_PIXEL=_pixel(g), BIAS=bias is not None, SILU=silu, SUMS=sums,
            STORE=g is not dy, EDGE=channels % _BLOCK != 0, **cut.constants,
        )  # fmt: skip
    if dx is not None:
        forward(g, weight, None, False, dx, turned=True)
    return parts


def _dense(t: Tensor) -> Tensor:
    """Channels beside each other, and a distance between pixels that does not depend on the size of the map.

    Kernels are compiled for that distance; the half of a map that a chunk along channels gives is taken as it is.
    """
    channels = t.shape[3]
    return t if t.stride(3) == 1 and _pixel(t) in (channels, 2 * channels) else t.contiguous()


def _pixel(t: Tensor) -> int:
    return t.stride(2) if t.shape[2] > 1 else t.shape[3]


def _strides(t: Tensor) -> tuple[int, int]:
    return t.stride(0), t.stride(1)


def _lanes(limit: int, *tensors: Tensor) -> int:
    """How many channels, at most ``limit``, a lane can move at once."""
    numbers = [tensors[0].shape[3]]
    for t in tensors:
        strides = (stride for stride, size in zip(t.stride()[:3], t.shape[:3], strict=True) if size > 1)
        numbers += [t.data_ptr() // t.element_size(), *strides]
    return next(n for n in (8, 4, 2, 1) if n <= limit and all(number % n == 0 for number in numbers))
