"""What each chunk of a walk does to the state that enters it, in Triton; ``triton.py`` launches the kernels.

They come before those of ``triton_kernels.py``, which says how programs, lanes and units are laid out.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_steps import (
    LN2,
    compose,
    expansion,
    low_rank,
    of_channels,
    of_states,
    parts,
    product,
    row_of,
    rows_of,
    softplus,
    steps_of,
)


@triton.jit(do_not_specialize=["H", "W", "chunk"])
def chunks_kernel(
    x, gy, gy_image, gy_route, dt, dt_image, dt_position, dt_route, B, B_image, B_position, B_route,
    C, C_image, C_position, C_route, weight, bias, A, decays, ends, H, W, D, chunk,
    K: tl.constexpr, FORWARD_ROUTE: tl.constexpr, REVERSE_ROUTE: tl.constexpr, COLUMN: tl.constexpr,
    WINDOW: tl.constexpr, RANK: tl.constexpr, RANK_: tl.constexpr, PARTS: tl.constexpr, STATES: tl.constexpr,
    STATES_: tl.constexpr, ADJOINT: tl.constexpr, T: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Compute per chunk the product of its decays and its last state when it starts from zero.

    Each is (images, K, chunks, D, STATES). With ADJOINT they are those of the adjoint, which walks the other
    way.
    """
    for direction in range(0 if FORWARD_ROUTE >= 0 else 1, 2 if REVERSE_ROUTE >= 0 else 1):
        _chunk(
            x, gy, gy_image, gy_route, dt, dt_image, dt_position, dt_route, B, B_image, B_position,
            B_route, C, C_image, C_position, C_route, weight, bias, A, decays, ends, H, W, D, chunk,
            FORWARD_ROUTE + direction * (REVERSE_ROUTE - FORWARD_ROUTE),
            1 - direction if ADJOINT else direction, K, COLUMN, WINDOW, RANK, RANK_, PARTS, STATES, STATES_,
            ADJOINT, T, CHANNELS,
        )  # fmt: skip


@triton.jit
def _chunk(
    x, gy, gy_image, gy_route, dt, dt_image, dt_position, dt_route, B, B_image, B_position, B_route,
    C, C_image, C_position, C_route, weight, bias, A, decays, ends, H, W, D, chunk, route, down,
    K: tl.constexpr, COLUMN: tl.constexpr, WINDOW: tl.constexpr, RANK: tl.constexpr, RANK_: tl.constexpr,
    PARTS: tl.constexpr, STATES: tl.constexpr, STATES_: tl.constexpr, ADJOINT: tl.constexpr, T: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(2).to(tl.int64)
    x += image * H * W * D
    gy += image * gy_image + route * gy_route
    dt += image * dt_image + route * dt_route
    B += image * B_image + route * B_route
    C += image * C_image + route * C_route
    weight += route * RANK * D
    bias += route * D
    A += route * D * STATES
    first = tl.program_id(0) * chunk
    last = tl.minimum(first + chunk, H * W)
    lane = tl.arange(0, CHANNELS * STATES_)
    d, n = tl.program_id(1) * CHANNELS + lane // STATES_, lane % STATES_
    known = (d < D) & (n < STATES)
    of_weight = parts(expansion(weight, d, D, RANK, RANK_), PARTS)
    of_bias = tl.broadcast_to(tl.load(bias + d, mask=d < D, other=0.0)[None, :], (T, CHANNELS * STATES_))
    of_A = tl.load(A + d * STATES + n, mask=known, other=0.0)
    state = tl.zeros((CHANNELS * STATES_,), tl.float32)
    total = tl.zeros((CHANNELS * STATES_,), tl.float32)  # of Δ
    for taken in range(0, last - first, T):
        position, valid = steps_of(first, last, taken + tl.arange(0, T), down, H, W, COLUMN, WINDOW)
        driving = of_channels(gy if ADJOINT else x, position, d, D, "")
        low = parts(low_rank(dt, position, dt_position, RANK, RANK_), PARTS)
        delta = softplus(product(low, of_weight, of_bias), PARTS != 2)
        deltas, driving = rows_of(tl.where(valid[:, None], delta, 0.0)), rows_of(driving)
        if ADJOINT:
            weights = of_states(C, position, valid, C_position, n, 1.0, STATES, STATES_)
        else:
            weights = of_states(B, position, valid, B_position, n, LN2, STATES, STATES_)
        for t in tl.static_range(T):
            decay = tl.exp2(deltas[t] * of_A)
            into = driving[t].to(tl.float32) * weights[t]
            state = (state + into) * decay if ADJOINT else state * decay + into * deltas[t]
            total += deltas[t]
    entry = (image * K + route) * tl.num_programs(0) + tl.program_id(0)
    at = (entry * D + d) * STATES + n
    tl.store(decays + at, tl.exp2(total * of_A), mask=known)
    tl.store(ends + at, state, mask=known)


@triton.jit(do_not_specialize=["chunks", "lanes"])
def carries_kernel(
    decays, ends, entering, chunks, lanes,
    REVERSED: tl.constexpr, K: tl.constexpr, T: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Compute the state that enters each chunk, from the last states of chunks that start from zero.

    Routes whose bit is set in REVERSED go from the last chunk to the first.
    """
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
