"""The kernels of the depthwise 3×3 convolution with SiLU, channels-last, both ways.

A program is one warp. A lane owns a few columns beside each other, some channels of them, and slides down a strip of
rows: a row and the columns beside it are loaded once, and the next row while this one is computed. Lanes whose groups
of columns end where the map ends need no others (BESIDE is 0).

Counted per element in 16 / 32 bits (docs/gpu.md has what was measured):

- forward reads x and writes y once, 4 / 8 bytes, which is the least; 22 instructions with four columns of a lane, 20
  with seven (compiled for sm_90);
- backward reads x and dy and writes dx once, 6 / 12 bytes, which is the least. The gradient g of the convolution's
  output stays in registers; for that the convolution, its sigmoid and g are computed again for a column on either side
  of a lane's own: 67 instructions with four columns, 62 with seven, 50 with seven that are the whole width. A kernel
  for g and one for dx would need fewer, but 10 / 20 bytes and a launch more.
"""

# Triton's language has no starred elements of tuples, and tuples that grow in a loop change their type.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment"

from __future__ import annotations

import triton
import triton.language as tl

from vmamba.kernels.triton.jit import kernel

_LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def _columns(tile, images, width, BP: tl.constexpr, P: tl.constexpr):
    """The image and the first column of each group of P columns of a tile, and whether there is such an image."""
    groups = tl.cdiv(width, P)
    first = tile.to(tl.int64) * BP
    image0 = first // groups
    group = (first - image0 * groups).to(tl.int32) + tl.arange(0, BP)
    more = group // groups
    image = image0 + more
    return image, (group - more * groups) * P, image < images


@triton.jit
def _moved(addresses, offset, V: tl.constexpr):
    """Addresses moved by so many elements, of which a lane moves V at once: the compiler must be told here."""
    size: tl.constexpr = addresses.dtype.scalar.element_ty.primitive_bitwidth // 8 * V
    return tl.max_contiguous(tl.multiple_of(addresses + offset, [size, size]), [1, V])


@triton.jit
def _cells(pointer, image, image_stride, w, c, PIXEL: tl.constexpr):
    """The addresses ``[BP, BC]`` in the first row of the first columns of groups."""
    of_column = pointer + image * image_stride + w.to(tl.int64) * PIXEL
    return of_column[:, None] + c[None, :]


@triton.jit
def _within(w, width, here, FIRST: tl.constexpr, COUNT: tl.constexpr, P: tl.constexpr, EVEN: tl.constexpr):
    """Whether columns ``w + FIRST`` and so on are in the map, and their channels too."""
    left, right = here & (w > 0)[:, None], here & (w + P < width)[:, None]
    there = ()
    for p in tl.static_range(COUNT):
        if EVEN and FIRST + p >= -P and FIRST + p < 0:  # whole groups are there or not
            there = there + (left,)
        elif EVEN and FIRST + p >= 0 and FIRST + p < P:
            there = there + (here,)
        elif EVEN and FIRST + p >= P and FIRST + p < 2 * P:
            there = there + (right,)
        else:
            there = there + (here & ((w + FIRST + p >= 0) & (w + FIRST + p < width))[:, None],)
    return there


@triton.jit
def _load(at, offset, there, row_there, FIRST: tl.constexpr, COUNT: tl.constexpr, PIXEL: tl.constexpr, V: tl.constexpr):
    """Columns of a row, in the memory's dtype, zero outside the map."""
    row = ()
    for p in tl.static_range(COUNT):
        row = row + (tl.load(_moved(at, offset + (FIRST + p) * PIXEL, V), there[p] & row_there, 0.0),)
    return row


@triton.jit
def _float(row, COUNT: tl.constexpr):
    found = ()
    for p in tl.static_range(COUNT):
        found = found + (row[p].to(tl.float32),)
    return found


@triton.jit
def _filled(value, COUNT: tl.constexpr):
    row = ()
    for _ in tl.static_range(COUNT):
        row = row + (value,)
    return row


@triton.jit
def _weigh(totals, w0, w1, w2, x, COUNT: tl.constexpr, AROUND: tl.constexpr):
    """To each sum the products of a row of the taps with the columns of ``x`` around its own.

    AROUND is how many more columns than there are sums x has on either side: none where the map ends there.
    """
    found = ()
    for p in tl.static_range(COUNT):
        total = w1 * x[p + AROUND] + totals[p]
        if p + AROUND > 0:
            total = w0 * x[p + AROUND - 1] + total
        if p + 1 < COUNT + AROUND:
            total = w2 * x[p + AROUND + 1] + total
        found = found + (total,)
    return found


@triton.jit
def _sigmoid(z):
    # The square of the reciprocal root is one special function and a product; a division is eight instructions.
    root = tl.rsqrt(1.0 + tl.exp2(z * -_LOG2E))
    return root * root


@triton.jit
def _taps(weight, c, inside, row: tl.constexpr):
    """A row of the taps, each ``[1, BC]``."""
    at = weight + c.to(tl.int64) * 9 + 3 * row
    w0 = tl.load(at, inside, 0.0).to(tl.float32)[None, :]
    w1 = tl.load(at + 1, inside, 0.0).to(tl.float32)[None, :]
    w2 = tl.load(at + 2, inside, 0.0).to(tl.float32)[None, :]
    return w0, w1, w2


@triton.jit
def _bias(bias, c, inside, BP: tl.constexpr, BC: tl.constexpr, BIAS: tl.constexpr):
    base = tl.zeros([BP, BC], tl.float32)
    if BIAS:
        base += tl.load(bias + c, inside, 0.0).to(tl.float32)[None, :]
    return base


@kernel
def convolve(
    x, weight, bias, y, x_image, x_row, y_image, y_row, images, height, width, channels, rows, strips,
    X_PIXEL: tl.constexpr, Y_PIXEL: tl.constexpr, BIAS: tl.constexpr, SILU: tl.constexpr,
    BP: tl.constexpr, P: tl.constexpr, BC: tl.constexpr, V: tl.constexpr, EDGE: tl.constexpr,
    EVEN: tl.constexpr, BESIDE: tl.constexpr,
):  # fmt: skip
    """``y`` for BP·P columns of a strip of rows. A row is added to three sums, those of the outputs around it."""
    X: tl.constexpr = P + 2 * BESIDE
    pid = tl.program_id(0)
    blocks = tl.cdiv(channels, BC)
    c = pid % blocks * BC + tl.arange(0, BC)
    row0 = pid // blocks % strips * rows
    image, w, in_image = _columns(pid // blocks // strips, images, width, BP, P)
    inside = c < channels
    here = in_image[:, None]
    if EDGE:
        here = tl.max_constancy(here & inside[None, :], [1, V])
    end = tl.minimum(row0 + rows, height)
    there = _within(w, width, here, -BESIDE, X, P, EVEN)
    at = _cells(x, image, x_image, w, c, X_PIXEL)
    out = _cells(y, image, y_image, w, c, Y_PIXEL)
    x_step, y_step = x_row.to(tl.int64), y_row.to(tl.int64)
    first = tl.maximum(row0 - 1, 0)
    n = _load(at, first * x_step, there, True, -BESIDE, X, X_PIXEL, V)
    w00, w01, w02 = _taps(weight, c, inside, 0)
    w10, w11, w12 = _taps(weight, c, inside, 1)
    w20, w21, w22 = _taps(weight, c, inside, 2)
    base = _bias(bias, c, inside, BP, BC, BIAS)
    this, next = _filled(base, P), _filled(base, P)
    for i in range(first, end + 1):
        v = _float(n, X)
        n = _load(at, (i + 1) * x_step, there, (i < end) & (i + 1 < height), -BESIDE, X, X_PIXEL, V)
        z = _weigh(this, w20, w21, w22, v, P, BESIDE)
        this = _weigh(next, w10, w11, w12, v, P, BESIDE)
        next = _weigh(_filled(base, P), w00, w01, w02, v, P, BESIDE)
        for p in tl.static_range(P):
            value = z[p]
            if SILU:
                value *= _sigmoid(value)
            tl.store(
                _moved(out, (i - 1) * y_step + p * Y_PIXEL, V),
                value.to(y.dtype.element_ty),
                there[p + BESIDE] & (i > row0),
            )


@kernel
def gradients(
    x, weight, bias, dy, dx, parts, x_image, x_row, dy_image, dy_row, dx_image, dx_row,
    images, height, width, channels, rows, strips, tiles,
    X_PIXEL: tl.constexpr, DY_PIXEL: tl.constexpr, DX_PIXEL: tl.constexpr, BIAS: tl.constexpr, SILU: tl.constexpr,
    SUMS: tl.constexpr, DX: tl.constexpr, BP: tl.constexpr, P: tl.constexpr, BC: tl.constexpr, V: tl.constexpr,
    EDGE: tl.constexpr, EVEN: tl.constexpr, BESIDE: tl.constexpr,
):  # fmt: skip
    """``dx``, and the parts of the gradients of the taps and the bias, for some tiles of columns of a strip of rows.

    While row ``i`` of x comes in, row ``i - 1`` of the convolution's output z is complete, hence of its gradient g, and
    with that row ``i - 2`` of dx.
    """
    G: tl.constexpr = P + 2 * BESIDE  # columns of g: dx and the taps' gradients need those beside its own
    X: tl.constexpr = P + 4 * BESIDE  # of x, for these
    X_READ: tl.constexpr = SILU or SUMS
    pid = tl.program_id(0)
    blocks = tl.cdiv(channels, BC)
    c = pid % blocks * BC + tl.arange(0, BC)
    pid = pid // blocks
    row0 = pid % strips * rows
    group = pid // strips
    inside = c < channels
    end = tl.minimum(row0 + rows, height)
    w00, w01, w02 = _taps(weight, c, inside, 0)
    w10, w11, w12 = _taps(weight, c, inside, 1)
    w20, w21, w22 = _taps(weight, c, inside, 2)
    base = _bias(bias, c, inside, BP, BC, BIAS)
    zero = tl.zeros([BP, BC], tl.float32)
    d00, d01, d02, d10, d11, d12, d20, d21, d22, d = zero, zero, zero, zero, zero, zero, zero, zero, zero, zero
    x_step, dy_step, dx_step = x_row.to(tl.int64), dy_row.to(tl.int64), dx_row.to(tl.int64)
    # Of g the rows beside the strip's own are needed, of x those beside these; but none outside the map.
    first_g, last_g = tl.maximum(row0 - 1, 0), tl.minimum(end, height - 1)
    first, last = tl.maximum(row0 - 2, 0), tl.minimum(end + 1, height)
    for tile in range(tiles):
        image, w, in_image = _columns(group * tiles + tile, images, width, BP, P)
        here = in_image[:, None]
        if EDGE:
            here = tl.max_constancy(here & inside[None, :], [1, V])
        x_there = _within(w, width, here, -2 * BESIDE, X, P, EVEN)
        there = _within(w, width, here, -BESIDE, G, P, EVEN)
        at = _cells(x, image, x_image, w, c, X_PIXEL)
        dy_at = _cells(dy, image, dy_image, w, c, DY_PIXEL)
        dx_at = _cells(dx, image, dx_image, w, c, DX_PIXEL)
        z_this, z_next, x0, x1 = _filled(base, G), _filled(base, G), _filled(zero, P), _filled(zero, P)
        dx_this, dx_next = _filled(zero, P), _filled(zero, P)
        if X_READ:
            n = _load(at, first * x_step, x_there, True, -2 * BESIDE, X, X_PIXEL, V)
        m = _load(dy_at, (first - 1) * dy_step, there, first > first_g, -BESIDE, G, DY_PIXEL, V)
        for i in range(first, last + 1):
            g = _float(m, G)
            m = _load(dy_at, i * dy_step, there, (i >= first_g) & (i <= last_g), -BESIDE, G, DY_PIXEL, V)
            if X_READ:
                x2 = _float(n, X)
                n = _load(at, (i + 1) * x_step, x_there, (i < last) & (i + 1 < height), -2 * BESIDE, X, X_PIXEL, V)
            if SILU:
                z = _weigh(z_this, w20, w21, w22, x2, G, BESIDE)
                z_this = _weigh(z_next, w10, w11, w12, x2, G, BESIDE)
                z_next = _weigh(_filled(base, G), w00, w01, w02, x2, G, BESIDE)
                made = ()
                for p in tl.static_range(G):
                    s = _sigmoid(z[p])
                    made = made + (g[p] * s * (z[p] * (1.0 - s) + 1.0),)
                g = made
            if SUMS:
                own = (i > row0) & (i <= end)
                x2_own = ()
                for p in tl.static_range(P):
                    x2_own = x2_own + (x2[p + 2 * BESIDE],)
                slopes = ()
                for p in tl.static_range(G):
                    slopes = slopes + (tl.where(own, g[p], 0.0),)
                for p in tl.static_range(P):
                    d += slopes[p + BESIDE]
                    d01 = d01 + slopes[p + BESIDE] * x0[p]
                    d11 = d11 + slopes[p + BESIDE] * x1[p]
                    d21 = d21 + slopes[p + BESIDE] * x2_own[p]
                    if p + 1 < P + BESIDE:
                        d00 = d00 + slopes[p + BESIDE + 1] * x0[p]
                        d10 = d10 + slopes[p + BESIDE + 1] * x1[p]
                        d20 = d20 + slopes[p + BESIDE + 1] * x2_own[p]
                    if p + BESIDE > 0:
                        d02 = d02 + slopes[p + BESIDE - 1] * x0[p]
                        d12 = d12 + slopes[p + BESIDE - 1] * x1[p]
                        d22 = d22 + slopes[p + BESIDE - 1] * x2_own[p]
                x0, x1 = x1, x2_own
            if DX:
                done = _weigh(dx_this, w02, w01, w00, g, P, BESIDE)
                dx_this = _weigh(dx_next, w12, w11, w10, g, P, BESIDE)
                dx_next = _weigh(_filled(zero, P), w22, w21, w20, g, P, BESIDE)
                for p in tl.static_range(P):
                    tl.store(
                        _moved(dx_at, (i - 2) * dx_step + p * DX_PIXEL, V),
                        done[p].to(dx.dtype.element_ty),
                        there[p + BESIDE] & (i >= row0 + 2),
                    )
        if DX:
            for p in tl.static_range(P):
                tl.store(
                    _moved(dx_at, (height - 1) * dx_step + p * DX_PIXEL, V),
                    dx_this[p].to(dx.dtype.element_ty),
                    there[p + BESIDE] & (end == height),
                )
    if SUMS:
        part = parts + (group * strips + row0 // rows).to(tl.int64) * 10 * channels + c
        tl.store(part, tl.sum(d00, 0), inside)
        tl.store(part + channels, tl.sum(d01, 0), inside)
        tl.store(part + 2 * channels, tl.sum(d02, 0), inside)
        tl.store(part + 3 * channels, tl.sum(d10, 0), inside)
        tl.store(part + 4 * channels, tl.sum(d11, 0), inside)
        tl.store(part + 5 * channels, tl.sum(d12, 0), inside)
        tl.store(part + 6 * channels, tl.sum(d20, 0), inside)
        tl.store(part + 7 * channels, tl.sum(d21, 0), inside)
        tl.store(part + 8 * channels, tl.sum(d22, 0), inside)
        tl.store(part + 9 * channels, tl.sum(d, 0), inside)
