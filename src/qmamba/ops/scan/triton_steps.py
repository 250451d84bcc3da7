"""What the kernels of the selective scan are made of, in Triton: where a route goes, what a step does."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

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
def steps_of(first, last, taken, down, H, W, COLUMN: tl.constexpr, WINDOW: tl.constexpr):
    """Of steps counted along a walk over [first, last), from its end if ``down`` is 1: their positions, and
    whether there are such."""
    valid = taken < last - first
    counted = tl.where(valid, taken, 0)
    step = first + counted + down * (last - 1 - first - 2 * counted)
    position = position_of(step, H, W, COLUMN, WINDOW)
    # Gathering changes nothing but this: a position is found once, by one thread, and handed to the others.
    # Else the compiler has every thread find those of all steps that the thread has a part in.
    return tl.gather(position, tl.arange(0, taken.shape[0]), 0), valid


# --- what a step does --------------------------------------------------------------------------------------


@triton.jit
def softplus(pre, EXACT: tl.constexpr):
    """log2(1 + 2^pre), which is softplus to the base 2. log2(1 + e) of e in [0, 1] is a polynomial, since the
    card's own logarithm is absolute in its error, and small step sizes would be off by 1e-4. With EXACT it is
    off by 2e-7, else by 9e-6, which is below what 16 bits tell apart."""
    e = tl.exp2(-tl.abs(pre))
    if EXACT:
        p = e * 0.00754918205 - 0.0425670594
        p = p * e + 0.112856187
        p = p * e - 0.197118968
        p = p * e + 0.275641412
        p = p * e - 0.358408481
        p = p * e + 0.480692953
        p = p * e - 0.721340179
        p = p * e + 1.44269502
    else:
        p = e * -0.0344359018 + 0.14603287
        p = p * e - 0.303036183
        p = p * e + 0.469174057
        p = p * e - 0.720426142
        p = p * e + 1.44268286
    return tl.maximum(pre, 0.0) + p * e


@triton.jit
def low_rank(dt, position, dt_position, RANK: tl.constexpr, RANK_: tl.constexpr):
    """The step sizes before their expansion, (T, RANK_), as they are stored."""
    r = tl.arange(0, RANK_)
    at = dt + position[:, None] * dt_position + r[None, :]
    return tl.load(at, mask=(r < RANK)[None, :], other=0.0)


@triton.jit
def expansion(weight, d, D, RANK: tl.constexpr, RANK_: tl.constexpr):
    """Columns d of a weight (RANK, D), with rows of zeros up to RANK_."""
    r = tl.arange(0, RANK_)
    return tl.load(
        weight + r[:, None] * D + d[None, :], mask=(r < RANK)[:, None] & (d < D)[None, :], other=0.0
    )


@triton.jit
def of_channels(v, position, d, D, EVICT: tl.constexpr):
    """A grid's features at some positions, (T, channels), as they are stored."""
    return tl.load(
        v + position[:, None] * D + d[None, :], mask=(d < D)[None, :], other=0.0, eviction_policy=EVICT
    )


@triton.jit
def over_states(v, CHANNELS: tl.constexpr, STATES_: tl.constexpr):
    """Lanes (CHANNELS · STATES_,) summed over their states, (CHANNELS,)."""
    if STATES_ == 1:
        return v
    else:
        return tl.sum(tl.reshape(v, (CHANNELS, STATES_)), 1)


@triton.jit
def to_lanes(v, CHANNELS: tl.constexpr, STATES_: tl.constexpr):
    """(CHANNELS,) → (CHANNELS · STATES_,), each channel as often as it has states."""
    if STATES_ == 1:
        return v
    else:
        return tl.reshape(tl.broadcast_to(v[:, None], (CHANNELS, STATES_)), (CHANNELS * STATES_,))


@triton.jit
def compose(decay_1, state_1, decay_2, state_2):
    return decay_1 * decay_2, decay_2 * state_1 + state_2


@triton.jit
def row_of(v, i, T: tl.constexpr):
    """Row i of a tile (T, lanes)."""
    return tl.sum(tl.where((tl.arange(0, T) == i)[:, None], v, 0.0), 0)


# --- tiles and their rows ----------------------------------------------------------------------------------
# A tile comes from tensor cores with its rows over threads. Taken apart, each thread has all rows of its
# channels: a scan along them is a multiplication and an addition a step, and no thread asks another.


@triton.jit
def rows_of(v):
    """The rows of a tile (T, lanes), each (lanes,); T is a power of 2, up to 16."""
    tiles = (v,)
    for _ in tl.static_range(4):
        if tiles[0].shape[0] > 1:
            halves = ()
            for i in tl.static_range(len(tiles)):
                both = tl.reshape(tiles[i], (2, tiles[i].shape[0] // 2, v.shape[1]))
                upper_half, lower_half = tl.split(tl.permute(both, (1, 2, 0)))
                halves = halves + (upper_half, lower_half)
            tiles = halves
    rows = ()
    for i in tl.static_range(len(tiles)):
        rows = rows + (tl.reshape(tiles[i], (v.shape[1],)),)
    return rows


@triton.jit
def tile_of(rows):
    """Rows (lanes,) put together, (T, lanes); T is a power of 2, up to 32."""
    tiles = ()
    for i in tl.static_range(len(rows)):
        tiles = tiles + (tl.reshape(rows[i], (1, rows[0].shape[0])),)
    for _ in tl.static_range(5):
        if len(tiles) > 1:
            joined = ()
            for i in tl.static_range(len(tiles) // 2):
                both = tl.permute(tl.join(tiles[2 * i], tiles[2 * i + 1]), (2, 0, 1))
                joined = joined + (tl.reshape(both, (2 * tiles[0].shape[0], rows[0].shape[0])),)
            tiles = joined
    return tiles[0]


@triton.jit
def of_states(
    v, position, valid, v_position, n, UNIT: tl.constexpr, STATES: tl.constexpr, STATES_: tl.constexpr
):
    """Rows of B or C in some unit, of the lanes with states n; each (1,) where there is one state."""
    if STATES_ == 1:
        found = tl.load(v + position * v_position, mask=valid, other=0.0).to(tl.float32) * UNIT
        rows = ()
        for t in tl.static_range(position.shape[0]):
            # Gathered, it is asked for once, and handed from thread to thread.
            rows = rows + (tl.gather(found, tl.full((1,), t, tl.int32), 0),)
        return rows
    else:
        at = v + position[:, None] * v_position + n[None, :]
        return rows_of(
            tl.load(at, mask=valid[:, None] & (n < STATES)[None, :], other=0.0).to(tl.float32) * UNIT
        )


# --- products on tensor cores ------------------------------------------------------------------------------


@triton.jit
def upper(v):
    """The bits of float32 v that bfloat16 has, as bfloat16, and the rest of v. Cut off, not rounded: the card
    does this four times faster, and three such parts have all 24 bits of v."""
    bits = v.to(tl.uint32, bitcast=True)
    cut = (bits & 0xFFFF0000).to(tl.float32, bitcast=True)
    return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True), v - cut


@triton.jit
def parts(v, N: tl.constexpr):
    """v in N of bfloat16, whose sum has 8 N bits of it, or in one if v is bfloat16; with N = 1 in float32."""
    if N == 1:
        return (v.to(tl.float32),)
    elif v.dtype == tl.bfloat16:
        return (v,)
    else:
        found, rest = (), v.to(tl.float32)
        for _ in tl.static_range(N):
            part, rest = upper(rest)
            found = found + (part,)
        return found


@triton.jit
def product(a, b, c):
    """a @ b + c of matrices in parts, but for products of parts that are below the precision of either."""
    most: tl.constexpr = (len(a) if len(a) > len(b) else len(b)) - 1
    for order in tl.static_range(most, -1, -1):
        for i in tl.static_range(order + 1):
            if i < len(a) and order - i < len(b):
                c = tl.dot(a[i], b[order - i], c, input_precision="ieee")
    return c


@triton.jit
def turned(v):
    """Matrices in parts, transposed."""
    parts_ = ()
    for i in tl.static_range(len(v)):
        parts_ = parts_ + (tl.trans(v[i]),)
    return parts_


# --- sums over channels ------------------------------------------------------------------------------------


@triton.jit
def summed_together(a, b, bit: tl.constexpr):
    """Of vectors (lanes,), sums over pairs of lanes that differ in a bit: a's where it is 0, else b's."""
    lane = tl.arange(0, a.shape[0])
    is_b = (lane & bit) != 0
    return tl.where(is_b, b, a) + tl.gather(tl.where(is_b, a, b), lane ^ bit, 0)


@triton.jit
def with_sum(
    pending, lanes, count: tl.constexpr, CHANNELS: tl.constexpr, STATES_: tl.constexpr, LAST: tl.constexpr
):  # fmt: skip
    """Sums over channels of vectors that come one after the other, ``count`` before this one, LAST in all.
    With one state they are added up in a tree, as digits of a binary counter are: what is left in the end is
    one vector, whose lane i is the sum of the i-th. So a thread asks another once for each vector, not five
    times."""
    if STATES_ == 1:
        pending = pending + (tl.sum(tl.reshape(lanes, (LAST, CHANNELS // LAST)), 1),)
        for level in tl.static_range(5):
            if (count + 1) % (2 << level) == 0:
                pending = pending[: len(pending) - 2] + (
                    summed_together(pending[len(pending) - 2], pending[len(pending) - 1], 1 << level),
                )
        return pending
    else:
        return pending + (tl.sum(tl.reshape(lanes, (CHANNELS, STATES_)), 0),)


@triton.jit
def add_states(
    g_B, g_C, sums, position, valid, more, K: tl.constexpr, STATES: tl.constexpr, STATES_: tl.constexpr,
    T: tl.constexpr,
):  # fmt: skip
    """Write sums over channels, of B ln 2 and C in turn from the last step to the first, to the gradients of
    B and C; if ``more``, add them."""
    i = tl.arange(0, 2 * T)
    t = T - 1 - i // 2
    at = tl.where(i % 2 == 0, g_B, g_C) + tl.gather(position, t, 0) * K * STATES
    known = tl.gather(valid.to(tl.int32), t, 0) != 0
    if STATES_ == 1:
        sums = sums[0]
    else:
        n = tl.arange(0, STATES_)
        sums, at = tile_of(sums), at[:, None] + n[None, :]
        known, more, i = known[:, None] & (n < STATES)[None, :], more[:, None], i[:, None]
    sums *= tl.where(i % 2 == 0, LN2, 1.0)
    tl.store(at, sums + tl.load(at, mask=known & more, other=0.0), mask=known)
