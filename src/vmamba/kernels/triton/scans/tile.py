"""What the scan's Triton kernels are made of: walks over the map, tiles of steps, the recurrence along their rows.

A tile is ``[BT, BC]``: BT consecutive places of a walk, BC = 32·V channels. One warp holds it, each lane V channels of
all rows, so that the recurrence over rows needs no exchange between lanes. Rows are taken out of a tile by halving it
again and again, which costs nothing: they are different registers of the same lane.

The kernels use exp2 and multiply-adds only, which also the interpreter (``TRITON_INTERPRET=1``) has.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vmamba.kernels.triton.jit import INTERPRETED

_LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
_INTERPRETED: tl.constexpr = tl.constexpr(INTERPRETED)


@triton.jit
def piece_of(program, channels, chunks, groups, BC: tl.constexpr):
    """What a program works on: its channel block, chunk, group of directions, and image (64 bits)."""
    blocks = tl.cdiv(channels, BC)
    block = (program % blocks).to(tl.int32)
    program = program // blocks
    chunk_id = (program % chunks).to(tl.int32)
    program = program // chunks
    return block, chunk_id, (program % groups).to(tl.int32), program // groups


@triton.jit
def way_of(k, backwards, t0, count, base0, mul0, shift0, stride0, jump0, base1, mul1, shift1, stride1, jump1):
    """How direction ``k`` goes through a chunk of ``count`` places from ``t0``: its walk, first place, sign, count."""
    second = k % 2 != 0
    base, mul, shift = tl.where(second, base1, base0), tl.where(second, mul1, mul0), tl.where(second, shift1, shift0)
    stride, jump = tl.where(second, stride1, stride0), tl.where(second, jump1, jump0)
    reverse = (backwards >> k) & 1
    return base, mul, shift, stride, jump, t0 + reverse * (count - 1), 1 - 2 * reverse, count


@triton.jit
def place(way, i):
    """The pixel of the i-th place of a chunk: ``base + t·stride + (t // inner)·jump``, the division by a product."""
    t = way[5] + way[6] * i
    line = tl.umulhi(t.to(tl.uint32), way[1].to(tl.uint32)) >> way[2].to(tl.uint32)
    return way[0] + t * way[3] + line.to(tl.int32) * way[4]


@triton.jit
def at_pixels(pointer, pixel, BYTES: tl.constexpr):
    """``pointer`` moved by whole pixels, in one instruction: a 64-bit sum with the product of 32-bit numbers.

    Only a constant number of bytes lets LLVM see that the product is such a one.
    """
    size: tl.constexpr = pointer.dtype.scalar
    moved = pointer.to(tl.pointer_type(tl.int8), bitcast=True) + pixel.to(tl.int64) * BYTES
    return moved.to(size, bitcast=True)


@triton.jit
def cells(pointer, pixel, BYTES: tl.constexpr, c, channel_stride, DENSE: tl.constexpr):
    """The addresses of a tile. Lanes are neighbours along channels: lane i has channels i, i + 32, …

    Nothing is said of alignment: a lane that loaded neighbours at once would save loads, and need exchanges between
    lanes after the product with the weight, which cost more (counted: 48 instructions instead of 44).
    """
    if DENSE:
        return at_pixels((pointer + c)[None, :], pixel[:, None], BYTES)
    return at_pixels((pointer + c.to(tl.int64) * channel_stride)[None, :], pixel[:, None], BYTES)


@triton.jit
def read_tile(addresses, valid, inside, EDGE: tl.constexpr, TAIL: tl.constexpr):
    """A tile in memory's own dtype, zero outside the chunk (TAIL) and beyond the last channel (EDGE)."""
    if TAIL and EDGE:
        found = tl.load(addresses, valid[:, None] & inside[None, :], 0.0)
    elif TAIL:
        found = tl.load(addresses, valid[:, None] & (inside[None, :] | True), 0.0)
    elif EDGE:
        found = tl.load(addresses, (valid[:, None] | True) & inside[None, :], 0.0)
    else:
        found = tl.load(addresses)
    return found


@triton.jit
def load_tile(addresses, valid, inside, EDGE: tl.constexpr, TAIL: tl.constexpr):
    """The same in float32."""
    return read_tile(addresses, valid, inside, EDGE, TAIL).to(tl.float32)


@triton.jit
def store_tile(addresses, found, valid, inside, EDGE: tl.constexpr, TAIL: tl.constexpr):
    """Write a tile in the memory's own dtype."""
    found = found.to(addresses.dtype.element_ty)
    if TAIL and EDGE:
        tl.store(addresses, found, valid[:, None] & inside[None, :])
    elif TAIL:
        tl.store(addresses, found, valid[:, None] & (inside[None, :] | True))
    elif EDGE:
        tl.store(addresses, found, (valid[:, None] | True) & inside[None, :])
    else:
        tl.store(addresses, found)


@triton.jit
def read_row(addresses, valid, TAIL: tl.constexpr):
    """One number for each row of a tile, in memory's own dtype."""
    return tl.load(addresses, valid, 0.0) if TAIL else tl.load(addresses)


@triton.jit
def softplus(p):
    """``log(1 + exp(p))`` and ``exp(-|p|)``.

    log1p(e) as e times a polynomial of degree 7 (relative error 4e-7 on [0, 1]): ``log(1 + e)`` in float32 would lose
    the small steps, and a library logarithm costs three times as much.
    """
    e = tl.exp2(tl.abs(p) * -_LOG2E)
    series = e * -0.008539202623069286 + 0.04408961907029152
    series = series * e - 0.10768170654773712
    series = series * e + 0.17745241522789001
    series = series * e - 0.24495463073253632
    series = series * e + 0.33275479078292847
    series = series * e - 0.4999740421772003
    series = series * e + 0.9999998211860657
    return tl.maximum(p, 0.0) + e * series, e


@triton.jit
def load_weight(weight, kc, inside, dtype: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, SPLIT: tl.constexpr):
    """A block's step projection ``[BC, RP]``, for 16-bit low-rank steps as a sum of two that is exact to 16 bits.

    SPLIT = 0: one alone, in float32. 1: two 16-bit ones. 2: both in one, the second half of whose columns is free.
    """
    r = tl.arange(0, RP)[None, :]
    column = r % (RP // 2) if SPLIT == 2 else r
    whole = tl.load(weight + kc[:, None] * R + column, inside[:, None] & (column < R), 0.0)
    if SPLIT == 0:
        high, low = whole, whole
    else:
        high = whole.to(dtype)
        low = (whole - high.to(tl.float32)).to(dtype)
        if SPLIT == 2:
            high = tl.where(r < RP // 2, high, low)
    return high, low


@triton.jit
def product(x, y):
    """A product of 16-bit matrices, in float32. (Triton 3.6 to 3.8 when interpreted multiply their bit patterns.)"""
    if _INTERPRETED:
        x, y = x.to(tl.float32), y.to(tl.float32)
    return tl.dot(x, y)


@triton.jit
def steps(s, high, low, bias, valid, R: tl.constexpr, SPLIT: tl.constexpr, SOFTPLUS: tl.constexpr,
          TAIL: tl.constexpr):  # fmt: skip
    """The steps δ of a tile, ``p`` before softplus, and ``exp(-|p|)``. Rows outside the chunk have step 0: they decay
    nothing and add nothing.

    With R > 0 the weight ``[BC, RP]``, as `load_weight` has it, projects the low-rank steps ``s`` (`low_rank_at`); with
    R = 0 ``s [BT, BC]`` is p without its bias.
    """
    if R > 0:
        # Channels are the product's rows, of which the matrix unit takes 16 at a time, places its columns: 8.
        if SPLIT == 0:
            p = tl.dot(high, s.to(tl.float32), input_precision="tf32x3")
        else:
            p = product(high, s)
            if SPLIT == 1:
                p += product(low, s)
        p = tl.trans(p) + bias[None, :]
    else:
        p = s.to(tl.float32) + bias[None, :]
    if SOFTPLUS:
        step, e = softplus(p)
    else:
        step, e = p, p
    if TAIL:
        step = tl.where(valid[:, None], step, 0.0)
    return step, p, e


@triton.jit
def low_rank_at(s, pixel, valid, RP: tl.constexpr, S_BYTES: tl.constexpr, R: tl.constexpr, SPLIT: tl.constexpr,
                TAIL: tl.constexpr):  # fmt: skip
    """The low-rank steps of a tile, ``[RP, BT]``, zero below R, twice where the weight is (`load_weight`)."""
    if R > 0:
        r = tl.arange(0, RP)[:, None]
        if SPLIT == 2:
            r = r % (RP // 2)
        mask = (r < R) & (valid[None, :] | (not TAIL))
        found = tl.load(at_pixels(s + r, pixel[None, :], S_BYTES), mask, 0.0)
    else:
        found = 0.0
    return found


@triton.jit
def steps_at(s, s_channel, pixel, c, valid, inside, S_BYTES: tl.constexpr, R: tl.constexpr, RP: tl.constexpr,
              SPLIT: tl.constexpr, EDGE: tl.constexpr, TAIL: tl.constexpr):  # fmt: skip
    """What `steps` takes: a tile's low-rank steps, or its steps."""
    if R > 0:
        found = low_rank_at(s, pixel, valid, RP, S_BYTES, R, SPLIT, TAIL)
    else:
        found = read_tile(cells(s, pixel, S_BYTES, c, s_channel, False), valid, inside, EDGE, TAIL)
    return found


@triton.jit
def halve(x, n: tl.constexpr, BC: tl.constexpr):
    """The upper and the lower half of the n rows of a tile."""
    return tl.split(tl.permute(tl.reshape(x, [2, n // 2, BC]), [1, 2, 0]))


@triton.jit
def glue(upper, lower, n: tl.constexpr, BC: tl.constexpr):
    """The inverse of `halve`."""
    return tl.reshape(tl.permute(tl.join(upper, lower), [2, 0, 1]), [n, BC])


@triton.jit
def states_at(pointer, state_stride, way, i, n_inside, BYTES: tl.constexpr, TIGHT: tl.constexpr, MASKED: tl.constexpr,
              NB: tl.constexpr):  # fmt: skip
    """B or C of the NB states at the i-th place of a chunk, as a column ``[NB, 1]``.

    TIGHT is 0 where states are apart, else how many of them may be loaded at once.
    """
    n = tl.arange(0, NB)
    # First the place, then the states: so all loads share one address and differ by constants.
    addresses = at_pixels(pointer, place(way, tl.minimum(i, way[7] - 1)), BYTES)
    if TIGHT:
        size: tl.constexpr = pointer.dtype.element_ty.primitive_bitwidth // 8 * TIGHT
        addresses = tl.multiple_of(addresses + n, size)
    else:
        addresses = addresses + n * state_stride
    found = tl.load(addresses, n_inside, 0.0) if MASKED else tl.load(addresses)
    return found.to(tl.float32)[:, None]


@triton.jit
def advance(step, v, h, a, B, C, B_state, C_state, way, i, n_inside, B_BYTES: tl.constexpr, C_BYTES: tl.constexpr,
            TIGHT: tl.constexpr, ROWS: tl.constexpr, NB: tl.constexpr, BC: tl.constexpr, ADJOINT: tl.constexpr,
            OUT: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Run the recurrence along a tile's rows: ``h = 2^(step·a)·h + v``; return h and what each row gives to y.

    With one state (NB = 1) v has B in it already and the rows are the states themselves. With more, h is ``[NB, BC]``,
    B and C come from memory row by row, and a row is ``Σ C·h``. ADJOINT runs ``h = 2^(step·a)·(h + v)``.
    """
    if ROWS == 1:
        decay = tl.exp2(step * a)
        if NB > 1:
            v = v * states_at(B, B_state, way, i, n_inside, B_BYTES, TIGHT, MASKED, NB)
        if ADJOINT:
            h = decay * (h + v)
        else:
            h = decay * h + v
        found = h
        if OUT and NB > 1:
            C_n = states_at(C, C_state, way, i, n_inside, C_BYTES, TIGHT, MASKED, NB)
            found = tl.sum(C_n * h, 0)[None, :]
    else:
        HALF: tl.constexpr = ROWS // 2
        step0, step1 = halve(step, ROWS, BC)
        v0, v1 = halve(v, ROWS, BC)
        h, y0 = advance(step0, v0, h, a, B, C, B_state, C_state, way, i, n_inside,
                        B_BYTES, C_BYTES, TIGHT, HALF, NB, BC, ADJOINT, OUT, MASKED)  # fmt: skip
        h, y1 = advance(step1, v1, h, a, B, C, B_state, C_state, way, i + HALF, n_inside,
                        B_BYTES, C_BYTES, TIGHT, HALF, NB, BC, ADJOINT, OUT, MASKED)  # fmt: skip
        found = glue(y0, y1, ROWS, BC) if OUT else h
    return h, found


@triton.jit
def parameters(weight, bias, A, k, c, n, channels, states, dtype: tl.constexpr, R: tl.constexpr, RP: tl.constexpr,
               SPLIT: tl.constexpr, BIAS: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    """A block's weight (`load_weight`), bias, and A in powers of two ``[NB, BC]``; zero beyond its channels."""
    kc = k * channels + c
    inside = c < channels
    a = (
        tl.load(A + (k * states + n)[:, None] * channels + c[None, :], inside[None, :] & (n < states)[:, None], 0.0)
        * _LOG2E
    )
    of_bias = tl.load(bias + kc, inside, 0.0) if BIAS else tl.zeros([BC], tl.float32)
    if R > 0:
        high, low = load_weight(weight, kc, inside, dtype, R, RP, SPLIT)
    else:
        high, low = 0.0, 0.0
    return high, low, of_bias, a


@triton.jit
def skip(D, k, c, channels, more, PAIR: tl.constexpr):
    """What a block's channels multiply u with: D of direction k, or, where directions share their pixels and so skip
    the same ones, the sum of theirs, once."""
    mask = (c < channels) & (more == 0)
    if PAIR == 1:
        d = tl.load(D + k * channels + c, mask, 0.0)
    else:
        d = tl.load(D + c, mask, 0.0)
        for other in range(1, 4):
            d += tl.load(D + other * channels + c, mask, 0.0)
    return d
