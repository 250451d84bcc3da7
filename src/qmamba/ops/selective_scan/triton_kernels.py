"""The kernels of the selective scan on a GPU, in Triton; ``triton.py`` launches them.

A program works on one chunk of a route's steps and a block of channels, some steps (a tile) at a time. What a
tile holds are lanes: channel d and state n together, lane = d · STATES + n, so that one scan along the steps
serves any number of states. Each route reads the grid in its own order by index arithmetic, and the walk back
along the same route shares the program: nothing is permuted in memory. Steps past the end have Δ = 0 and
change nothing. The recurrence and its gradients are written out in ``reference.py`` and ``torch.py``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_steps import (
    LOG2E,
    add_states,
    compose,
    expansion,
    low_rank,
    of_channels,
    of_states,
    over_states,
    row_of,
    rows_at,
    softplus,
    steps_of,
    to_lanes,
)

# --- chunks: what each does to a state that enters it ------------------------------------------------------


@triton.jit(do_not_specialize=["H", "W", "chunk"])
def chunks_kernel(
    x, gy, gy_image, gy_route, dt, dt_image, dt_position, dt_route, B, B_image, B_position, B_route,
    C, C_image, C_position, C_route, weight, bias, A, decays, ends, H, W, D, chunk,
    K: tl.constexpr, FORWARD_ROUTE: tl.constexpr, REVERSE_ROUTE: tl.constexpr, COLUMN: tl.constexpr,
    WINDOW: tl.constexpr, RANK: tl.constexpr, RANK_: tl.constexpr, STATES: tl.constexpr,
    STATES_: tl.constexpr, ADJOINT: tl.constexpr, T: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Per chunk, the product of its decays and the state that it ends with when it starts from zero, each
    (images, K, chunks, D, STATES); of the adjoint recurrence with ADJOINT, which walks the other way."""
    for direction in tl.static_range(2):
        if (REVERSE_ROUTE if direction == 1 else FORWARD_ROUTE) >= 0:
            _chunk(
                x, gy, gy_image, gy_route, dt, dt_image, dt_position, dt_route, B, B_image, B_position,
                B_route, C, C_image, C_position, C_route, weight, bias, A, decays, ends, H, W, D, chunk, K,
                REVERSE_ROUTE if direction == 1 else FORWARD_ROUTE, (direction == 1) != ADJOINT, COLUMN,
                WINDOW, RANK, RANK_, STATES, STATES_, ADJOINT, T, CHANNELS, PRECISION,
            )  # fmt: skip


@triton.jit
def _chunk(
    x, gy, gy_image, gy_route, dt, dt_image, dt_position, dt_route, B, B_image, B_position, B_route,
    C, C_image, C_position, C_route, weight, bias, A, decays, ends, H, W, D, chunk,
    K: tl.constexpr, ROUTE: tl.constexpr, DOWN: tl.constexpr, COLUMN: tl.constexpr, WINDOW: tl.constexpr,
    RANK: tl.constexpr, RANK_: tl.constexpr, STATES: tl.constexpr, STATES_: tl.constexpr,
    ADJOINT: tl.constexpr, T: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(2).to(tl.int64)
    x += image * H * W * D
    gy += image * gy_image + ROUTE * gy_route
    dt += image * dt_image + ROUTE * dt_route
    B += image * B_image + ROUTE * B_route
    C += image * C_image + ROUTE * C_route
    weight += ROUTE * RANK * D
    bias += ROUTE * D
    A += ROUTE * D * STATES
    first = tl.program_id(0) * chunk
    last = tl.minimum(first + chunk, H * W)
    lane = tl.arange(0, CHANNELS * STATES_)
    d, n = tl.program_id(1) * CHANNELS + lane // STATES_, lane % STATES_
    known = (d < D) & (n < STATES)
    of_weight = expansion(weight, d, D, RANK, RANK_)
    of_bias = tl.load(bias + d, mask=d < D, other=0.0)
    of_A = tl.load(A + d * STATES + n, mask=known, other=0.0)
    i = tl.arange(0, T)
    state = tl.zeros((CHANNELS * STATES_,), tl.float32)
    total = tl.zeros((CHANNELS * STATES_,), tl.float32)  # of Δ
    for taken in range(0, last - first, T):
        position, valid = steps_of(first, last, taken + i, H, W, COLUMN, WINDOW, DOWN)
        low = low_rank(dt, position, valid, dt_position, RANK, RANK_)
        delta, _ = softplus(tl.dot(low, of_weight, input_precision=PRECISION) + of_bias[None, :])
        delta = tl.where(valid[:, None], delta, 0.0)
        of_tile = tl.sum(delta, 0)
        to_come = of_tile[None, :] - tl.cumsum(delta, 0)  # Δ of the steps after each: its share decays by it
        if ADJOINT:
            into = of_channels(gy, position, valid, d, D)
            into *= of_states(C, position, valid, C_position, n, STATES, STATES_)
            to_come += delta
        else:
            into = of_channels(x, position, valid, d, D) * delta
            into *= of_states(B, position, valid, B_position, n, STATES, STATES_)
        state *= tl.exp2(of_tile * of_A)
        state += tl.sum(into * tl.exp2(to_come * of_A[None, :]), 0)
        total += of_tile
    entry = (image * K + ROUTE) * tl.num_programs(0) + tl.program_id(0)
    at = (entry * D + d) * STATES + n
    tl.store(decays + at, tl.exp2(total * of_A), mask=known)
    tl.store(ends + at, state, mask=known)


@triton.jit(do_not_specialize=["chunks", "lanes"])
def carries_kernel(
    decays, ends, entering, chunks, lanes,
    REVERSED: tl.constexpr, K: tl.constexpr, T: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """The state that enters each chunk, from those that chunks end with when they start from zero. Routes
    whose bit is set in REVERSED go from the last chunk to the first."""
    route = tl.program_id(0) % K
    lane = tl.program_id(1) * LANES + tl.arange(0, LANES)
    base = tl.program_id(0).to(tl.int64) * chunks * lanes
    down = (REVERSED >> route) & 1
    state = tl.zeros((LANES,), tl.float32)
    for taken in range(0, chunks, T):
        c = taken + tl.arange(0, T)
        place = tl.where(down == 1, chunks - 1 - c, c)
        at = base + place[:, None] * lanes + lane[None, :]
        before = at + tl.where(down == 1, lanes, -lanes)  # of the chunk before
        known = (c < chunks)[:, None] & (lane < lanes)[None, :]
        follows = known & (c > 0)[:, None]
        decay = tl.load(decays + before, mask=follows, other=0.0)
        end = tl.load(ends + before, mask=follows, other=0.0)
        products, states = tl.associative_scan((decay, end), 0, compose)
        states += products * state[None, :]
        tl.store(entering + at, states, mask=known)
        state = row_of(states, T - 1, T)


# --- the outputs -------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["H", "W", "chunk", "tiles"])
def forward_kernel(
    x, dt, dt_image, dt_position, dt_route, B, B_image, B_position, B_route, C, C_image, C_position, C_route,
    weight, bias, A, skip, carries, so_far, y, y_image, y_route, entering, H, W, D, chunk, tiles,
    K: tl.constexpr, FORWARD_ROUTE: tl.constexpr, REVERSE_ROUTE: tl.constexpr, COLUMN: tl.constexpr,
    WINDOW: tl.constexpr, RANK: tl.constexpr, RANK_: tl.constexpr, STATES: tl.constexpr,
    STATES_: tl.constexpr, MERGE: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr,
    OUTPUT: tl.constexpr, KEEP: tl.constexpr, T: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """y of the routes FORWARD_ROUTE and REVERSE_ROUTE (-1: there is none), which visit the same positions in
    opposite orders. With MERGE all routes are added up in ``so_far``, and the LAST of them writes y instead.
    With KEEP the state that enters each tile is written to ``entering`` (images, K, tiles, D, STATES);
    without OUTPUT nothing else is."""
    for direction in tl.static_range(2):
        if (REVERSE_ROUTE if direction == 1 else FORWARD_ROUTE) >= 0:
            _walk(
                x, dt, dt_image, dt_position, dt_route, B, B_image, B_position, B_route, C, C_image,
                C_position, C_route, weight, bias, A, skip, carries, so_far, y, y_image, y_route, entering,
                H, W, D, chunk, tiles, K, REVERSE_ROUTE if direction == 1 else FORWARD_ROUTE, direction == 1,
                COLUMN, WINDOW, RANK, RANK_, STATES, STATES_, MERGE,
                not MERGE or (FIRST and (direction == 0 or FORWARD_ROUTE < 0)),
                not MERGE or (LAST and (direction == 1 or REVERSE_ROUTE < 0)), OUTPUT, KEEP, T, CHANNELS,
                PRECISION,
            )  # fmt: skip
            tl.debug_barrier()  # the walk back reads what other threads have written


@triton.jit
def _walk(
    x, dt, dt_image, dt_position, dt_route, B, B_image, B_position, B_route, C, C_image, C_position, C_route,
    weight, bias, A, skip, carries, so_far, y, y_image, y_route, entering, H, W, D, chunk, tiles,
    K: tl.constexpr, ROUTE: tl.constexpr, DOWN: tl.constexpr, COLUMN: tl.constexpr, WINDOW: tl.constexpr,
    RANK: tl.constexpr, RANK_: tl.constexpr, STATES: tl.constexpr, STATES_: tl.constexpr,
    MERGE: tl.constexpr, STARTS: tl.constexpr, ENDS: tl.constexpr, OUTPUT: tl.constexpr, KEEP: tl.constexpr,
    T: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(2).to(tl.int64)
    walk = image * K + ROUTE
    x += image * H * W * D
    so_far += image * H * W * D
    y += image * y_image + ROUTE * y_route
    dt += image * dt_image + ROUTE * dt_route
    B += image * B_image + ROUTE * B_route
    C += image * C_image + ROUTE * C_route
    weight += ROUTE * RANK * D
    bias += ROUTE * D
    A += ROUTE * D * STATES
    skip += 0 if MERGE else ROUTE * D
    c = tl.program_id(0)
    first = c * chunk
    last = tl.minimum(first + chunk, H * W)
    lane = tl.arange(0, CHANNELS * STATES_)
    d, n = tl.program_id(1) * CHANNELS + lane // STATES_, lane % STATES_
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = (d < D) & (n < STATES)
    of_weight = expansion(weight, d, D, RANK, RANK_)
    of_bias = tl.load(bias + d, mask=d < D, other=0.0)
    of_A = tl.load(A + d * STATES + n, mask=known, other=0.0)
    of_skip = tl.load(skip + channel, mask=channel < D, other=0.0)
    i = tl.arange(0, T)
    state = tl.load(carries + ((walk * tl.num_programs(0) + c) * D + d) * STATES + n, mask=known, other=0.0)
    for taken in range(0, last - first, T):
        position, valid = steps_of(first, last, taken + i, H, W, COLUMN, WINDOW, DOWN)
        if KEEP:
            tile = c * (chunk // T) + taken // T
            tl.store(entering + ((walk * tiles + tile) * D + d) * STATES + n, state, mask=known)
        low = low_rank(dt, position, valid, dt_position, RANK, RANK_)
        delta, _ = softplus(tl.dot(low, of_weight, input_precision=PRECISION) + of_bias[None, :])
        delta = tl.where(valid[:, None], delta, 0.0)
        decay = tl.exp2(delta * of_A[None, :])
        features = of_channels(x, position, valid, channel, D)
        into = to_lanes(features, T, CHANNELS, STATES_) * delta
        into *= of_states(B, position, valid, B_position, n, STATES, STATES_)
        products, ends = tl.associative_scan((decay, into), 0, compose)
        states = ends + products * state[None, :]
        state = row_of(states, T - 1, T)
        if OUTPUT:
            seen = states * of_states(C, position, valid, C_position, n, STATES, STATES_)
            out = over_states(seen, T, CHANNELS, STATES_)
            at = position[:, None] * D + channel[None, :]
            here = valid[:, None] & (channel < D)[None, :]
            if STARTS:
                out += features * of_skip[None, :]
            else:
                out += tl.load(so_far + at, mask=here, other=0.0)
            if ENDS:
                tl.store(y + at, out.to(y.dtype.element_ty), mask=here)
            else:
                tl.store(so_far + at, out, mask=here)


# --- the gradients -----------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["H", "W", "chunk", "tiles"])
def backward_kernel(
    x, gy, gy_image, gy_route, dt, dt_image, dt_position, dt_route, B, B_image, B_position, B_route,
    C, C_image, C_position, C_route, weight, bias, A, skip, entering, carries, so_far, g_x, g_dt, g_B, g_C,
    g_weight, g_bias, g_A, g_D, H, W, D, chunk, tiles,
    K: tl.constexpr, FORWARD_ROUTE: tl.constexpr, REVERSE_ROUTE: tl.constexpr, COLUMN: tl.constexpr,
    WINDOW: tl.constexpr, RANK: tl.constexpr, RANK_: tl.constexpr, STATES: tl.constexpr,
    STATES_: tl.constexpr, MERGE: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr, T: tl.constexpr,
    CHANNELS: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients through the routes FORWARD_ROUTE and REVERSE_ROUTE. Those of x are added up in ``so_far``
    over all routes, and the LAST writes g_x instead. Sums over channels (g_dt, g_B, g_C) are left in parts,
    one for each GROUP of channels, and sums over positions (the weights') in one for each chunk and image."""
    start = tl.program_id(1) * GROUP
    for channels in range(start, tl.minimum(start + GROUP, D), CHANNELS):
        for direction in tl.static_range(2):
            if (REVERSE_ROUTE if direction == 1 else FORWARD_ROUTE) >= 0:
                _walk_back(
                    x, gy, gy_image, gy_route, dt, dt_image, dt_position, dt_route, B, B_image, B_position,
                    B_route, C, C_image, C_position, C_route, weight, bias, A, skip, entering, carries,
                    so_far, g_x, g_dt, g_B, g_C, g_weight, g_bias, g_A, g_D, H, W, D, chunk, tiles, channels,
                    start, K, REVERSE_ROUTE if direction == 1 else FORWARD_ROUTE, direction == 1,
                    COLUMN, WINDOW, RANK, RANK_, STATES, STATES_, MERGE,
                    FIRST and (direction == 0 or FORWARD_ROUTE < 0),
                    LAST and (direction == 1 or REVERSE_ROUTE < 0), T, CHANNELS, PRECISION,
                )  # fmt: skip
                tl.debug_barrier()


@triton.jit
def _walk_back(
    x, gy, gy_image, gy_route, dt, dt_image, dt_position, dt_route, B, B_image, B_position, B_route,
    C, C_image, C_position, C_route, weight, bias, A, skip, entering, carries, so_far, g_x, g_dt, g_B, g_C,
    g_weight, g_bias, g_A, g_D, H, W, D, chunk, tiles, start, group,
    K: tl.constexpr, ROUTE: tl.constexpr, DOWN: tl.constexpr, COLUMN: tl.constexpr, WINDOW: tl.constexpr,
    RANK: tl.constexpr, RANK_: tl.constexpr, STATES: tl.constexpr, STATES_: tl.constexpr,
    MERGE: tl.constexpr, STARTS: tl.constexpr, ENDS: tl.constexpr, T: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The tiles of a walk from its end to its start, and each from its last step to its first, row i.

    With g = ∂loss/∂h and what is carried to the step before, q_t = a_t g_t: g_t = C_t ∂y_t + q_{t+1}.
    """
    image = tl.program_id(2).to(tl.int64)
    walk = image * K + ROUTE
    x += image * H * W * D
    so_far += image * H * W * D
    g_x += image * H * W * D
    gy += image * gy_image + ROUTE * gy_route
    dt += image * dt_image + ROUTE * dt_route
    B += image * B_image + ROUTE * B_route
    C += image * C_image + ROUTE * C_route
    weight += ROUTE * RANK * D
    bias += ROUTE * D
    A += ROUTE * D * STATES
    skip += 0 if MERGE else ROUTE * D
    part = (tl.program_id(1) * tl.num_programs(2) + image) * H * W * K + ROUTE  # of sums over channels
    g_dt += part * RANK
    g_B += part * STATES
    g_C += part * STATES
    whole = (image * tl.num_programs(0) + tl.program_id(0)) * K + ROUTE  # of sums over positions
    g_weight += whole * RANK * D
    g_bias += whole * D
    g_A += whole * D * STATES
    g_D += whole * D
    c = tl.program_id(0)
    first = c * chunk
    last = tl.minimum(first + chunk, H * W)
    LANES: tl.constexpr = CHANNELS * STATES_
    lane = tl.arange(0, LANES)
    d, n = start + lane // STATES_, lane % STATES_
    channel = start + tl.arange(0, CHANNELS)
    known = (d < D) & (n < STATES)
    of_weight = expansion(weight, channel, D, RANK, RANK_)
    of_bias = tl.load(bias + channel, mask=channel < D, other=0.0)
    of_A = tl.load(A + d * STATES + n, mask=known, other=0.0)
    of_skip = tl.load(skip + channel, mask=channel < D, other=0.0)
    i = tl.arange(0, T)
    r = tl.arange(0, RANK_)
    owed = tl.load(carries + ((walk * tl.num_programs(0) + c) * D + d) * STATES + n, mask=known, other=0.0)
    more = tl.full((1,), start, tl.int32) > group  # some channels' sums are there already
    sum_weight = tl.zeros((RANK_, CHANNELS), tl.float32)
    sum_bias, sum_D = tl.zeros((CHANNELS,), tl.float32), tl.zeros((CHANNELS,), tl.float32)
    sum_A = tl.zeros((LANES,), tl.float32)
    count = tl.cdiv(last - first, T)
    for j in range(0, count):
        tile = count - 1 - j
        position, valid = steps_of(first, last, tile * T + T - 1 - i, H, W, COLUMN, WINDOW, DOWN)
        here = valid[:, None] & (channel < D)[None, :]
        low = low_rank(dt, position, valid, dt_position, RANK, RANK_)
        pre = tl.dot(low, of_weight, input_precision=PRECISION) + of_bias[None, :]
        delta, e = softplus(pre)
        slope = tl.where(pre >= 0, 1.0, e) / (1.0 + e)  # dΔ/d pre
        delta = tl.where(here, delta, 0.0)
        features = of_channels(x, position, valid, channel, D)
        cotangent = of_channels(gy, position, valid, channel, D)
        of_B = of_states(B, position, valid, B_position, n, STATES, STATES_)
        of_C = of_states(C, position, valid, C_position, n, STATES, STATES_)
        step = to_lanes(delta, T, CHANNELS, STATES_)
        driven = to_lanes(delta * features, T, CHANNELS, STATES_)
        decay, into = tl.exp2(step * of_A[None, :]), driven * of_B

        # the states once more, in the walk's order, from the one that entered the tile
        at = ((walk * tiles + c * (chunk // T) + tile) * D + d) * STATES + n
        entered = tl.load(entering + at, mask=known, other=0.0)
        turned = T - 1 - i
        products, ends = tl.associative_scan(
            (rows_at(decay, turned, T, LANES), rows_at(into, turned, T, LANES)), 0, compose
        )
        states = ends + products * entered[None, :]
        before = rows_at(states, tl.maximum(T - 2 - i, 0), T, LANES)
        before = tl.where((i == T - 1)[:, None], entered[None, :], before)
        kept = decay * before  # a_t h_{t-1}

        # g of every step, against the walk's order
        seen = to_lanes(cotangent, T, CHANNELS, STATES_)
        later = rows_at(decay, tl.maximum(i - 1, 0), T, LANES)
        later = tl.where((i == 0)[:, None], 1.0, later)
        products, ends = tl.associative_scan((later, seen * of_C), 0, compose)
        g = ends + products * owed[None, :]
        owed = row_of(decay * g, T - 1, T)

        sum_A += tl.sum(g * kept * step, 0)
        g_driven = over_states(g * of_B, T, CHANNELS, STATES_)  # of Δ x
        g_delta = over_states(g * kept * (of_A / LOG2E)[None, :], T, CHANNELS, STATES_)
        g_pre = tl.where(here, (g_delta + g_driven * features) * slope, 0.0)
        sum_weight += tl.dot(tl.trans(low), g_pre, input_precision=PRECISION)
        sum_bias += tl.sum(g_pre, 0)
        sum_D += tl.sum(cotangent * features, 0)

        g_features = g_driven * delta
        if STARTS or not MERGE:
            g_features += cotangent * of_skip[None, :]
        on_grid = position[:, None] * D + channel[None, :]
        if not STARTS:
            g_features += tl.load(so_far + on_grid, mask=here, other=0.0)
        if ENDS:
            tl.store(g_x + on_grid, g_features.to(g_x.dtype.element_ty), mask=here)
        else:
            tl.store(so_far + on_grid, g_features, mask=here)

        g_low = tl.dot(g_pre, tl.trans(of_weight), input_precision=PRECISION)
        in_row = (position * K * RANK)[:, None] + r[None, :]
        of_rank = valid[:, None] & (r < RANK)[None, :]
        g_low += tl.load(g_dt + in_row, mask=of_rank & more[:, None], other=0.0)
        tl.store(g_dt + in_row, g_low, mask=of_rank)
        add_states(g_B, g * driven, position, valid, more, K, STATES, STATES_, T, CHANNELS)
        add_states(g_C, seen * (kept + into), position, valid, more, K, STATES, STATES_, T, CHANNELS)

    tl.store(g_weight + r[:, None] * D + channel[None, :], sum_weight,
             mask=(r < RANK)[:, None] & (channel < D)[None, :])  # fmt: skip
    tl.store(g_bias + channel, sum_bias, mask=channel < D)
    tl.store(g_A + d * STATES + n, sum_A, mask=known)
    tl.store(g_D + channel, sum_D, mask=channel < D)
