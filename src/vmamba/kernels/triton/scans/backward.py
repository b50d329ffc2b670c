"""The backward kernel: all gradients of one chunk and channel block, from the states that forward kept.

Tiles are taken from the last to the first. In each the states are computed once more from the one that was kept at its
start (for more than one state, at the start of its group of tiles), then the adjoint state runs back over the rows.
Sums over channels and over places are partial here; whoever launches it adds the parts in order.

With g the adjoint of h, ``a·h`` the decayed state and σ the derivative of softplus:
``δ' = (Σ g·(a·h)·A + u·Σ g·B)·σ``, ``du = δ·Σ g·B + D·dy``, ``dB = Σ g·δ·u``, ``dC = Σ dy·h``, ``dA = Σ g·(a·h)·δ``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vmamba.kernels.triton.jit import kernel
from vmamba.kernels.triton.scans.tile import (
    advance,
    at_pixels,
    cells,
    glue,
    halve,
    load_tile,
    parameters,
    piece_of,
    place,
    read_row,
    read_tile,
    skip,
    states_at,
    steps,
    steps_at,
    store_tile,
    way_of,
)

_LN2: tl.constexpr = tl.constexpr(0.6931471805599453)


@kernel
def gradients(
    u, s, weight, bias, A, D, B, C, dy, kept, start, du, ds, columns, parts, scratch, dfirst, u_image, u_dir, u_channel,
    s_image, s_dir, s_channel, B_image, B_dir, B_state, C_image, C_dir, C_state, dy_image, dy_dir, dy_channel, du_image,
    du_dir, du_channel, ds_image, ds_dir, ds_channel, images, length, chunk, chunks, channels, states, state0, dirs,
    dir0, groups, backwards, add, base0, mul0, shift0, stride0, jump0, base1, mul1, shift1, stride1, jump1,
    U_BYTES: tl.constexpr, S_BYTES: tl.constexpr, B_BYTES: tl.constexpr, C_BYTES: tl.constexpr, DY_BYTES: tl.constexpr,
    DU_BYTES: tl.constexpr, DS_BYTES: tl.constexpr, COLUMN_BYTES: tl.constexpr, R: tl.constexpr, RP: tl.constexpr,
    SPLIT: tl.constexpr, NB: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, SOFTPLUS: tl.constexpr,
    BIAS: tl.constexpr, DENSE: tl.constexpr, TIGHT: tl.constexpr, EDGE: tl.constexpr, MASKED: tl.constexpr,
    GROUP: tl.constexpr, PAIR: tl.constexpr, SKIP: tl.constexpr, EXACT: tl.constexpr, SHORT: tl.constexpr,
    STATES: tl.constexpr,
):  # fmt: skip
    """Write, or add to, the gradients of u and of the steps, and the parts of all others.

    STATES: walks end with a given adjoint state, which one chunk alone finds in ``start``, and the one in front of a
    walk is written to ``dfirst``; walks are not run backwards then.
    """
    program = tl.program_id(0).to(tl.int64)
    block, chunk_id, group, image = piece_of(program, channels, chunks, groups, BC)
    c = block * BC + tl.arange(0, BC)
    inside = c < channels
    n = state0 + tl.arange(0, NB)
    n_inside = n < states
    row = tl.arange(0, BT)
    t0 = chunk_id * chunk
    count = tl.minimum(chunk, length - t0)
    h_mask = inside[None, :] & n_inside[:, None]
    h_size = images.to(tl.int64) * dirs * states * channels
    width = R + 2 * states
    scratch_at = (
        scratch + program * (GROUP // BT * NB * BC) + tl.arange(0, NB)[:, None] * BC + tl.arange(0, BC)[None, :]
    )

    for half in range(PAIR):
        k = dir0 + group + half * 2
        far = k.to(tl.int64)
        way = way_of(k, backwards, t0, count, base0, mul0, shift0, stride0, jump0, base1, mul1, shift1, stride1, jump1)
        u_at = u + image * u_image + far * u_dir
        s_at = s + image * s_image + far * s_dir
        B_at = B + image * B_image + far * B_dir + state0 * B_state
        C_at = C + image * C_image + far * C_dir + state0 * C_state
        dy_at = dy + image * dy_image + far * dy_dir
        du_at = du + image * du_image + far * du_dir
        ds_at = ds + image * ds_image + far * ds_dir
        column_at = columns + ((block * images.to(tl.int64) + image) * length * dirs + k) * width
        high, low, of_bias, a = parameters(weight, bias, A, k, c, n, channels, states,
                                           s.dtype.element_ty, R, RP, SPLIT, BIAS, BC)  # fmt: skip
        w = 0.0
        if R > 0:
            r = tl.arange(0, RP)[:, None]
            w = tl.load(weight + (k * channels + c)[None, :] * R + r, inside[None, :] & (r < R), 0.0)  # [RP, BC]
        more = add + half  # du has something already
        d = skip(D, k, c, channels, more, PAIR) if SKIP else tl.zeros([BC], tl.float32)
        h_at = ((image * dirs + k) * states + n[:, None]) * channels + c[None, :]
        q = tl.load(start + chunk_id * h_size + h_at, h_mask & ((chunks > 1) | STATES), 0.0)
        dA = tl.zeros([NB, BC], tl.float32)
        dbias = tl.zeros([BC], tl.float32)
        dD = tl.zeros([BC], tl.float32)
        dW = tl.zeros([BC, RP], tl.float32)

        full = count // BT * BT
        if GROUP == BT:
            if full < count:
                h = tl.load(kept + (t0 + full) // GROUP * h_size + h_at, h_mask, 0.0)
                pixel, x, g_y, steps_in = _read(
                    u_at, s_at, dy_at, u_channel, s_channel, dy_channel, way, full, row, c, full + row < count, inside,
                    U_BYTES, S_BYTES, DY_BYTES, R, RP, SPLIT, DENSE, EDGE, True,
                )  # fmt: skip
                q, dA, dbias, dD, dW = _tile(
                    pixel, x, g_y, steps_in, B_at, C_at, du_at, ds_at, column_at, du_channel, ds_channel, B_state,
                    C_state, high, low, of_bias, a, w, d, h, q, dA, dbias, dD, dW, way, full, c, n, full + row < count,
                    inside, n_inside, states, state0, more, B_BYTES, C_BYTES, DU_BYTES, DS_BYTES, COLUMN_BYTES, R, RP,
                    SPLIT, NB, BT, BC, SOFTPLUS, DENSE, TIGHT, EDGE, MASKED, EXACT, SHORT, True,
                )  # fmt: skip
            if full > 0:
                h = tl.load(kept + (t0 + full - BT) // GROUP * h_size + h_at, h_mask, 0.0)
                pixel, x, g_y, steps_in = _read(
                    u_at, s_at, dy_at, u_channel, s_channel, dy_channel, way, full - BT, row, c, row < BT, inside,
                    U_BYTES, S_BYTES, DY_BYTES, R, RP, SPLIT, DENSE, EDGE, False,
                )  # fmt: skip
                for j in range(0, full, BT):
                    i = full - BT - j
                    # What the next tile needs is under way while this one is computed.
                    at = tl.maximum(i - BT, 0)
                    h1 = tl.load(kept + (t0 + at) // GROUP * h_size + h_at, h_mask, 0.0)
                    pixel1, x1, g_y1, steps_in1 = _read(
                        u_at, s_at, dy_at, u_channel, s_channel, dy_channel, way, at, row, c, row < BT, inside, U_BYTES,
                        S_BYTES, DY_BYTES, R, RP, SPLIT, DENSE, EDGE, False,
                    )  # fmt: skip
                    q, dA, dbias, dD, dW = _tile(
                        pixel, x, g_y, steps_in, B_at, C_at, du_at, ds_at, column_at, du_channel, ds_channel, B_state,
                        C_state, high, low, of_bias, a, w, d, h, q, dA, dbias, dD, dW, way, i, c, n, row < BT, inside,
                        n_inside, states, state0, more, B_BYTES, C_BYTES, DU_BYTES, DS_BYTES, COLUMN_BYTES, R, RP,
                        SPLIT, NB, BT, BC, SOFTPLUS, DENSE, TIGHT, EDGE, MASKED, EXACT, SHORT, False,
                    )  # fmt: skip
                    h, pixel, x, g_y, steps_in = h1, pixel1, x1, g_y1, steps_in1
        else:
            last = (count - 1) // GROUP * GROUP
            for j in range(0, last + 1, GROUP):
                first = last - j
                tiles = tl.cdiv(tl.minimum(GROUP, count - first), BT)
                h = tl.load(kept + (t0 + first) // GROUP * h_size + h_at, h_mask, 0.0)
                for tile in range(tiles):
                    tl.store(scratch_at + tile * (NB * BC), h)
                    i = first + tile * BT
                    valid = i + row < count
                    pixel = place(way, i + row)
                    x = load_tile(cells(u_at, pixel, U_BYTES, c, u_channel, DENSE), valid, inside, EDGE, True)
                    steps_in = steps_at(s_at, s_channel, pixel, c, valid, inside, S_BYTES, R, RP, SPLIT, EDGE, True)
                    step, _, _ = steps(steps_in, high, low, of_bias, valid, R, SPLIT, SOFTPLUS, True)
                    h, _ = advance(step, step * x, h, a, B_at, C_at, B_state, C_state, way, i, n_inside,
                                   B_BYTES, C_BYTES, TIGHT, BT, NB, BC, False, False, MASKED)  # fmt: skip
                tl.debug_barrier()  # what a lane wrote above, another may read below
                for turned in range(tiles):
                    tile = tiles - 1 - turned
                    h = tl.load(scratch_at + tile * (NB * BC))
                    i = first + tile * BT
                    pixel, x, g_y, steps_in = _read(
                        u_at, s_at, dy_at, u_channel, s_channel, dy_channel, way, i, row, c, i + row < count, inside,
                        U_BYTES, S_BYTES, DY_BYTES, R, RP, SPLIT, DENSE, EDGE, True,
                    )  # fmt: skip
                    q, dA, dbias, dD, dW = _tile(
                        pixel, x, g_y, steps_in, B_at, C_at, du_at, ds_at, column_at, du_channel, ds_channel, B_state,
                        C_state, high, low, of_bias, a, w, d, h, q, dA, dbias, dD, dW, way, i, c, n, i + row < count,
                        inside, n_inside, states, state0, more, B_BYTES, C_BYTES, DU_BYTES, DS_BYTES, COLUMN_BYTES, R,
                        RP, SPLIT, NB, BT, BC, SOFTPLUS, DENSE, TIGHT, EDGE, MASKED, EXACT, SHORT, True,
                    )  # fmt: skip
                tl.debug_barrier()

        if STATES:
            tl.store(dfirst + h_at, q, h_mask & (chunk_id == 0))
        part = parts + ((image * chunks + chunk_id) * dirs + k) * (R + 2 + states) * channels + c
        if R > 0:
            r = tl.arange(0, RP)[None, :]
            w_at = part[:, None] + r * channels
            w_mask = inside[:, None] & (r < R)
            tl.store(w_at, dW + tl.load(w_at, w_mask & (state0 > 0), 0.0), w_mask)
        dbias += tl.load(part + R * channels, inside & (state0 > 0), 0.0)
        tl.store(part + R * channels, dbias, inside)
        tl.store(part + (R + 1) * channels, dD, inside)
        tl.store(part[None, :] + (R + 2 + n[:, None]) * channels, dA, h_mask)


@triton.jit
def _read(u, s, dy, u_channel, s_channel, dy_channel, way, i, row, c, valid, inside,
          U_BYTES: tl.constexpr, S_BYTES: tl.constexpr, DY_BYTES: tl.constexpr, R: tl.constexpr, RP: tl.constexpr,
          SPLIT: tl.constexpr, DENSE: tl.constexpr, EDGE: tl.constexpr, TAIL: tl.constexpr):  # fmt: skip
    """Load what a tile begins with, in memory's own dtypes: its pixels, u, dy and what `steps` takes."""
    pixel = place(way, i + row)
    x = read_tile(cells(u, pixel, U_BYTES, c, u_channel, DENSE), valid, inside, EDGE, TAIL)
    g_y = read_tile(cells(dy, pixel, DY_BYTES, c, dy_channel, DENSE), valid, inside, EDGE, TAIL)
    return pixel, x, g_y, steps_at(s, s_channel, pixel, c, valid, inside, S_BYTES, R, RP, SPLIT, EDGE, TAIL)


@triton.jit
def _tile(
    pixel, x, g_y, steps_in, B, C, du, ds, column, du_channel, ds_channel, B_state, C_state,
    high, low, bias, a, w, d, h, q, dA, dbias, dD, dW, way, i, c, n, valid, inside, n_inside, states, state0, more,
    B_BYTES: tl.constexpr, C_BYTES: tl.constexpr, DU_BYTES: tl.constexpr, DS_BYTES: tl.constexpr,
    COLUMN_BYTES: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, SPLIT: tl.constexpr, NB: tl.constexpr,
    BT: tl.constexpr, BC: tl.constexpr, SOFTPLUS: tl.constexpr, DENSE: tl.constexpr, TIGHT: tl.constexpr,
    EDGE: tl.constexpr, MASKED: tl.constexpr, EXACT: tl.constexpr, SHORT: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile; returns the adjoint state in front of it and the sums over places, with its own added."""
    # What is wanted later than this is loaded here, before all stores, which loads do not overtake.
    if NB == 1:
        B_row = read_row(at_pixels(B, pixel, B_BYTES), valid, TAIL)
        C_row = read_row(at_pixels(C, pixel, C_BYTES), valid, TAIL)
    du_at = cells(du, pixel, DU_BYTES, c, du_channel, DENSE)
    du_old = tl.load(du_at, (valid[:, None] | (not TAIL)) & (inside[None, :] | (not EDGE)) & (more != 0), 0.0)
    x, g_y = x.to(tl.float32), g_y.to(tl.float32)
    step, p, e = steps(steps_in, high, low, bias, valid, R, SPLIT, SOFTPLUS, TAIL)
    v, v_y = step * x, g_y
    if NB == 1:
        B_row, C_row = B_row.to(tl.float32)[:, None], C_row.to(tl.float32)[:, None]
        v, v_y = v * B_row, g_y * C_row
    q, dA, of_A, of_B = _retreat(
        step, v, v_y, h, q, dA, a, B, C, B_state, C_state, column, way, i, n, n_inside, states, B_BYTES, C_BYTES,
        COLUMN_BYTES, TIGHT, R, BT, NB, BC, MASKED,
    )  # fmt: skip
    if NB == 1:  # so far the rows of g and of the decayed state
        g, before = of_A, of_B
        of_A, of_B = g * before, g * B_row
        dA += tl.sum(of_A * step, 0)[None, :]
        of_A *= a
        row_at = at_pixels(column + R + n, pixel, COLUMN_BYTES)
        dB = tl.sum(g * (step * x), 1)
        dC = tl.sum(g_y * (before + v), 1)
        tl.store(row_at, dB, valid)
        tl.store(row_at + 1, dC, valid)
    of_step = of_A * _LN2 + x * of_B
    if SOFTPLUS:
        of_step *= tl.where(p >= 0.0, 1.0, e) / (1.0 + e)
    if TAIL:
        of_step = tl.where(valid[:, None], of_step, 0.0)
    of_u = of_B * step + d[None, :] * g_y + du_old.to(tl.float32)
    store_tile(du_at, of_u, valid, inside, EDGE, TAIL)
    dbias += tl.sum(of_step, 0)
    dD += tl.sum(x * g_y, 0)
    if R > 0:
        turned = tl.trans(of_step)  # [BC, BT]
        precision: tl.constexpr = "tf32x3" if EXACT else "tf32"
        if SHORT:
            dW += tl.dot(turned, tl.trans(steps_in.to(tl.float32)), input_precision=precision)
        else:  # as many places again, with nothing in them
            dW += tl.dot(_padded(turned, BC, BT), tl.trans(_padded(steps_in.to(tl.float32), RP, BT)),
                         input_precision=precision)  # fmt: skip
        of_rank = tl.dot(w, turned, input_precision=precision)  # [RP, BT]
        r = tl.arange(0, RP)[:, None]
        rank_at = at_pixels(column + r, pixel[None, :], COLUMN_BYTES)
        mask = (r < R) & valid[None, :]
        if NB > 1:
            of_rank += tl.load(rank_at, mask & (state0 > 0), 0.0)
        tl.store(rank_at, of_rank, mask)
    else:
        addresses = cells(ds, pixel, DS_BYTES, c, ds_channel, False)
        if NB > 1:
            if state0 > 0:
                of_step += load_tile(addresses, valid, inside, EDGE, TAIL)
        store_tile(addresses, of_step, valid, inside, EDGE, TAIL)
    return q, dA, dbias, dD, dW


@triton.jit
def _padded(x, ROWS: tl.constexpr, BT: tl.constexpr):
    """``x [ROWS, BT]`` and as many columns of zeros behind it."""
    return tl.reshape(tl.permute(tl.join(x, tl.zeros_like(x)), [0, 2, 1]), [ROWS, 2 * BT])


@triton.jit
def _retreat(step, v, v_y, h, q, dA, a, B, C, B_state, C_state, column, way, i, n, n_inside, states,
             B_BYTES: tl.constexpr, C_BYTES: tl.constexpr, COLUMN_BYTES: tl.constexpr, TIGHT: tl.constexpr,
             R: tl.constexpr, ROWS: tl.constexpr, NB: tl.constexpr, BC: tl.constexpr,
             MASKED: tl.constexpr):  # fmt: skip
    """Run the adjoint state back over a tile's rows: ``q = 2^(step·a)·(C·dy + q)``, from the state in front of them.

    With one state the rows returned are g and the decayed state; with more, ``Σ g·(a·h)·A`` and ``Σ g·B``, and dB, dC
    are written. Each halving computes the state in front of its lower half anew: the compiler finds that it has it.
    """
    if ROWS == 1:
        decay = tl.exp2(step * a)
        before = decay * h
        if NB == 1:
            g = v_y + q
            of_A, of_B = g, before
        else:
            B_n = states_at(B, B_state, way, i, n_inside, B_BYTES, TIGHT, MASKED, NB)
            C_n = states_at(C, C_state, way, i, n_inside, C_BYTES, TIGHT, MASKED, NB)
            g = C_n * v_y + q
            of_A = g * before
            dA += of_A * step
            of_A = tl.sum(of_A * a, 0)[None, :]
            of_B = tl.sum(g * B_n, 0)[None, :]
            row_at = at_pixels(column + R + n, place(way, tl.minimum(i, way[7] - 1)), COLUMN_BYTES)
            mask = n_inside & (i < way[7])
            tl.store(row_at, tl.sum(g * v, 1), mask)
            tl.store(row_at + states, tl.sum((before + B_n * v) * v_y, 1), mask)
        q = decay * g
    else:
        HALF: tl.constexpr = ROWS // 2
        step0, step1 = halve(step, ROWS, BC)
        v0, v1 = halve(v, ROWS, BC)
        y0, y1 = halve(v_y, ROWS, BC)
        middle, _ = advance(step0, v0, h, a, B, C, B_state, C_state, way, i, n_inside,
                            B_BYTES, C_BYTES, TIGHT, HALF, NB, BC, False, False, MASKED)  # fmt: skip
        q, dA, of_A1, of_B1 = _retreat(step1, v1, y1, middle, q, dA, a, B, C, B_state, C_state, column, way, i + HALF,
                                       n, n_inside, states,
                                       B_BYTES, C_BYTES, COLUMN_BYTES, TIGHT, R, HALF, NB, BC, MASKED)  # fmt: skip
        q, dA, of_A0, of_B0 = _retreat(step0, v0, y0, h, q, dA, a, B, C, B_state, C_state, column, way, i, n, n_inside,
                                       states,
                                       B_BYTES, C_BYTES, COLUMN_BYTES, TIGHT, R, HALF, NB, BC, MASKED)  # fmt: skip
        of_A = glue(of_A0, of_A1, ROWS, BC)
        of_B = glue(of_B0, of_B1, ROWS, BC)
    return q, dA, of_A, of_B
