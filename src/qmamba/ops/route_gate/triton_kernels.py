"""The route gate's passes over all routes as Triton kernels; ``triton.py`` launches them.

Rows are positions, ROWS at a time and with all their channels; a program goes through CHUNK positions of one
route. Numbers are read and written in their own types and computed with in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _rows(v, position, valid, channel, D):
    """Rows of a grid (L, D), float32, zero where there is none."""
    at = v + position[:, None] * D + channel[None, :]
    return tl.load(at, mask=valid[:, None] & (channel < D)[None, :], other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["L"])
def moments_kernel(
    y, mean, rstd, sums, L, D, eps, CHUNK: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    """Mean and 1/σ of the rows of routes (routes, L, D), and chunks' sums of the rows so normalised."""
    route, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.arange(0, CHANNELS)
    y += route * L * D
    total = tl.zeros((CHANNELS,), tl.float32)
    for start in range(0, CHUNK, ROWS):
        position = chunk * CHUNK + start + tl.arange(0, ROWS)
        valid = position < L
        rows = _rows(y, position, valid, channel, D)
        middle = tl.sum(rows, 1) / D
        centred = tl.where((channel < D)[None, :], rows - middle[:, None], 0.0)
        inverse = tl.rsqrt(tl.sum(centred * centred, 1) / D + eps)
        tl.store(mean + route * L + position, middle, mask=valid)
        tl.store(rstd + route * L + position, inverse, mask=valid)
        total += tl.sum(tl.where(valid[:, None], centred * inverse[:, None], 0.0), 0)
    tl.store(sums + (route * tl.num_programs(1) + chunk) * D + channel, total, mask=channel < D)


@triton.jit(do_not_specialize=["L"])
def sum_kernel(y, gates, out, L, D, K: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Σ_k y_k ⊙ g_k, (images, L, D), of routes (images, K, L, D) and gates (images, K, D)."""
    image = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, CHANNELS)
    position = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    valid = position < L
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    for k in tl.static_range(K):
        gate = tl.load(gates + (image * K + k) * D + channel, mask=channel < D, other=0.0)
        total += _rows(y + (image * K + k) * L * D, position, valid, channel, D) * gate[None, :]
    at = out + image * L * D + position[:, None] * D + channel[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=valid[:, None] & (channel < D)[None, :])


@triton.jit(do_not_specialize=["L"])
def gates_gradient_kernel(
    y, g_out, sums, L, D, K: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    """Chunks' sums over positions of routes (images · K, L, D) times the cotangent (images, L, D)."""
    route, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.arange(0, CHANNELS)
    total = tl.zeros((CHANNELS,), tl.float32)
    for start in range(0, CHUNK, ROWS):
        position = chunk * CHUNK + start + tl.arange(0, ROWS)
        valid = position < L
        rows = _rows(y + route * L * D, position, valid, channel, D)
        total += tl.sum(rows * _rows(g_out + route // K * L * D, position, valid, channel, D), 0)
    tl.store(sums + (route * tl.num_programs(1) + chunk) * D + channel, total, mask=channel < D)


@triton.jit(do_not_specialize=["L"])
def routes_gradient_kernel(
    y, mean, rstd, gates, g_out, g_norm, g_y, L, D,
    K: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """g_y of routes (images · K, L, D), through the sum and through LayerNorm, in which every position of a
    route has the same cotangent g_norm (images · K, D), without its mean."""
    route = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, CHANNELS)
    position = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    valid = position < L
    gate = tl.load(gates + route * D + channel, mask=channel < D, other=0.0)
    constant = tl.load(g_norm + route * D + channel, mask=channel < D, other=0.0)
    middle = tl.load(mean + route * L + position, mask=valid, other=0.0)
    inverse = tl.load(rstd + route * L + position, mask=valid, other=0.0)
    normal = (_rows(y + route * L * D, position, valid, channel, D) - middle[:, None]) * inverse[:, None]
    along = tl.sum(normal * constant[None, :], 1) / D
    g = _rows(g_out + route // K * L * D, position, valid, channel, D) * gate[None, :]
    g += (constant[None, :] - normal * along[:, None]) * inverse[:, None]
    at = g_y + route * L * D + position[:, None] * D + channel[None, :]
    tl.store(at, g.to(g_y.dtype.element_ty), mask=valid[:, None] & (channel < D)[None, :])
