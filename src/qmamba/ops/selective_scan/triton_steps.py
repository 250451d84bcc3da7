"""What the kernels of the selective scan are made of, in Triton: where a route goes, what a step does."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)

# --- where a route goes ------------------------------------------------------------------------------------


@triton.jit
def reciprocal(d):
    """What `divided` by d multiplies by: 2³² / d, rounded up, in 32 bits (0 for d = 1)."""
    return 0xFFFFFFFF // d.to(tl.uint32) + 1


@triton.jit
def divided(n, d, reciprocal_of_d):
    """n // d and n % d of n ≥ 0. The card divides in twenty instructions and multiplies in one; the product
    is the quotient, or one more."""
    q = tl.umulhi(n.to(tl.uint32), reciprocal_of_d).to(tl.int32)
    q = tl.where(d == 1, n, q)
    rest = n - q * d
    return tl.where(rest < 0, q - 1, q), tl.where(rest < 0, rest + d, rest)


@triton.jit
def position_of(step, H, W, COLUMN: tl.constexpr, WINDOW: tl.constexpr):
    """The row-major position on the grid (H, W) that a forward route visits at a step."""
    height, width = H, W
    if COLUMN:  # the row route of the transposed grid
        height, width = W, H
    visited = step
    if WINDOW > 0:
        side = tl.full((), WINDOW, tl.int32)
        low, narrow = height % WINDOW, width % WINDOW  # sides of the windows at the far borders, 0: whole
        band, inside = divided(step, side * width, reciprocal(side * width))
        border = band * WINDOW + low == height
        tall = tl.where(border, low, WINDOW)
        of_low, of_side = reciprocal(tl.maximum(low * WINDOW, 1)), reciprocal(side * WINDOW)
        block, inside = divided(inside, tall * WINDOW, tl.where(border, of_low, of_side))
        border = block * WINDOW + narrow == width
        wide = tl.where(border, narrow, WINDOW)
        of_narrow = reciprocal(tl.maximum(narrow, 1))
        row, column = divided(inside, wide, tl.where(border, of_narrow, reciprocal(side)))
        visited = (band * WINDOW + row) * width + block * WINDOW + column
    if COLUMN:
        across, along = divided(visited, H, reciprocal(H))
        visited = along * W + across
    return visited


@triton.jit
def steps_of(first, last, taken, H, W, COLUMN: tl.constexpr, WINDOW: tl.constexpr, DOWN: tl.constexpr):
    """Of steps counted along a walk over [first, last): their positions, and whether there are such."""
    valid = (taken >= 0) & (taken < last - first)
    counted = tl.where(valid, taken, 0)
    step = last - 1 - counted if DOWN else first + counted
    position = position_of(step, H, W, COLUMN, WINDOW)
    # Gathering changes nothing but this: a position is found once, by one thread, and handed to the others.
    # Else the compiler has every thread find those of all steps that the thread has a part in.
    return tl.gather(position, tl.arange(0, taken.shape[0]), 0), valid


# --- what a step does --------------------------------------------------------------------------------------


@triton.jit
def softplus(pre):
    """log(1 + exp(pre)), and exp(-|pre|). log(1 + e) of e in [0, 1] is a polynomial, to float32's precision:
    the card's own logarithm is absolute in its error, and small step sizes would be off by 1e-4."""
    e = tl.exp2(-tl.abs(pre) * LOG2E)
    p = e * -0.00324400915 + 0.0198513901
    p = p * e - 0.0569593986
    p = p * e + 0.106036411
    p = p * e - 0.153055845
    p = p * e + 0.196759364
    p = p * e - 0.249541331
    p = p * e + 0.333299624
    p = p * e - 0.499999024
    p = p * e + 0.999999995
    return tl.maximum(pre, 0.0) + p * e, e


@triton.jit
def low_rank(dt, position, valid, dt_position, RANK: tl.constexpr, RANK_: tl.constexpr):
    """The step sizes before their expansion, (T, RANK_)."""
    r = tl.arange(0, RANK_)
    at = dt + position[:, None] * dt_position + r[None, :]
    return tl.load(at, mask=valid[:, None] & (r < RANK)[None, :], other=0.0).to(tl.float32)


@triton.jit
def expansion(weight, d, D, RANK: tl.constexpr, RANK_: tl.constexpr):
    """Columns d of a weight (RANK, D), with rows of zeros up to RANK_."""
    r = tl.arange(0, RANK_)
    return tl.load(
        weight + r[:, None] * D + d[None, :], mask=(r < RANK)[:, None] & (d < D)[None, :], other=0.0
    )


@triton.jit
def of_states(v, position, valid, v_position, n, STATES: tl.constexpr, STATES_: tl.constexpr):
    """B or C of the lanes with states n: (T, lanes), or (T, 1) where there is one state."""
    if STATES_ == 1:
        found = tl.load(v + position * v_position, mask=valid, other=0.0)[:, None]
    else:
        at = v + position[:, None] * v_position + n[None, :]
        found = tl.load(at, mask=valid[:, None] & (n < STATES)[None, :], other=0.0)
    return found.to(tl.float32)


@triton.jit
def of_channels(x, position, valid, d, D):
    """A grid's features at some positions, (T, channels)."""
    at = x + position[:, None] * D + d[None, :]
    return tl.load(at, mask=valid[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)


@triton.jit
def over_states(v, T: tl.constexpr, CHANNELS: tl.constexpr, STATES_: tl.constexpr):
    """Lanes (T, CHANNELS · STATES_) summed over their states, (T, CHANNELS)."""
    if STATES_ == 1:
        return v
    else:
        return tl.sum(tl.reshape(v, (T, CHANNELS, STATES_)), 2)


@triton.jit
def to_lanes(v, T: tl.constexpr, CHANNELS: tl.constexpr, STATES_: tl.constexpr):
    """(T, CHANNELS) → (T, CHANNELS · STATES_), each channel as often as it has states."""
    if STATES_ == 1:
        return v
    else:
        spread = tl.broadcast_to(v[:, :, None], (T, CHANNELS, STATES_))
        return tl.reshape(spread, (T, CHANNELS * STATES_))


@triton.jit
def compose(decay_1, state_1, decay_2, state_2):
    return decay_1 * decay_2, decay_2 * state_1 + state_2


@triton.jit
def row_of(v, i, T: tl.constexpr):
    """Row i of a tile (T, lanes)."""
    return tl.sum(tl.where((tl.arange(0, T) == i)[:, None], v, 0.0), 0)


@triton.jit
def rows_at(v, i, T: tl.constexpr, LANES: tl.constexpr):
    """Rows i (T,) of a tile (T, LANES)."""
    return tl.gather(v, tl.broadcast_to(i[:, None], (T, LANES)), 0)


@triton.jit
def add_states(
    out, lanes, position, valid, more, K: tl.constexpr, STATES: tl.constexpr, STATES_: tl.constexpr,
    T: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Write lanes, summed over their channels, to a gradient of B or C; if ``more``, add them to it."""
    if STATES_ == 1:
        at = out + position * K
        sums = tl.sum(lanes, 1) + tl.load(at, mask=valid & more, other=0.0)
        tl.store(at, sums, mask=valid)
    else:
        n = tl.arange(0, STATES_)
        at = out + (position * K * STATES)[:, None] + n[None, :]
        known = valid[:, None] & (n < STATES)[None, :]
        sums = tl.sum(tl.reshape(lanes, (T, CHANNELS, STATES_)), 1)
        tl.store(at, sums + tl.load(at, mask=known & more[:, None], other=0.0), mask=known)
