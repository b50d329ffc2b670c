"""The forward kernels: aggregates of chunks, the carry from chunk to chunk, outputs.

A walk of L places is cut into S chunks. Where S = 1 only `outputs` runs. Else `aggregates` computes for each chunk the
sum of its steps and the state it would end in if it began with zero, `carry` makes of these the states that chunks
begin with, in order, and `outputs` starts from them. Chunks are counted from the walk's start also where a
direction runs it backwards, so that both directions of a pair work on the same pixels.

Sizes and strides of a tensor ``t`` come as ``t_image, t_dir, t_channel`` (elements) and, a constant, ``T_BYTES`` from
pixel to pixel. `vmamba.kernels.triton.scans.launch` says what the other arguments are.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vmamba.kernels.triton.jit import kernel
from vmamba.kernels.triton.scans.tile import (
    advance,
    at_pixels,
    cells,
    parameters,
    piece_of,
    place,
    read_row,
    read_tile,
    skip,
    steps,
    steps_at,
    store_tile,
    way_of,
)

_LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@kernel
def outputs(
    u, s, weight, bias, A, D, B, C, y, start, kept, last, u_image, u_dir, u_channel, s_image, s_dir, s_channel, B_image,
    B_dir, B_state, C_image, C_dir, C_state, y_image, y_dir, y_channel, images, length, chunk, chunks, channels, states,
    state0, dirs, dir0, groups, backwards, add, base0, mul0, shift0, stride0, jump0, base1, mul1, shift1, stride1,
    jump1,
    U_BYTES: tl.constexpr, S_BYTES: tl.constexpr, B_BYTES: tl.constexpr, C_BYTES: tl.constexpr, Y_BYTES: tl.constexpr,
    R: tl.constexpr, RP: tl.constexpr, SPLIT: tl.constexpr, NB: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr,
    SOFTPLUS: tl.constexpr, BIAS: tl.constexpr, DENSE: tl.constexpr, TIGHT: tl.constexpr,
    EDGE: tl.constexpr, MASKED: tl.constexpr, GROUP: tl.constexpr, PAIR: tl.constexpr, SAVE: tl.constexpr,
    SKIP: tl.constexpr, CB: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Write y of one chunk and channel block, PAIR directions after each other over memory that stays in the cache.

    FIRST: walks begin with a given state, which one chunk alone finds in ``start``. LAST: the state behind a walk is
    written to ``last``; walks are not run backwards then.
    """
    block, chunk_id, group, image = piece_of(tl.program_id(0).to(tl.int64), channels, chunks, groups, BC)
    c = block * BC + tl.arange(0, BC)
    inside = c < channels
    n = state0 + tl.arange(0, NB)
    h_mask = inside[None, :] & (n < states)[:, None]
    row = tl.arange(0, BT)
    t0 = chunk_id * chunk
    count = tl.minimum(chunk, length - t0)
    h_size = images.to(tl.int64) * dirs * states * channels  # the states of all images at one place

    for half in range(PAIR):
        k = dir0 + group + half * 2
        far = k.to(tl.int64)
        way = way_of(k, backwards, t0, count, base0, mul0, shift0, stride0, jump0, base1, mul1, shift1, stride1, jump1)
        u_at = u + image * u_image + far * u_dir
        s_at = s + image * s_image + far * s_dir
        B_at = B + image * B_image + far * B_dir + state0 * B_state
        C_at = C + image * C_image + far * C_dir + state0 * C_state
        y_at = y + image * y_image + far * y_dir
        more = add + half  # y has something already
        h_at = ((image * dirs + k) * states + n[:, None]) * channels + c[None, :]
        high, low, of_bias, a = parameters(weight, bias, A, k, c, n, channels, states, s.dtype.element_ty,
                                           R, RP, SPLIT, BIAS, BC)  # fmt: skip
        d = skip(D, k, c, channels, more, PAIR) if SKIP else tl.zeros([BC], tl.float32)
        h = tl.load(start + chunk_id * h_size + h_at, h_mask & ((chunks > 1) | FIRST), 0.0)

        full = count // BT * BT
        for i in range(0, full, BT):
            if SAVE:
                if i % GROUP == 0:
                    tl.store(kept + (t0 + i) // GROUP * h_size + h_at, h, h_mask)
            h = _tile(
                u_at, s_at, B_at, C_at, y_at, u_channel, s_channel, y_channel, B_state, C_state, high, low, of_bias, a,
                d, h, way, i, row, c, row < BT, inside, n < states, more, U_BYTES, S_BYTES, B_BYTES, C_BYTES, Y_BYTES,
                R, RP, SPLIT, NB, BT, BC, SOFTPLUS, DENSE, TIGHT, EDGE, MASKED, CB, False,
            )  # fmt: skip
        if full < count:
            if SAVE:
                if full % GROUP == 0:
                    tl.store(kept + (t0 + full) // GROUP * h_size + h_at, h, h_mask)
            h = _tile(
                u_at, s_at, B_at, C_at, y_at, u_channel, s_channel, y_channel, B_state, C_state, high, low, of_bias, a,
                d, h, way, full, row, c, full + row < count, inside, n < states, more, U_BYTES, S_BYTES, B_BYTES,
                C_BYTES, Y_BYTES, R, RP, SPLIT, NB, BT, BC, SOFTPLUS, DENSE, TIGHT, EDGE, MASKED, CB, True,
            )  # fmt: skip
        if LAST:
            tl.store(last + h_at, h, h_mask & (chunk_id == chunks - 1))


@triton.jit
def _tile(
    u, s, B, C, y, u_channel, s_channel, y_channel, B_state, C_state, high, low, bias, a, d, h, way, i, row, c, valid,
    inside, n_inside, more,
    U_BYTES: tl.constexpr, S_BYTES: tl.constexpr, B_BYTES: tl.constexpr, C_BYTES: tl.constexpr, Y_BYTES: tl.constexpr,
    R: tl.constexpr, RP: tl.constexpr, SPLIT: tl.constexpr, NB: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr,
    SOFTPLUS: tl.constexpr, DENSE: tl.constexpr, TIGHT: tl.constexpr, EDGE: tl.constexpr, MASKED: tl.constexpr,
    CB: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """Write y of one tile, after or onto what stands there, and return the state behind it.

    All loads stand before all arithmetic, so that a tile waits for memory once.
    """
    pixel = place(way, i + row)
    x = read_tile(cells(u, pixel, U_BYTES, c, u_channel, DENSE), valid, inside, EDGE, TAIL)
    steps_in = steps_at(s, s_channel, pixel, c, valid, inside, S_BYTES, R, RP, SPLIT, EDGE, TAIL)
    if NB == 1:
        B_at = at_pixels(B, pixel, B_BYTES)
        B_row = read_row(B_at, valid, TAIL)
        C_row = read_row(B_at + CB if CB else at_pixels(C, pixel, C_BYTES), valid, TAIL)
    y_at = cells(y, pixel, Y_BYTES, c, y_channel, DENSE)
    written = (valid[:, None] | (not TAIL)) & (inside[None, :] | (not EDGE)) & (more != 0)
    y_old = tl.load(y_at, written, 0.0)

    x = x.to(tl.float32)
    step, _, _ = steps(steps_in, high, low, bias, valid, R, SPLIT, SOFTPLUS, TAIL)
    v = step * x
    if NB == 1:
        v *= B_row.to(tl.float32)[:, None]
    h, found = advance(step, v, h, a, B, C, B_state, C_state, way, i, n_inside,
                       B_BYTES, C_BYTES, TIGHT, BT, NB, BC, False, True, MASKED)  # fmt: skip
    if NB == 1:
        found *= C_row.to(tl.float32)[:, None]
    store_tile(y_at, found + d[None, :] * x + y_old.to(tl.float32), valid, inside, EDGE, TAIL)
    return h


@kernel
def aggregates(
    u, s, weight, bias, A, B, sums, ends, u_image, u_dir, u_channel, s_image, s_dir, s_channel, B_image, B_dir, B_state,
    images, length, chunk, chunks, channels, states, state0, dirs, backwards, base0, mul0, shift0, stride0, jump0,
    base1, mul1, shift1, stride1, jump1,
    U_BYTES: tl.constexpr, S_BYTES: tl.constexpr, B_BYTES: tl.constexpr, R: tl.constexpr, RP: tl.constexpr,
    SPLIT: tl.constexpr, NB: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, SOFTPLUS: tl.constexpr,
    BIAS: tl.constexpr, DENSE: tl.constexpr, TIGHT: tl.constexpr, EDGE: tl.constexpr, MASKED: tl.constexpr,
    PAIR: tl.constexpr, ADJOINT: tl.constexpr,
):  # fmt: skip
    """Write the sum of steps and the end state of one chunk that begins with zero, PAIR directions after each other.

    ADJOINT does the same for the adjoint state: u is dy, B is C, and ``backwards`` says where that runs backwards.
    """
    block, chunk_id, group, image = piece_of(tl.program_id(0).to(tl.int64), channels, chunks, dirs // PAIR, BC)
    c = block * BC + tl.arange(0, BC)
    inside = c < channels
    n = state0 + tl.arange(0, NB)
    h_mask = inside[None, :] & (n < states)[:, None]
    row = tl.arange(0, BT)
    t0 = chunk_id * chunk
    count = tl.minimum(chunk, length - t0)

    for half in range(PAIR):
        k = group + half * 2
        far = k.to(tl.int64)
        way = way_of(k, backwards, t0, count, base0, mul0, shift0, stride0, jump0, base1, mul1, shift1, stride1, jump1)
        u_at = u + image * u_image + far * u_dir
        s_at = s + image * s_image + far * s_dir
        B_at = B + image * B_image + far * B_dir + state0 * B_state
        high, low, of_bias, a = parameters(weight, bias, A, k, c, n, channels, states, s.dtype.element_ty,
                                           R, RP, SPLIT, BIAS, BC)  # fmt: skip
        h = tl.zeros([NB, BC], tl.float32)
        total = tl.zeros([BT, BC], tl.float32)
        full = count // BT * BT
        for i in range(0, full, BT):
            h, total = _aggregate(
                u_at, s_at, B_at, u_channel, s_channel, B_state, high, low, of_bias, a, h, total, way, i, row, c,
                row < BT, inside, n < states, U_BYTES, S_BYTES, B_BYTES, R, RP, SPLIT, NB, BT, BC, SOFTPLUS, DENSE,
                TIGHT, EDGE, MASKED, ADJOINT, False,
            )  # fmt: skip
        if full < count:
            h, total = _aggregate(
                u_at, s_at, B_at, u_channel, s_channel, B_state, high, low, of_bias, a, h, total, way, full, row, c,
                full + row < count, inside, n < states, U_BYTES, S_BYTES, B_BYTES, R, RP, SPLIT, NB, BT, BC, SOFTPLUS,
                DENSE, TIGHT, EDGE, MASKED, ADJOINT, True,
            )  # fmt: skip
        at = (chunk_id * images.to(tl.int64) + image) * dirs + k
        tl.store(ends + (at * states + n[:, None]) * channels + c[None, :], h, h_mask)
        tl.store(sums + at * channels + c, tl.sum(total, 0), inside)


@triton.jit
def _aggregate(
    u, s, B, u_channel, s_channel, B_state, high, low, bias, a, h, total, way, i, row, c, valid, inside, n_inside,
    U_BYTES: tl.constexpr, S_BYTES: tl.constexpr, B_BYTES: tl.constexpr, R: tl.constexpr, RP: tl.constexpr,
    SPLIT: tl.constexpr, NB: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, SOFTPLUS: tl.constexpr,
    DENSE: tl.constexpr, TIGHT: tl.constexpr, EDGE: tl.constexpr, MASKED: tl.constexpr, ADJOINT: tl.constexpr,
    TAIL: tl.constexpr,
):  # fmt: skip
    """Return the state behind one tile, and the sums of steps with its own added."""
    pixel = place(way, i + row)
    x = read_tile(cells(u, pixel, U_BYTES, c, u_channel, DENSE), valid, inside, EDGE, TAIL)
    steps_in = steps_at(s, s_channel, pixel, c, valid, inside, S_BYTES, R, RP, SPLIT, EDGE, TAIL)
    if NB == 1:
        B_row = read_row(at_pixels(B, pixel, B_BYTES), valid, TAIL)
    step, _, _ = steps(steps_in, high, low, bias, valid, R, SPLIT, SOFTPLUS, TAIL)
    v = x.to(tl.float32)
    if not ADJOINT:
        v *= step
    if NB == 1:
        v *= B_row.to(tl.float32)[:, None]
    h, _ = advance(step, v, h, a, B, B, B_state, B_state, way, i, n_inside,
                   B_BYTES, B_BYTES, TIGHT, BT, NB, BC, ADJOINT, False, MASKED)  # fmt: skip
    return h, total + step


@kernel
def carry(sums, ends, A, first, rows, chunks, channels, states, dirs, backwards, BC: tl.constexpr,
          FIRST: tl.constexpr):  # fmt: skip
    """Replace the end states of chunks by the states that chunks begin with, in order, one state of one direction.

    FIRST: the first of them in order begins with ``first``.
    """
    blocks = tl.cdiv(channels, BC)
    pid = tl.program_id(0).to(tl.int64)
    c = (pid % blocks).to(tl.int32) * BC + tl.arange(0, BC)
    pid = pid // blocks  # (image·dirs + k)·states + n
    inside = c < channels
    n = (pid % states).to(tl.int32)
    at = pid // states
    k = (at % dirs).to(tl.int32)
    a = tl.load(A + (k * states + n) * channels + c, inside, 0.0) * _LOG2E
    reverse = (backwards >> k) & 1
    h = tl.zeros([BC], tl.float32)
    if FIRST:
        h = tl.load(first + pid * channels + c, inside, 0.0)
    for i in range(chunks):
        chunk = tl.where(reverse == 0, i, chunks - 1 - i).to(tl.int64)
        end_at = ends + (chunk * rows * states + pid) * channels + c
        total = tl.load(sums + (chunk * rows + at) * channels + c, inside, 0.0)
        end = tl.load(end_at, inside, 0.0)
        tl.store(end_at, h, inside)
        h = tl.exp2(a * total) * h + end
