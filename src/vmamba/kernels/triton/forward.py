"""The forward kernels: aggregates of chunks, the carry from chunk to chunk, outputs.

A walk of L places is cut into S chunks. Where S = 1 only `outputs` runs. Else `aggregates` computes for each chunk the
sum of its steps and the state it would end in if it began with zero, `carry` makes of these the states that chunks
begin with, in order, and `outputs` starts from them. Chunks are counted from the walk's start also where a
direction runs it backwards, so that both directions of a pair work on the same pixels.

Sizes and strides of a tensor ``t`` come as ``t_image, t_dir, t_channel`` (elements) and, a constant, ``T_BYTES`` from
pixel to pixel. `vmamba.kernels.triton.launch` says what the other arguments are.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vmamba.kernels.triton.jit import kernel
from vmamba.kernels.triton.tile import (
    advance,
    at_pixels,
    beside,
    cells,
    load_row,
    load_tile,
    low_rank_at,
    parameters,
    place,
    skip,
    steps,
    store_tile,
    way_of,
)

_LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@kernel
def outputs(
    u, s, weight, bias, A, D, B, C, y, start, kept, u_image, u_dir, u_channel, s_image, s_dir, s_channel, B_image,
    B_dir, B_state, C_image, C_dir, C_state, y_image, y_dir, y_channel, images, length, chunk, chunks, channels, states,
    state0, dirs, dir0, groups, backwards, add, base0, mul0, shift0, stride0, jump0, base1, mul1, shift1, stride1,
    jump1,
    U_BYTES: tl.constexpr, S_BYTES: tl.constexpr, B_BYTES: tl.constexpr, C_BYTES: tl.constexpr, Y_BYTES: tl.constexpr,
    R: tl.constexpr, RP: tl.constexpr, SPLIT: tl.constexpr, NB: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr,
    NC: tl.constexpr, SOFTPLUS: tl.constexpr, BIAS: tl.constexpr, DENSE: tl.constexpr, TIGHT: tl.constexpr,
    EDGE: tl.constexpr, MASKED: tl.constexpr, GROUP: tl.constexpr, PAIR: tl.constexpr, SAVE: tl.constexpr,
    SKIP: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """Write y of one chunk and NC channel blocks, PAIR directions after each other over memory that stays in the cache.

    The blocks of a program take turns at each tile: they share its addresses, low-rank steps, B and C.
    """
    blocks = tl.cdiv(channels, BC * NC)
    pid = tl.program_id(0).to(tl.int64)
    c = (pid % blocks).to(tl.int32) * (BC * NC) + tl.arange(0, BC)
    pid = pid // blocks
    chunk_id = (pid % chunks).to(tl.int32)
    pid = pid // chunks
    group = (pid % groups).to(tl.int32)
    image = pid // groups
    n = state0 + tl.arange(0, NB)
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
        held, d, h = (), (), ()
        for j in tl.static_range(NC):
            held += (parameters(weight, bias, A, k, c + j * BC, n, channels, states, s.dtype.element_ty,
                                      R, RP, SPLIT, BIAS, BC),)  # fmt: skip
            d += (skip(D, k, c + j * BC, channels, more, PAIR) if SKIP else tl.zeros([BC], tl.float32),)
            h_mask = _mask(c + j * BC, n, channels, states) & (chunks > 1)
            h += (tl.load(start + chunk_id * h_size + h_at + j * BC, h_mask, 0.0),)

        full = count // BT * BT
        for i in range(0, full, BT):
            if SAVE:
                if i % GROUP == 0:
                    _keep(kept + (t0 + i) // GROUP * h_size + h_at, h, c, n, channels, states, BC, NC)
            h = _tile(
                u_at, s_at, B_at, C_at, y_at, u_channel, s_channel, y_channel, B_state, C_state, held, d, h, way, i,
                row, c, row < BT, channels, n < states, more, U_BYTES, S_BYTES, B_BYTES, C_BYTES, Y_BYTES, R, RP, SPLIT,
                NB, BT, BC, NC, SOFTPLUS, DENSE, TIGHT, EDGE, MASKED, CB, False,
            )  # fmt: skip
        if full < count:
            if SAVE:
                if full % GROUP == 0:
                    _keep(kept + (t0 + full) // GROUP * h_size + h_at, h, c, n, channels, states, BC, NC)
            _tile(
                u_at, s_at, B_at, C_at, y_at, u_channel, s_channel, y_channel, B_state, C_state, held, d, h, way, full,
                row, c, full + row < count, channels, n < states, more, U_BYTES, S_BYTES, B_BYTES, C_BYTES, Y_BYTES, R,
                RP, SPLIT, NB, BT, BC, NC, SOFTPLUS, DENSE, TIGHT, EDGE, MASKED, CB, True,
            )  # fmt: skip


@triton.jit
def _mask(c, n, channels, states):
    """Where a block's states are some of the scan's."""
    return (c < channels)[None, :] & (n < states)[:, None]


@triton.jit
def _keep(at, h, c, n, channels, states, BC: tl.constexpr, NC: tl.constexpr):
    """Store the states of all blocks."""
    for j in tl.static_range(NC):
        tl.store(at + j * BC, h[j], _mask(c + j * BC, n, channels, states))


@triton.jit
def _block(held, low_rank, x_at, s, u_channel, s_channel, pixel, c, valid, inside, S_BYTES: tl.constexpr,
           R: tl.constexpr, SPLIT: tl.constexpr, SOFTPLUS: tl.constexpr, DENSE: tl.constexpr, EDGE: tl.constexpr,
           TAIL: tl.constexpr, FROM: tl.constexpr):  # fmt: skip
    """Of the block FROM channels behind ``c``: u and the steps of a tile, and A."""
    high, low, bias, a = held
    x = load_tile(beside(x_at, FROM, u_channel, DENSE), valid, inside, EDGE, TAIL)
    step, _, _ = steps(low_rank, s, s_channel, high, low, bias, pixel, c + FROM, valid, inside,
                       S_BYTES, R, SPLIT, SOFTPLUS, EDGE, TAIL)  # fmt: skip
    return x, step, a


@triton.jit
def _tile(
    u, s, B, C, y, u_channel, s_channel, y_channel, B_state, C_state, held, d, h, way, i, row, c, valid, channels,
    n_inside, more,
    U_BYTES: tl.constexpr, S_BYTES: tl.constexpr, B_BYTES: tl.constexpr, C_BYTES: tl.constexpr, Y_BYTES: tl.constexpr,
    R: tl.constexpr, RP: tl.constexpr, SPLIT: tl.constexpr, NB: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr,
    NC: tl.constexpr, SOFTPLUS: tl.constexpr, DENSE: tl.constexpr, TIGHT: tl.constexpr, EDGE: tl.constexpr,
    MASKED: tl.constexpr, CB: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """Write y of one tile, after or onto what stands there, and return the states behind it."""
    pixel = place(way, i + row)
    x_at = cells(u, pixel, U_BYTES, c, u_channel, DENSE)
    y_at = cells(y, pixel, Y_BYTES, c, y_channel, DENSE)
    low_rank = low_rank_at(s, pixel, valid, RP, S_BYTES, R, SPLIT, TAIL)
    if NB == 1:
        B_at = at_pixels(B, pixel, B_BYTES)
        C_at = B_at + CB if CB else at_pixels(C, pixel, C_BYTES)
        B_row, C_row = load_row(B_at, valid, TAIL)[:, None], load_row(C_at, valid, TAIL)[:, None]
    else:
        B_row, C_row = 1.0, 1.0
    behind = ()
    for j in tl.static_range(NC):
        inside = c + j * BC < channels
        x, step, a = _block(held[j], low_rank, x_at, s, u_channel, s_channel, pixel, c, valid, inside,
                            S_BYTES, R, SPLIT, SOFTPLUS, DENSE, EDGE, TAIL, j * BC)  # fmt: skip
        end, found = advance(step, step * x * B_row, h[j], a, B, C, B_state, C_state, way, i, n_inside,
                             B_BYTES, C_BYTES, TIGHT, BT, NB, BC, False, True, MASKED)  # fmt: skip
        behind += (end,)
        found = found * C_row + d[j][None, :] * x
        if more != 0:
            found += load_tile(beside(y_at, j * BC, y_channel, DENSE), valid, inside, EDGE, TAIL)
        store_tile(beside(y_at, j * BC, y_channel, DENSE), found, valid, inside, EDGE, TAIL)
    return behind


@kernel
def aggregates(
    u, s, weight, bias, A, B, sums, ends, u_image, u_dir, u_channel, s_image, s_dir, s_channel, B_image, B_dir, B_state,
    images, length, chunk, chunks, channels, states, state0, dirs, backwards, base0, mul0, shift0, stride0, jump0,
    base1, mul1, shift1, stride1, jump1,
    U_BYTES: tl.constexpr, S_BYTES: tl.constexpr, B_BYTES: tl.constexpr, R: tl.constexpr, RP: tl.constexpr,
    SPLIT: tl.constexpr, NB: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, NC: tl.constexpr, SOFTPLUS: tl.constexpr,
    BIAS: tl.constexpr, DENSE: tl.constexpr, TIGHT: tl.constexpr, EDGE: tl.constexpr, MASKED: tl.constexpr,
    PAIR: tl.constexpr, ADJOINT: tl.constexpr,
):  # fmt: skip
    """Write the sum of steps and the end state of one chunk that begins with zero, PAIR directions after each other.

    ADJOINT does the same for the adjoint state: u is dy, B is C, and ``backwards`` says where that runs backwards.
    """
    blocks = tl.cdiv(channels, BC * NC)
    pid = tl.program_id(0).to(tl.int64)
    c = (pid % blocks).to(tl.int32) * (BC * NC) + tl.arange(0, BC)
    pid = pid // blocks
    chunk_id = (pid % chunks).to(tl.int32)
    pid = pid // chunks
    group = (pid % (dirs // PAIR)).to(tl.int32)
    image = pid // (dirs // PAIR)
    n = state0 + tl.arange(0, NB)
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
        held, h, total = (), (), ()
        for j in tl.static_range(NC):
            held += (parameters(weight, bias, A, k, c + j * BC, n, channels, states, s.dtype.element_ty,
                                      R, RP, SPLIT, BIAS, BC),)  # fmt: skip
            h += (tl.zeros([NB, BC], tl.float32),)
            total += (tl.zeros([BT, BC], tl.float32),)
        full = count // BT * BT
        for i in range(0, full, BT):
            h, total = _aggregate(
                u_at, s_at, B_at, u_channel, s_channel, B_state, held, h, total, way, i, row, c, row < BT, channels,
                n < states, U_BYTES, S_BYTES, B_BYTES, R, RP, SPLIT, NB, BT, BC, NC, SOFTPLUS, DENSE, TIGHT, EDGE,
                MASKED, ADJOINT, False,
            )  # fmt: skip
        if full < count:
            h, total = _aggregate(
                u_at, s_at, B_at, u_channel, s_channel, B_state, held, h, total, way, full, row, c, full + row < count,
                channels, n < states, U_BYTES, S_BYTES, B_BYTES, R, RP, SPLIT, NB, BT, BC, NC, SOFTPLUS, DENSE, TIGHT,
                EDGE, MASKED, ADJOINT, True,
            )  # fmt: skip
        at = (chunk_id * images.to(tl.int64) + image) * dirs + k
        _keep(ends + (at * states + n[:, None]) * channels + c[None, :], h, c, n, channels, states, BC, NC)
        for j in tl.static_range(NC):
            tl.store(sums + at * channels + c + j * BC, tl.sum(total[j], 0), c + j * BC < channels)


@triton.jit
def _aggregate(
    u, s, B, u_channel, s_channel, B_state, held, h, total, way, i, row, c, valid, channels, n_inside,
    U_BYTES: tl.constexpr, S_BYTES: tl.constexpr, B_BYTES: tl.constexpr, R: tl.constexpr, RP: tl.constexpr,
    SPLIT: tl.constexpr, NB: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, NC: tl.constexpr, SOFTPLUS: tl.constexpr,
    DENSE: tl.constexpr, TIGHT: tl.constexpr, EDGE: tl.constexpr, MASKED: tl.constexpr, ADJOINT: tl.constexpr,
    TAIL: tl.constexpr,
):  # fmt: skip
    """Return the states behind one tile, and the sums of steps with its own added."""
    pixel = place(way, i + row)
    x_at = cells(u, pixel, U_BYTES, c, u_channel, DENSE)
    low_rank = low_rank_at(s, pixel, valid, RP, S_BYTES, R, SPLIT, TAIL)
    B_row = load_row(at_pixels(B, pixel, B_BYTES), valid, TAIL)[:, None] if NB == 1 else 1.0
    behind, sums = (), ()
    for j in tl.static_range(NC):
        x, step, a = _block(held[j], low_rank, x_at, s, u_channel, s_channel, pixel, c, valid, c + j * BC < channels,
                            S_BYTES, R, SPLIT, SOFTPLUS, DENSE, EDGE, TAIL, j * BC)  # fmt: skip
        v = x if ADJOINT else step * x
        end, _ = advance(step, v * B_row, h[j], a, B, B, B_state, B_state, way, i, n_inside,
                         B_BYTES, B_BYTES, TIGHT, BT, NB, BC, ADJOINT, False, MASKED)  # fmt: skip
        behind += (end,)
        sums += (total[j] + step,)
    return behind, sums


@kernel
def carry(sums, ends, A, rows, chunks, channels, states, dirs, backwards, BC: tl.constexpr):
    """Replace the end states of chunks by the states that chunks begin with, in order, one state of one direction."""
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
    for i in range(chunks):
        chunk = tl.where(reverse == 0, i, chunks - 1 - i).to(tl.int64)
        end_at = ends + (chunk * rows * states + pid) * channels + c
        total = tl.load(sums + (chunk * rows + at) * channels + c, inside, 0.0)
        end = tl.load(end_at, inside, 0.0)
        tl.store(end_at, h, inside)
        h = tl.exp2(a * total) * h + end
