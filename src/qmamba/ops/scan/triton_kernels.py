"""The kernels of the selective scan on a GPU, in Triton; ``triton.py`` launches them.

A program computes one chunk of a route's steps for a block of channels, a few steps (a tile) at a time. The
elements of a step are lanes: channel d and state n together, lane = d · STATES + n, so that one recurrence
serves any number of states. Step sizes come as tiles from tensor cores, features as tiles from memory; both
are split into rows, one per step, whose lanes belong to one thread each, and the recurrence reads as in
``reference.py``. (Its gradients are in ``torch.py``.) Each route reads the grid in its own order by index
arithmetic, and the reversed walk along the same route shares the program: nothing is permuted in memory.
Steps past the end, in the last tile only, have B and C of zero, and Δ too where a state is passed on.

Powers and logarithms are to the base 2, for which a GPU has instructions: the weights of Δ are multiplied by
log2 e, Δ is in units of ln 2, and B is multiplied by ln 2, so that Δ B is right.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_steps import (
    LN2,
    LOG2E,
    add_states,
    expansion,
    low_rank,
    of_channels,
    of_states,
    over_states,
    parts,
    product,
    rows_of,
    softplus,
    steps_of,
    tile_of,
    to_lanes,
    turned,
    with_sum,
)

# --- the outputs -------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["H", "W", "chunk", "tiles"])
def forward_kernel(
    x, dt, dt_image, dt_position, dt_route, B, B_image, B_position, B_route, C, C_image, C_position, C_route,
    weight, bias, A, skip, carries, so_far, y, y_image, y_route, entering, H, W, D, chunk, tiles,
    K: tl.constexpr, FORWARD_ROUTE: tl.constexpr, REVERSE_ROUTE: tl.constexpr, COLUMN: tl.constexpr,
    WINDOW: tl.constexpr, RANK: tl.constexpr, RANK_: tl.constexpr, PARTS: tl.constexpr, STATES: tl.constexpr,
    STATES_: tl.constexpr, MERGE: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr,
    OUTPUT: tl.constexpr, KEEP: tl.constexpr, T: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Compute y of the routes FORWARD_ROUTE and REVERSE_ROUTE (-1: none), over one order of positions.

    With MERGE all routes are summed in ``so_far``, and the LAST of them writes y instead. With KEEP the state
    that enters each tile is written to ``entering`` (images, K, tiles, D, STATES); without OUTPUT nothing
    else is written.
    """
    for direction in range(0 if FORWARD_ROUTE >= 0 else 1, 2 if REVERSE_ROUTE >= 0 else 1):
        _walk(
            x, dt, dt_image, dt_position, dt_route, B, B_image, B_position, B_route, C, C_image, C_position,
            C_route, weight, bias, A, skip, carries, so_far, y, y_image, y_route, entering, H, W, D, chunk,
            tiles, FORWARD_ROUTE + direction * (REVERSE_ROUTE - FORWARD_ROUTE), direction,
            not MERGE or (FIRST and (direction == 0 or FORWARD_ROUTE < 0)),
            not MERGE or (LAST and (direction == 1 or REVERSE_ROUTE < 0)),
            K, COLUMN, WINDOW, RANK, RANK_, PARTS, STATES, STATES_, MERGE, OUTPUT, KEEP, T, CHANNELS,
        )  # fmt: skip
        tl.debug_barrier()  # the walk back reads values that other threads have written


@triton.jit
def _walk(
    x, dt, dt_image, dt_position, dt_route, B, B_image, B_position, B_route, C, C_image, C_position, C_route,
    weight, bias, A, skip, carries, so_far, y, y_image, y_route, entering, H, W, D, chunk, tiles, route, down,
    starts, ends, K: tl.constexpr, COLUMN: tl.constexpr, WINDOW: tl.constexpr, RANK: tl.constexpr,
    RANK_: tl.constexpr, PARTS: tl.constexpr, STATES: tl.constexpr, STATES_: tl.constexpr,
    MERGE: tl.constexpr, OUTPUT: tl.constexpr, KEEP: tl.constexpr, T: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(2).to(tl.int64)
    walk = image * K + route
    x += image * H * W * D
    so_far += image * H * W * D
    y += image * y_image + route * y_route
    dt += image * dt_image + route * dt_route
    B += image * B_image + route * B_route
    C += image * C_image + route * C_route
    weight += route * RANK * D
    bias += route * D
    A += route * D * STATES
    skip += 0 if MERGE else route * D
    c = tl.program_id(0)
    first = c * chunk
    last = tl.minimum(first + chunk, H * W)
    lane = tl.arange(0, CHANNELS * STATES_)
    d, n = tl.program_id(1) * CHANNELS + lane // STATES_, lane % STATES_
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = (d < D) & (n < STATES)
    of_weight = parts(expansion(weight, d, D, RANK, RANK_), PARTS)
    of_bias = tl.broadcast_to(tl.load(bias + d, mask=d < D, other=0.0)[None, :], (T, CHANNELS * STATES_))
    of_A = tl.load(A + d * STATES + n, mask=known, other=0.0)
    of_skip = tl.load(skip + channel, mask=channel < D, other=0.0)
    state = tl.load(carries + ((walk * tl.num_programs(0) + c) * D + d) * STATES + n, mask=known, other=0.0)
    for taken in range(0, last - first, T):
        position, valid = steps_of(first, last, taken + tl.arange(0, T), down, H, W, COLUMN, WINDOW)
        if KEEP:
            tile = c * (chunk // T) + taken // T
            tl.store(entering + ((walk * tiles + tile) * D + d) * STATES + n, state, mask=known)
        features = of_channels(x, position, d, D, "")
        if OUTPUT:
            if starts:
                out = of_channels(x, position, channel, D, "").to(tl.float32) * of_skip[None, :]
            else:
                out = of_channels(so_far, position, channel, D, "").to(tl.float32)
        low = parts(low_rank(dt, position, dt_position, RANK, RANK_), PARTS)
        delta = softplus(product(low, of_weight, of_bias), PARTS != 2)
        deltas, features = rows_of(delta), rows_of(features)
        Bs = of_states(B, position, valid, B_position, n, LN2, STATES, STATES_)
        if OUTPUT:
            Cs = of_states(C, position, valid, C_position, n, 1.0, STATES, STATES_)
        seen = ()
        for t in tl.static_range(T):
            into = features[t].to(tl.float32) * deltas[t] * Bs[t]
            state = state * tl.exp2(deltas[t] * of_A) + into
            if OUTPUT:
                seen = seen + (over_states(state * Cs[t], CHANNELS, STATES_),)
        if OUTPUT:
            out += tile_of(seen)
            at = position[:, None] * D + channel[None, :]
            here = valid[:, None] & (channel < D)[None, :]
            if ends:
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
    WINDOW: tl.constexpr, RANK: tl.constexpr, RANK_: tl.constexpr, PARTS: tl.constexpr, STATES: tl.constexpr,
    STATES_: tl.constexpr, MERGE: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr, T: tl.constexpr,
    CHANNELS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Compute gradients through the routes FORWARD_ROUTE and REVERSE_ROUTE.

    Those of x are summed in ``so_far``, and the last route writes g_x instead. Sums over channels (of dt, B
    and C) are written in one part per GROUP of channels, and sums over positions (of the weights) in one part
    per chunk and image.
    """
    start = tl.program_id(1) * GROUP
    for channels in range(start, tl.minimum(start + GROUP, D), CHANNELS):
        for direction in range(0 if FORWARD_ROUTE >= 0 else 1, 2 if REVERSE_ROUTE >= 0 else 1):
            _walk_back(
                x, gy, gy_image, gy_route, dt, dt_image, dt_position, dt_route, B, B_image, B_position,
                B_route, C, C_image, C_position, C_route, weight, bias, A, skip, entering, carries,
                so_far, g_x, g_dt, g_B, g_C, g_weight, g_bias, g_A, g_D, H, W, D, chunk, tiles, channels,
                start, FORWARD_ROUTE + direction * (REVERSE_ROUTE - FORWARD_ROUTE), direction,
                FIRST and (direction == 0 or FORWARD_ROUTE < 0),
                LAST and (direction == 1 or REVERSE_ROUTE < 0),
                K, COLUMN, WINDOW, RANK, RANK_, PARTS, STATES, STATES_, MERGE, T, CHANNELS,
            )  # fmt: skip
            tl.debug_barrier()


@triton.jit
def _walk_back(
    x, gy, gy_image, gy_route, dt, dt_image, dt_position, dt_route, B, B_image, B_position, B_route,
    C, C_image, C_position, C_route, weight, bias, A, skip, entering, carries, so_far, g_x, g_dt, g_B, g_C,
    g_weight, g_bias, g_A, g_D, H, W, D, chunk, tiles, start, group, route, down, starts, ends,
    K: tl.constexpr, COLUMN: tl.constexpr, WINDOW: tl.constexpr, RANK: tl.constexpr, RANK_: tl.constexpr,
    PARTS: tl.constexpr, STATES: tl.constexpr, STATES_: tl.constexpr, MERGE: tl.constexpr, T: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """Process the tiles of a walk from its end to its start, and each from its last step to its first.

    With g = ∂loss/∂h and what is carried to the step before, q_t = a_t g_t: g_t = C_t ∂y_t + q_{t+1}.
    """
    image = tl.program_id(2).to(tl.int64)
    walk = image * K + route
    x += image * H * W * D
    so_far += image * H * W * D
    g_x += image * H * W * D
    gy += image * gy_image + route * gy_route
    dt += image * dt_image + route * dt_route
    B += image * B_image + route * B_route
    C += image * C_image + route * C_route
    weight += route * RANK * D
    bias += route * D
    A += route * D * STATES
    skip += 0 if MERGE else route * D
    part = (tl.program_id(1) * tl.num_programs(2) + image) * H * W * K + route  # of sums over channels
    g_dt += part * RANK
    g_B += part * STATES
    g_C += part * STATES
    whole = (image * tl.num_programs(0) + tl.program_id(0)) * K + route  # of sums over positions
    g_weight += whole * RANK * D
    g_bias += whole * D
    g_A += whole * D * STATES
    g_D += (image * tl.num_programs(0) + tl.program_id(0)) * D if MERGE else whole * D
    c = tl.program_id(0)
    first = c * chunk
    last = tl.minimum(first + chunk, H * W)
    LANES: tl.constexpr = CHANNELS * STATES_
    lane = tl.arange(0, LANES)
    d, n = start + lane // STATES_, lane % STATES_
    channel = start + tl.arange(0, CHANNELS)
    known = (d < D) & (n < STATES)
    of_weight = parts(expansion(weight, channel, D, RANK, RANK_), PARTS)
    of_bias = tl.broadcast_to(tl.load(bias + channel, mask=channel < D, other=0.0)[None, :], (T, CHANNELS))
    of_A = tl.load(A + d * STATES + n, mask=known, other=0.0)
    reloaded_A = tl.load(A + d * STATES + n, mask=known, other=0.0, eviction_policy="evict_first")
    of_skip = tl.load(skip + channel, mask=channel < D, other=0.0)
    r = tl.arange(0, RANK_)
    carried = tl.load(carries + ((walk * tl.num_programs(0) + c) * D + d) * STATES + n, mask=known, other=0.0)
    more = tl.full((1,), start, tl.int32) > group  # the sums of some channels exist already
    sum_weight = tl.zeros((RANK_, CHANNELS), tl.float32)
    sum_bias, sum_D = tl.zeros((CHANNELS,), tl.float32), tl.zeros((CHANNELS,), tl.float32)
    sum_A = tl.zeros((LANES,), tl.float32)
    count = tl.cdiv(last - first, T)
    for j in range(0, count):
        tile = count - 1 - j
        position, valid = steps_of(first, last, tile * T + tl.arange(0, T), down, H, W, COLUMN, WINDOW)
        feature = of_channels(x, position, channel, D, "")
        low = parts(low_rank(dt, position, dt_position, RANK, RANK_), PARTS)
        pre = tl.where(valid[:, None], product(low, of_weight, of_bias), float("-inf"))
        delta = softplus(pre, PARTS != 2)
        slope = tl.exp2(pre - delta)  # dΔ/d pre, the logistic function
        deltas, slopes, features = rows_of(delta), rows_of(slope), rows_of(feature)
        Bs = of_states(B, position, valid, B_position, n, LN2, STATES, STATES_)
        Cs = of_states(C, position, valid, C_position, n, 1.0, STATES, STATES_)

        # recompute the states from the one that entered the tile
        at = ((walk * tiles + c * (chunk // T) + tile) * D + d) * STATES + n
        state = tl.load(entering + at, mask=known, other=0.0)
        kept = ()  # of each state, a_t h_{t-1}
        for t in tl.static_range(T):
            driven = to_lanes(features[t].to(tl.float32) * deltas[t], CHANNELS, STATES_)
            remains = state * tl.exp2(to_lanes(deltas[t], CHANNELS, STATES_) * of_A)
            kept = kept + (remains,)
            state = remains + driven * Bs[t]

        # g of every step, from the last to the first. Features and A are loaded in another way, so that the
        # compiler does not keep those from above and all decays, for which there are no registers.
        feature = of_channels(x, position, channel, D, "evict_first")
        cotangent = of_channels(gy, position, channel, D, "")
        features, cotangents = rows_of(feature), rows_of(cotangent)
        g_pres, g_features, of_B_and_C = (), (), ()
        for t in tl.static_range(T - 1, -1, -1):
            x_t, gy_t = features[t].to(tl.float32), cotangents[t].to(tl.float32)
            step, seen = to_lanes(deltas[t], CHANNELS, STATES_), to_lanes(gy_t, CHANNELS, STATES_)
            driven = to_lanes(x_t * deltas[t], CHANNELS, STATES_)
            g = carried + seen * Cs[t]
            carried = g * tl.exp2(step * reloaded_A)
            of_C = seen * (kept[t] + driven * Bs[t])
            of_B_and_C = with_sum(of_B_and_C, g * driven, 2 * (T - 1 - t), CHANNELS, STATES_, 2 * T)
            of_B_and_C = with_sum(of_B_and_C, of_C, 2 * (T - 1 - t) + 1, CHANNELS, STATES_, 2 * T)
            g_decay = g * kept[t]
            sum_A += g_decay * step
            g_driven = over_states(g * Bs[t], CHANNELS, STATES_)  # of Δ x
            g_delta = over_states(g_decay * (reloaded_A * LN2), CHANNELS, STATES_) + g_driven * x_t
            g_pre = g_delta * slopes[t]
            sum_bias += g_pre
            g_pres = (g_pre,) + g_pres
            g_features = (g_driven * deltas[t],) + g_features

        on_grid = position[:, None] * D + channel[None, :]
        here = valid[:, None] & (channel < D)[None, :]
        g_feature = tile_of(g_features)
        if starts or not MERGE:
            skipped = tl.where(valid[:, None], cotangent.to(tl.float32), 0.0)
            sum_D += tl.sum(feature.to(tl.float32) * skipped, 0)
            g_feature += skipped * of_skip[None, :]
        if not starts:
            g_feature += tl.load(so_far + on_grid, mask=here, other=0.0)
        if ends:
            tl.store(g_x + on_grid, g_feature.to(g_x.dtype.element_ty), mask=here)
        else:
            tl.store(so_far + on_grid, g_feature, mask=here)

        g_pre = parts(tile_of(g_pres), PARTS)
        sum_weight = product(turned(low), g_pre, sum_weight)
        g_low = product(g_pre, turned(of_weight), tl.zeros((T, RANK_), tl.float32))
        in_row = (position * K * RANK)[:, None] + r[None, :]
        of_rank = valid[:, None] & (r < RANK)[None, :]
        g_low += tl.load(g_dt + in_row, mask=of_rank & more[:, None], other=0.0)
        tl.store(g_dt + in_row, g_low, mask=of_rank)
        add_states(g_B, g_C, of_B_and_C, position, valid, more, K, STATES, STATES_, T)

    tl.store(g_weight + r[:, None] * D + channel[None, :], sum_weight * LOG2E,
             mask=(r < RANK)[:, None] & (channel < D)[None, :])  # fmt: skip
    tl.store(g_bias + channel, sum_bias * LOG2E, mask=channel < D)
    tl.store(g_A + d * STATES + n, sum_A * LN2, mask=known)
    if starts or not MERGE:
        tl.store(g_D + channel, sum_D, mask=channel < D)
