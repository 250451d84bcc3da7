"""Baseline of the selective scan with the memory layout of published code, written from scratch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from qmamba.ops import Route


@triton.jit
def compose(decay_1, state_1, decay_2, state_2):  # type: ignore[no-untyped-def]
    return decay_1 * decay_2, decay_2 * state_1 + state_2


@triton.jit
def scan_kernel(decay, drive, states, L, D, T: tl.constexpr, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
    walk, d = tl.program_id(0).to(tl.int64), tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    state = tl.zeros((CHANNELS,), tl.float32)
    for start in range(0, L, T):
        t = start + tl.arange(0, T)
        at = walk * L * D + t[:, None] * D + d[None, :]
        here = (t < L)[:, None] & (d < D)[None, :]
        a = tl.load(decay + at, mask=here, other=1.0)
        b = tl.load(drive + at, mask=here, other=0.0)
        products, ends = tl.associative_scan((a, b), 0, compose)
        h = ends + products * state[None, :]
        tl.store(states + at, h, mask=here)
        state = tl.sum(tl.where((tl.arange(0, T) == T - 1)[:, None], h, 0.0), 0)


def scan_of_copies(args: dict[str, Tensor], routes: Sequence[Route]) -> Tensor:
    """Scan with x, Δ, B and C materialised in the order of each route."""
    x, dt, B, C = (args[name].flatten(1, 2) for name in ("x", "dt", "B", "C"))
    side = args["x"].shape[1]
    ys = []
    orders = [route.order(side, side).to(x.device) for route in routes]
    xs = torch.stack([x[:, order] for order in orders], 1)  # (B, K, L, D)
    pre = torch.einsum("blkr,kdr->bkld", dt.float(), args["dt_weight"]) + args["dt_bias"][:, None]
    delta = torch.stack([F.softplus(pre[:, k])[:, order] for k, order in enumerate(orders)], 1)
    Bs, Cs = (
        torch.stack([v[:, order, k].float() for k, order in enumerate(orders)], 1) for v in (B, C)
    )  # (B, K, L, 1)
    decay, drive = torch.exp(delta * args["A"].transpose(1, 2)), delta * xs.float() * Bs
    states = torch.empty_like(drive)
    batch, K, L, D = drive.shape
    scan_kernel[(batch * K, -(-D // 64))](decay, drive, states, L, D, T=64, CHANNELS=64)
    y = (states * Cs + args["D"][:, None] * xs.float()).to(x.dtype)
    for k, order in enumerate(orders):
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        ys.append(y[:, k, back])
    return torch.stack(ys).sum(0).view_as(args["x"])
