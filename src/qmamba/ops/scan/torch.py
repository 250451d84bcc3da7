"""The selective scan in eager torch, for any device, with a hand-written backward.

The recurrence itself is in ``recurrence.py``: routes are laid out in slots that advance together. Each of
the N states is a recurrence of its own that shares Δ, so N > 1 is a loop around the case N = 1. Images are
processed in tiles that fit a CPU's cache, so scratch memory does not grow with the batch. The forward and the
reversed walk of a route share one layout of x and y.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..precision import without_autocast
from ..routes import Route
from ..scratch import Scratch
from ..second_order import differentiable_gradients
from .composed import selective_scan_composed
from .recurrence import Slots, recur_, slot_index, slots_of
from .tensors import ScanTensors

LOG2E = math.log2(math.e)
EXP2_LIMIT = 80.0  # exp of anything up to this is finite in float32
TILE = 2**19  # elements (images · positions · channels) of a tile: 2 MB of float32


def selective_scan_torch(tensors: ScanTensors, routes: tuple[Route, ...], merge: bool) -> Tensor:
    """Compute :func:`qmamba.ops.selective_scan`."""
    y: Tensor = TorchScan.apply(*tensors, routes, merge)  # type: ignore[no-untyped-call]
    return y


def _pairs(routes: Sequence[Route]) -> dict[Route, list[int]]:
    """Map forward routes to the indices k of the routes that walk them, in either direction."""
    pairs: dict[Route, list[int]] = {}
    for k, route in enumerate(routes):
        pairs.setdefault(route.forward, []).append(k)
    return pairs


def _tiles(batch: int, elements: int) -> Iterator[slice]:
    size = max(1, TILE // elements)
    for start in range(0, batch, size):
        yield slice(start, min(start + size, batch))


# --- one route of one tile --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Walk:
    """The arguments of one route of one tile, in slots."""

    slots: Slots
    reverse: bool
    scratch: Scratch
    x: Tensor  # (G, T·S, D)
    dt: Tensor  # (G, T·S, R)
    B: Tensor  # (G, T·S, N)
    C: Tensor  # (G, T·S, N)
    dt_weight: Tensor  # (D, R)
    dt_bias: Tensor  # (D,)
    A: Tensor  # (D, N)
    tame: bool  # every step size is small enough for a power of 2 in float32

    def grid(self, v: Tensor) -> Tensor:
        return v.view(v.shape[0], self.slots.steps, self.slots.segments, v.shape[-1])  # (G, T, S, ·)

    def buffer(self, name: str) -> Tensor:
        return self.scratch(name, self.x.shape)

    def delta(self) -> Tensor:
        """Return the step sizes Δ = softplus(dt_weight dt + dt_bias), (G, T·S, D).

        The buffer "pre" then holds what `slope_` needs. In powers of 2, which torch computes faster than
        powers of e.
        """
        pre, scale = self.buffer("pre"), LOG2E if self.tame else 1.0
        rows = pre.view(-1, pre.shape[-1])
        torch.addmm(self.dt_bias * scale, self.dt.flatten(0, 1), self.dt_weight.T * scale, out=rows)
        delta = self.buffer("delta")
        if self.tame:
            return torch.log1p(pre.exp2_(), out=delta)
        result: Tensor = torch.ops.aten.softplus.out(pre, out=delta)
        return result

    def slope_(self) -> Tensor:
        """Return dΔ/d(dt_weight dt + dt_bias), the sigmoid, (G, T·S, D); overwrites the buffer "pre"."""
        pre = self.buffer("pre")
        return pre.div_(pre + 1) if self.tame else pre.sigmoid_()

    def decay(self, delta: Tensor, n: int) -> Tensor:
        """Return exp(Δ A) of state n, (G, T·S, D)."""
        return torch.mul(delta, self.A[:, n] * LOG2E, out=self.buffer("decay")).exp2_()

    def states(self, decay: Tensor, xd: Tensor, n: int) -> Tensor:
        """Return h of state n, (G, T·S, D), from its decay, which is overwritten, and xd = Δ·x."""
        h = torch.mul(xd, self.B[..., n, None], out=self.buffer("h"))
        recur_(self.grid(decay), self.grid(h), self.slots, self.reverse)
        return h

    def adjoint_(self, decay: Tensor, g: Tensor) -> None:
        """Compute in place g_t ← g_t + a_{next} g_{next}, from the end of the walk to its start."""
        T, S = self.slots.steps, self.slots.segments
        a, shifted = self.grid(decay), self.grid(self.buffer("consumed"))
        if self.reverse:  # the walk goes down, so its adjoint goes up: slot t needs the decay of slot t - 1
            shifted[:, 1:] = a[:, : T - 1]
            shifted[:, 0, 1:] = a[:, T - 1, : S - 1]
            shifted[:, 0, 0] = 0
        else:
            shifted[:, : T - 1] = a[:, 1:]
            shifted[:, T - 1, : S - 1] = a[:, 0, 1:]
            shifted[:, T - 1, S - 1] = 0
        recur_(shifted, self.grid(g), self.slots, not self.reverse)

    def kept_(self, decay: Tensor, h: Tensor) -> Tensor:
        """Return a_t h_{t-1}, the part of each state that comes from the one before; overwrites the decay."""
        T, S = self.slots.steps, self.slots.segments
        a, h = self.grid(decay), self.grid(h)
        if self.reverse:
            a[:, : T - 1] *= h[:, 1:]
            a[:, T - 1, : S - 1] *= h[:, 0, 1:]
            a[:, self.slots.last - 1, S - 1] = 0  # where the walk starts
        else:
            a[:, 1:] *= h[:, : T - 1]
            a[:, 0, 1:] *= h[:, T - 1, : S - 1]
            a[:, 0, 0] = 0
        return decay


def _forward_walk(w: _Walk, y: Tensor, fresh: bool) -> None:
    """Add Σ_n C_n h_n of a walk to y (G, T·S, D), or write it there if y is fresh."""
    delta = w.delta()
    xd = torch.mul(delta, w.x, out=w.buffer("xd"))
    for n in range(w.A.shape[-1]):
        h, c_n = w.states(w.decay(delta, n), xd, n), w.C[..., n, None]
        if fresh and n == 0:
            torch.mul(h, c_n, out=y)
        else:
            y.addcmul_(h, c_n)


@dataclass(frozen=True)
class _WalkGrads:
    """Gradients of a walk, in the shapes of its arguments; that of x is added to a shared buffer."""

    dt: Tensor
    B: Tensor
    C: Tensor
    dt_weight: Tensor
    dt_bias: Tensor
    A: Tensor


def _backward_walk(w: _Walk, gy: Tensor, gx: Tensor) -> _WalkGrads:
    """Return the gradients of a walk for gy (G, T·S, D), zero in spare slots; add that of x to gx.

    With g = ∂loss/∂h after the adjoint recurrence and kept = a_t h_{t-1}:
    ∂Δ = g·(A·kept + B x),  ∂A = Σ g·kept·Δ,  ∂B = Σ_d g·Δx,  ∂C = Σ_d ∂y·h,  ∂x = g·Δ·B.
    """
    delta = w.delta()
    xd = torch.mul(delta, w.x, out=w.buffer("xd"))
    g_delta, product = w.buffer("g_delta").zero_(), w.buffer("product")
    g_A, g_B, g_C = torch.empty_like(w.A), torch.empty_like(w.B), torch.empty_like(w.C)
    for n in range(w.A.shape[-1]):
        b_n, a_n = w.B[..., n, None], w.A[:, n]
        decay = w.decay(delta, n)
        h = w.states(w.buffer("consumed").copy_(decay), xd, n)
        torch.sum(torch.mul(h, gy, out=product), -1, out=g_C[..., n])
        g = torch.mul(gy, w.C[..., n, None], out=w.buffer("g"))
        w.adjoint_(decay, g)
        kept = w.kept_(decay, h).mul_(g)
        torch.sum(torch.mul(kept, delta, out=product), (0, 1), out=g_A[:, n])
        g_delta.addcmul_(kept, a_n)
        torch.sum(torch.mul(g, xd, out=product), -1, out=g_B[..., n])
        g.mul_(b_n)
        g_delta.addcmul_(g, w.x)
        gx.addcmul_(g, delta)
    g_pre = g_delta.mul_(w.slope_())
    flat = g_pre.view(-1, g_pre.shape[-1])  # (G·T·S, D)
    return _WalkGrads(
        dt=(flat @ w.dt_weight).view(w.dt.shape),
        B=g_B,
        C=g_C,
        dt_weight=flat.T @ w.dt.flatten(0, 1),
        dt_bias=flat.sum(0),
        A=g_A,
    )


# --- the op -----------------------------------------------------------------------------------------------


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class TorchScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        tensors, (routes, merge) = args[:8], args[8:]
        ctx.save_for_backward(*tensors)
        ctx.routes, ctx.merge = routes, merge
        with without_autocast(tensors[0].device):
            return _forward(_Problem.of(tensors, routes), merge).to(tensors[0].dtype)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Any, ...]:
        tensors = ctx.saved_tensors
        if torch.is_grad_enabled():
            return second_order_gradients(ctx, tensors, gy)
        with without_autocast(tensors[0].device):
            grads = _backward(_Problem.of(tensors, ctx.routes), gy, ctx.merge)
        return (*(g.to(t.dtype) for g, t in zip(grads, tensors, strict=True)), None, None)


def second_order_gradients(ctx: Any, tensors: Sequence[Tensor], gy: Tensor) -> tuple[Any, ...]:
    """Return what a scan's backward does, in a way that can be differentiated again."""

    def scan(*tensors: Tensor) -> Tensor:
        return selective_scan_composed(ScanTensors(*tensors), ctx.routes, ctx.merge)

    return (*differentiable_gradients(scan, tensors, gy, ctx.needs_input_grad[:8]), None, None)


@dataclass(frozen=True)
class _Problem:
    """The arguments of the operation in its computing dtype, positions flattened to L = H·W."""

    x: Tensor  # (B, L, D)
    dt: Tensor  # (B, L, K, R)
    B: Tensor  # (B, L, K, N)
    C: Tensor  # (B, L, K, N)
    dt_weight: Tensor  # (K, D, R)
    dt_bias: Tensor  # (K, D)
    A: Tensor  # (K, D, N)
    D: Tensor  # (K, D)
    routes: tuple[Route, ...]
    height: int
    width: int
    tame: bool

    @classmethod
    def of(cls, tensors: Sequence[Tensor], routes: tuple[Route, ...]) -> _Problem:
        x, dt, B, C, *weights = tensors
        dtype = _compute_dtype(x)
        x_, dt_, B_, C_ = (v.to(dtype).flatten(1, 2) for v in (x, dt, B, C))
        weight, bias, A, D = (v.to(dtype) for v in weights)
        tame = _tame(dt_, weight, bias)
        return cls(x_, dt_, B_, C_, weight, bias, A, D, routes, x.shape[1], x.shape[2], tame)

    def walk(self, k: int, tile: slice, x: Tensor, to_position: Tensor, scratch: Scratch) -> _Walk:
        dt, B, C = (v[tile, :, k].index_select(1, to_position) for v in (self.dt, self.B, self.C))
        slots = slots_of(self.height * self.width)
        reverse = self.routes[k].reverse
        weights = self.dt_weight[k], self.dt_bias[k], self.A[k]
        return _Walk(slots, reverse, scratch, x, dt, B, C, *weights, self.tame)


def _tame(dt: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Return whether |dt_weight dt + dt_bias| is small enough for its exponential, by a cheap bound.

    Python waits for the answer, so on other devices than a CPU it is False without a look.
    """
    if dt.device.type != "cpu" or torch.compiler.is_compiling() or type(dt) is not Tensor or not dt.numel():
        return False
    largest = dt.abs().amax((0, 1))  # (K, R)
    bound = torch.einsum("kdr,kr->kd", weight.abs(), largest) + bias.abs()
    return bool(bound.amax() < EXP2_LIMIT)  # NaN is not


def _gather(v: Tensor, index: Tensor, scratch: Scratch, name: str) -> Tensor:
    """Gather v (G, n, D) at the positions (or slots) of an index, in a scratch buffer."""
    out = scratch(name, (v.shape[0], index.numel(), v.shape[2]))
    return torch.index_select(v, 1, index, out=out)


def _forward(p: _Problem, merge: bool) -> Tensor:
    batch, length, channels = p.x.shape
    scratch = Scratch(p.x)
    shape = (batch, length, channels) if merge else (batch, len(p.routes), length, channels)
    out = p.x.new_empty(shape)
    for tile in _tiles(batch, length * channels):
        if merge:
            torch.mul(p.x[tile], p.D.sum(0), out=out[tile])
        for route, members in _pairs(p.routes).items():
            to_position, to_slot = slot_index(route, p.height, p.width, p.x)
            x = _gather(p.x[tile], to_position, scratch, "x")  # shared by both directions
            y = scratch("y", x.shape)
            for k in members:
                _forward_walk(p.walk(k, tile, x, to_position, scratch), y, not merge or k == members[0])
                if not merge:
                    y.addcmul_(x, p.D[k])
                    out[tile, k] = _gather(y, to_slot, scratch, "on grid")
            if merge:
                out[tile] += _gather(y, to_slot, scratch, "on grid")
    return out.view(*out.shape[:-2], p.height, p.width, channels)


def _backward(p: _Problem, gy: Tensor, merge: bool) -> tuple[Tensor, ...]:
    """Return the gradients of x, dt, B, C, dt_weight, dt_bias, A, D."""
    gy = gy.to(p.x.dtype).flatten(-3, -2)  # (B, L, D), or (B, K, L, D) without merge
    batch, length, channels = p.x.shape
    scratch = Scratch(p.x)
    g_x, g_dt, g_B, g_C = (
        torch.zeros(v.shape, dtype=v.dtype, device=v.device) for v in (p.x, p.dt, p.B, p.C)
    )
    g_weight, g_bias, g_A, g_D = (torch.zeros_like(v) for v in (p.dt_weight, p.dt_bias, p.A, p.D))
    for tile in _tiles(batch, length * channels):
        for route, members in _pairs(p.routes).items():
            to_position, to_slot = slot_index(route, p.height, p.width, p.x)
            x = _gather(p.x[tile], to_position, scratch, "x")
            gx = scratch("gx", x.shape).zero_()
            gy_slots = _cotangent(gy[tile], to_position, length, scratch) if merge else None
            for k in members:
                gy_k = _cotangent(gy[tile, k], to_position, length, scratch) if gy_slots is None else gy_slots
                grads = _backward_walk(p.walk(k, tile, x, to_position, scratch), gy_k, gx)
                for whole, part in ((g_dt, grads.dt), (g_B, grads.B), (g_C, grads.C)):
                    whole[tile, :, k] = part.index_select(1, to_slot)
                g_weight[k] += grads.dt_weight
                g_bias[k] += grads.dt_bias
                g_A[k] += grads.A
                if not merge:
                    g_D[k] += torch.mul(gy_k, x, out=scratch("product", x.shape)).sum((0, 1))
                    gx.addcmul_(gy_k, p.D[k])
            g_x[tile] += _gather(gx, to_slot, scratch, "on grid")
        if merge:
            g_x[tile].addcmul_(gy[tile], p.D.sum(0))
            g_D += torch.mul(gy[tile], p.x[tile]).sum((0, 1))
    on_grid = (v.view(batch, p.height, p.width, *v.shape[2:]) for v in (g_x, g_dt, g_B, g_C))
    return (*on_grid, g_weight, g_bias, g_A, g_D)


def _cotangent(gy: Tensor, to_position: Tensor, length: int, scratch: Scratch) -> Tensor:
    """Return gy (G, L, D) laid out in slots, with zeros in the spare ones."""
    laid = _gather(gy, to_position, scratch, "gy")
    slots = slots_of(length)
    if slots.last < slots.steps:
        spare = laid.view(laid.shape[0], slots.steps, slots.segments, laid.shape[-1])
        spare[:, slots.last :, -1] = 0
    return laid
