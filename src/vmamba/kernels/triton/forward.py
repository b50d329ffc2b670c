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
    low_rank_at,
    parameters,
    place,
    read_row,
    read_tile,
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
    SKIP: tl.constexpr, CB: tl.constexpr, AHEAD: tl.constexpr,
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
        if full > 0:
            if AHEAD:
                pixel, steps_in, B_row, C_row, x, y_old = _read(
                    u_at, s_at, B_at, C_at, y_at, u_channel, s_channel, y_channel, way, 0, row, c, row < BT, channels,
                    more, U_BYTES, S_BYTES, B_BYTES, C_BYTES, Y_BYTES, R, RP, SPLIT, NB, BC, NC, DENSE, EDGE, CB, True,
                    False,
                )  # fmt: skip
            for i in range(0, full, BT):
                # What the next tile needs is under way while this one is computed.
                at = tl.minimum(i + BT, full - BT) if AHEAD else i
                pixel1, steps_in1, B_row1, C_row1, x1, y_old1 = _read(
                    u_at, s_at, B_at, C_at, y_at, u_channel, s_channel, y_channel, way, at, row, c, row < BT, channels,
                    more, U_BYTES, S_BYTES, B_BYTES, C_BYTES, Y_BYTES, R, RP, SPLIT, NB, BC, NC, DENSE, EDGE, CB, True,
                    False,
                )  # fmt: skip
                if not AHEAD:
                    pixel, steps_in, B_row, C_row, x, y_old = pixel1, steps_in1, B_row1, C_row1, x1, y_old1
                if SAVE:
                    if i % GROUP == 0:
                        _keep(kept + (t0 + i) // GROUP * h_size + h_at, h, c, n, channels, states, BC, NC)
                h = _outputs(
                    pixel, steps_in, B_row, C_row, x, y_old, B_at, C_at, y_at, y_channel, B_state, C_state, held, d, h,
                    way, i, c, row < BT, channels, n < states, B_BYTES, C_BYTES, Y_BYTES, R, SPLIT, NB, BT, BC, NC,
                    SOFTPLUS, DENSE, TIGHT, EDGE, MASKED, False,
                )  # fmt: skip
                if AHEAD:
                    pixel, steps_in, B_row, C_row, x, y_old = pixel1, steps_in1, B_row1, C_row1, x1, y_old1
        if full < count:
            if SAVE:
                if full % GROUP == 0:
                    _keep(kept + (t0 + full) // GROUP * h_size + h_at, h, c, n, channels, states, BC, NC)
            pixel, steps_in, B_row, C_row, x, y_old = _read(
                u_at, s_at, B_at, C_at, y_at, u_channel, s_channel, y_channel, way, full, row, c, full + row < count,
                channels, more, U_BYTES, S_BYTES, B_BYTES, C_BYTES, Y_BYTES, R, RP, SPLIT, NB, BC, NC, DENSE, EDGE, CB,
                True, True,
            )  # fmt: skip
            _outputs(
                pixel, steps_in, B_row, C_row, x, y_old, B_at, C_at, y_at, y_channel, B_state, C_state, held, d, h,
                way, full, c, full + row < count, channels, n < states, B_BYTES, C_BYTES, Y_BYTES, R, SPLIT, NB, BT,
                BC, NC, SOFTPLUS, DENSE, TIGHT, EDGE, MASKED, True,
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
def _read(u, s, B, C, y, u_channel, s_channel, y_channel, way, i, row, c, valid, channels, more,
          U_BYTES: tl.constexpr, S_BYTES: tl.constexpr, B_BYTES: tl.constexpr, C_BYTES: tl.constexpr,
          Y_BYTES: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, SPLIT: tl.constexpr, NB: tl.constexpr,
          BC: tl.constexpr, NC: tl.constexpr, DENSE: tl.constexpr, EDGE: tl.constexpr, CB: tl.constexpr,
          OUT: tl.constexpr, TAIL: tl.constexpr):  # fmt: skip
    """Load all that a tile is computed from, in memory's own dtypes: its pixels; the low-rank steps, or the blocks'
    steps; B and C; the blocks' u, and with OUT what y has so far (0 where there is nothing).

    Nothing here waits for what it loads. Loads are not moved before stores that come first in the program, so they
    stand before all of a tile's.
    """
    pixel = place(way, i + row)
    x_at = cells(u, pixel, U_BYTES, c, u_channel, DENSE)
    if R > 0:
        steps_in = (low_rank_at(s, pixel, valid, RP, S_BYTES, R, SPLIT, TAIL),)
    else:
        steps_in = ()
    B_row, C_row = row, row  # with more states they are read row by row
    if NB == 1:
        B_at = at_pixels(B, pixel, B_BYTES)
        B_row = read_row(B_at, valid, TAIL)
        if OUT:
            C_row = read_row(B_at + CB if CB else at_pixels(C, pixel, C_BYTES), valid, TAIL)
    x, y_old = (), ()
    for j in tl.static_range(NC):
        inside = c + j * BC < channels
        x += (read_tile(beside(x_at, j * BC, u_channel, DENSE), valid, inside, EDGE, TAIL),)
        if R == 0:
            s_at = cells(s, pixel, S_BYTES, c + j * BC, s_channel, False)
            steps_in += (read_tile(s_at, valid, inside, EDGE, TAIL),)
        if OUT:
            y_at = beside(cells(y, pixel, Y_BYTES, c, y_channel, DENSE), j * BC, y_channel, DENSE)
            y_old += (tl.load(y_at, (valid[:, None] | (not TAIL)) & (inside[None, :] | (not EDGE)) & (more != 0), 0.0),)
    return pixel, steps_in, B_row, C_row, x, y_old


@triton.jit
def _outputs(
    pixel, steps_in, B_row, C_row, x, y_old, B, C, y, y_channel, B_state, C_state, held, d, h, way, i, c, valid,
    channels, n_inside,
    B_BYTES: tl.constexpr, C_BYTES: tl.constexpr, Y_BYTES: tl.constexpr, R: tl.constexpr, SPLIT: tl.constexpr,
    NB: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, NC: tl.constexpr, SOFTPLUS: tl.constexpr,
    DENSE: tl.constexpr, TIGHT: tl.constexpr, EDGE: tl.constexpr, MASKED: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """Write y of one tile, after or onto what stood there, and return the states behind it."""
    y_at = cells(y, pixel, Y_BYTES, c, y_channel, DENSE)
    behind = ()
    for j in tl.static_range(NC):
        high, low, bias, a = held[j]
        u = x[j].to(tl.float32)
        step, _, _ = steps(steps_in[0 if R > 0 else j], high, low, bias, valid, R, SPLIT, SOFTPLUS, TAIL)
        v = step * u
        if NB == 1:
            v *= B_row.to(tl.float32)[:, None]
        end, found = advance(step, v, h[j], a, B, C, B_state, C_state, way, i, n_inside,
                             B_BYTES, C_BYTES, TIGHT, BT, NB, BC, False, True, MASKED)  # fmt: skip
        behind += (end,)
        if NB == 1:
            found *= C_row.to(tl.float32)[:, None]
        found += d[j][None, :] * u + y_old[j].to(tl.float32)
        store_tile(beside(y_at, j * BC, y_channel, DENSE), found, valid, c + j * BC < channels, EDGE, TAIL)
    return behind


@kernel
def aggregates(
    u, s, weight, bias, A, B, sums, ends, u_image, u_dir, u_channel, s_image, s_dir, s_channel, B_image, B_dir, B_state,
    images, length, chunk, chunks, channels, states, state0, dirs, backwards, base0, mul0, shift0, stride0, jump0,
    base1, mul1, shift1, stride1, jump1,
    U_BYTES: tl.constexpr, S_BYTES: tl.constexpr, B_BYTES: tl.constexpr, R: tl.constexpr, RP: tl.constexpr,
    SPLIT: tl.constexpr, NB: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, NC: tl.constexpr, SOFTPLUS: tl.constexpr,
    BIAS: tl.constexpr, DENSE: tl.constexpr, TIGHT: tl.constexpr, EDGE: tl.constexpr, MASKED: tl.constexpr,
    PAIR: tl.constexpr, ADJOINT: tl.constexpr, AHEAD: tl.constexpr,
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
        if full > 0:
            if AHEAD:
                _, steps_in, B_row, _, x, _ = _read(
                    u_at, s_at, B_at, B_at, u_at, u_channel, s_channel, u_channel, way, 0, row, c, row < BT, channels,
                    0, U_BYTES, S_BYTES, B_BYTES, B_BYTES, U_BYTES, R, RP, SPLIT, NB, BC, NC, DENSE, EDGE, 0, False,
                    False,
                )  # fmt: skip
            for i in range(0, full, BT):
                at = tl.minimum(i + BT, full - BT) if AHEAD else i
                _, steps_in1, B_row1, _, x1, _ = _read(
                    u_at, s_at, B_at, B_at, u_at, u_channel, s_channel, u_channel, way, at, row, c, row < BT, channels,
                    0, U_BYTES, S_BYTES, B_BYTES, B_BYTES, U_BYTES, R, RP, SPLIT, NB, BC, NC, DENSE, EDGE, 0, False,
                    False,
                )  # fmt: skip
                if not AHEAD:
                    steps_in, B_row, x = steps_in1, B_row1, x1
                h, total = _aggregate(
                    steps_in, B_row, x, B_at, B_state, held, h, total, way, i, row < BT, n < states, B_BYTES, R, SPLIT,
                    NB, BT, BC, NC, SOFTPLUS, TIGHT, MASKED, ADJOINT, False,
                )  # fmt: skip
                if AHEAD:
                    steps_in, B_row, x = steps_in1, B_row1, x1
        if full < count:
            _, steps_in, B_row, _, x, _ = _read(
                u_at, s_at, B_at, B_at, u_at, u_channel, s_channel, u_channel, way, full, row, c, full + row < count,
                channels, 0, U_BYTES, S_BYTES, B_BYTES, B_BYTES, U_BYTES, R, RP, SPLIT, NB, BC, NC, DENSE, EDGE, 0,
                False, True,
            )  # fmt: skip
            h, total = _aggregate(
                steps_in, B_row, x, B_at, B_state, held, h, total, way, full, full + row < count, n < states, B_BYTES,
                R, SPLIT, NB, BT, BC, NC, SOFTPLUS, TIGHT, MASKED, ADJOINT, True,
            )  # fmt: skip
        at = (chunk_id * images.to(tl.int64) + image) * dirs + k
        _keep(ends + (at * states + n[:, None]) * channels + c[None, :], h, c, n, channels, states, BC, NC)
        for j in tl.static_range(NC):
            tl.store(sums + at * channels + c + j * BC, tl.sum(total[j], 0), c + j * BC < channels)


@triton.jit
def _aggregate(
    steps_in, B_row, x, B, B_state, held, h, total, way, i, valid, n_inside,
    B_BYTES: tl.constexpr, R: tl.constexpr, SPLIT: tl.constexpr, NB: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr,
    NC: tl.constexpr, SOFTPLUS: tl.constexpr, TIGHT: tl.constexpr, MASKED: tl.constexpr, ADJOINT: tl.constexpr,
    TAIL: tl.constexpr,
):  # fmt: skip
    """Return the states behind one tile, and the sums of steps with its own added."""
    behind, sums = (), ()
    for j in tl.static_range(NC):
        high, low, bias, a = held[j]
        step, _, _ = steps(steps_in[0 if R > 0 else j], high, low, bias, valid, R, SPLIT, SOFTPLUS, TAIL)
        v = x[j].to(tl.float32)
        if not ADJOINT:
            v *= step
        if NB == 1:
            v *= B_row.to(tl.float32)[:, None]
        end, _ = advance(step, v, h[j], a, B, B, B_state, B_state, way, i, n_inside,
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
