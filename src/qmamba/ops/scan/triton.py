"""The selective scan on a GPU: the launches of its Triton kernels, and the sums over their results.

One launch walks the routes that visit the same positions in opposite orders. A walk is cut into chunks, so
that a single image fills the GPU and a chunk's inputs are still in the cache when they are read again. The
states that enter the chunks come first, from what every chunk does to a state of zero. Sums are added in a
fixed order: same input, same bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..routes import Route
from .native import rows
from .tensors import ScanTensors
from .torch import LOG2E, second_order_gradients

TILE = 16  # steps that a thread computes together, the minimum of tensor cores
LANES = 64  # channels · states of a program, two of a thread where it is one warp
GROUP = 128  # channels whose sums one program of the backward adds, block after block
CHUNK = 512  # maximum steps of a chunk
SHORTEST = 64  # minimum steps of a chunk, where a walk has as many
PROGRAMS = 2048  # wanted number of programs of a launch, where the shapes allow it
CARRIES = (32, 64)  # chunks that a program carries states through together, and lanes


class Pair(NamedTuple):
    """The indices of a forward and a reversed route over one order of positions; -1 if there is none."""

    forward: int
    reverse: int
    route: Route


class Kind(NamedTuple):
    """The compile-time constants of the kernels, beside routes."""

    rank: int
    states: int
    exact: bool  # results are as precise as float32
    amd: bool = False
    old: bool = False  # an NVIDIA GPU whose tensor cores lack bfloat16

    def channels(self, *, backward: bool = False) -> int:
        """Return the channels of a program: fewer where the step sizes would exceed the registers."""
        many = self.rank > (16 if self.exact else 32) and not backward
        return max(LANES // (1 + many) // (1 + self.old) // power(self.states), 16)


def pairs(routes: Sequence[Route]) -> list[Pair]:
    """Return all routes, in pairs.

    >>> pairs([Route("row"), Route("column"), Route("row", reverse=True)])
    [Pair(forward=0, reverse=2, route=Route(axis='row', window=None, reverse=False)), \
Pair(forward=1, reverse=-1, route=Route(axis='column', window=None, reverse=False))]
    """
    ways: dict[Route, tuple[list[int], list[int]]] = {}
    for k, route in enumerate(routes):
        ways.setdefault(route.forward, ([], []))[route.reverse].append(k)
    return [
        Pair(*both, route)
        for route, indices in ways.items()
        for both in itertools.zip_longest(*indices, fillvalue=-1)
    ]


def selective_scan_triton(tensors: ScanTensors, routes: tuple[Route, ...], merge: bool) -> Tensor:
    """Compute :func:`qmamba.ops.selective_scan`."""
    y: Tensor = TritonScan.apply(*tensors, routes, merge)  # type: ignore[no-untyped-call]
    return y


class TritonScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        tensors, (routes, merge) = args[:8], args[8:]
        ctx.routes, ctx.merge = routes, merge
        with torch.cuda.device_of(tensors[0]):  # type: ignore[no-untyped-call]
            y, entering = Problem.of(tensors, routes, merge).forward(keep=any(ctx.needs_input_grad))
        ctx.save_for_backward(*tensors, *([] if entering is None else [entering]))
        return y

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors  # read once: activation checkpointing recomputes them then
        tensors, kept = saved[:8], saved[8:]
        if torch.is_grad_enabled():
            return second_order_gradients(ctx, tensors, gy)
        with torch.cuda.device_of(gy):  # type: ignore[no-untyped-call]
            problem = Problem.of(tensors, ctx.routes, ctx.merge)
            grads = problem.backward(gy, kept[0] if kept else problem.entering())
        return (*(g.to(t.dtype) for g, t in zip(grads, tensors, strict=True)), None, None)


@dataclass(frozen=True)
class Problem:
    """The arguments of the operation, in the layout of the kernels."""

    x: Tensor  # (B, H, W, D), contiguous
    dt: Tensor  # (B, H, W, K, R), positions one stride apart
    B: Tensor  # (B, H, W, K, N)
    C: Tensor  # (B, H, W, K, N)
    weight: Tensor  # (K, R, D), float32 as all weights; times log2 e
    bias: Tensor  # (K, D), times log2 e
    A: Tensor  # (K, D, N)
    D: Tensor  # (K, D)
    pairs: list[Pair]
    merge: bool

    @classmethod
    def of(cls, tensors: Sequence[Tensor], routes: tuple[Route, ...], merge: bool) -> Problem:
        x, dt, B, C, *weights = (t.detach() for t in tensors)
        weight, bias, A, D = (w.to(torch.float32) for w in weights)
        return cls(
            x.contiguous(), rows(dt), rows(B), rows(C), (weight.transpose(1, 2) * LOG2E).contiguous(),
            (bias * LOG2E).contiguous(), A.contiguous(), D.contiguous(), pairs(routes), merge,
        )  # fmt: skip

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int, int]:
        """Return images, height, width, channels, routes, rank, states."""
        batch, height, width, channels = self.x.shape
        return batch, height, width, channels, *self.weight.shape[:2], self.B.shape[-1]

    @property
    def reversed(self) -> int:
        """Return one bit per route, set if it is the reversed one of its pair."""
        return sum(1 << pair.reverse for pair in self.pairs if pair.reverse >= 0)

    @property
    def chunk(self) -> int:
        """Return the steps of a chunk, in whole tiles; the same forwards and backwards."""
        batch, D = self.x.shape[0], self.x.shape[-1]
        others = max(1, batch * -(-D // self.kind.channels()))
        tiles = self.tiles // -(-PROGRAMS // others)
        return TILE * max(SHORTEST // TILE, min(CHUNK // TILE, tiles))

    @cached_property  # read several times per launch
    def kind(self) -> Kind:
        """Return the compile-time constants of the kernels."""
        *_, R, N = self.sizes
        old = self.x.is_cuda and torch.cuda.get_device_capability(self.x.device) < (8, 0)
        return Kind(R, N, self.x.dtype == torch.float32, torch.version.hip is not None, old)

    @property
    def tiles(self) -> int:
        """Return the number of tiles of a walk."""
        return -(-self.x.shape[1] * self.x.shape[2] // TILE)

    def forward(self, keep: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return y, and with ``keep`` the state that enters each tile, (B, K, tiles, D, N)."""
        batch, height, width, D, K, _, _ = self.sizes
        grid = (batch, height, width, D) if self.merge else (batch, K, height, width, D)
        y = self.x.new_empty(grid)
        entering = self._tiles() if keep else None
        if y.numel():
            self._outputs(y, entering)
        return y, entering

    def entering(self) -> Tensor:
        """Return the state that enters each tile, without computing the outputs."""
        entering = self._tiles()
        if self.x.numel():
            self._outputs(None, entering)
        return entering

    def _tiles(self) -> Tensor:
        batch, _, _, D, K, _, N = self.sizes
        return self._new(batch, K, self.tiles, D, N)

    def _new(self, *shape: int) -> Tensor:
        return self.x.new_empty(shape, dtype=torch.float32)

    def _grid(self, channels: int) -> tuple[int, int, int]:
        batch, height, width, D, *_ = self.sizes
        return -(-height * width // self.chunk), -(-D // channels), batch

    def _constants(self, pair: Pair, *, backward: bool = False) -> dict[str, Any]:
        return constants(pair, self.weight.shape[0], self.kind, backward=backward)

    def _outputs(self, y: Tensor | None, entering: Tensor | None) -> None:
        from . import triton_kernels as kernels

        _, height, width, D, K, _, _ = self.sizes
        carries = self._carries(None)
        out = self.x if y is None else y  # not written to if y is None
        apart = self.merge and K > 1 and y is not None and y.dtype != torch.float32
        so_far = self._new(*self.x.shape) if apart else out
        for index, pair in enumerate(self.pairs):
            kernels.forward_kernel[self._grid(self.kind.channels())](
                self.x, *_walked(self.dt), *_walked(self.B), *_walked(self.C), self.weight, self.bias, self.A,
                self._skip(), carries, so_far, out, *_strides(out),
                carries if entering is None else entering, height, width, D, self.chunk,
                self.tiles, MERGE=self.merge, FIRST=index == 0,
                LAST=index == len(self.pairs) - 1, OUTPUT=y is not None, KEEP=entering is not None,
                **self._constants(pair),
            )  # fmt: skip

    def _skip(self) -> Tensor:
        return self.D.sum(0, keepdim=True) if self.merge else self.D

    def _carries(self, gy: Tensor | None) -> Tensor:
        """Return the state that enters each chunk, (B, K, chunks, D, N); with ``gy`` the adjoint's."""
        from . import triton_chunks as kernels

        batch, height, width, D, K, _, N = self.sizes
        grid = self._grid(self.kind.channels())
        entering = self._new(batch, K, grid[0], D, N)
        if grid[0] == 1:
            return entering.zero_()
        decays, ends = torch.empty_like(entering), torch.empty_like(entering)
        cotangent = self.x if gy is None else gy
        for pair in self.pairs:
            kernels.chunks_kernel[grid](
                self.x, cotangent, *_strides(cotangent), *_walked(self.dt), *_walked(self.B),
                *_walked(self.C), self.weight, self.bias, self.A, decays, ends, height, width, D,
                self.chunk, ADJOINT=gy is not None, **self._constants(pair),
            )  # fmt: skip
        down = self.reversed if gy is None else (1 << K) - 1 - self.reversed
        tile, lanes = CARRIES
        kernels.carries_kernel[(batch * K, -(-D * N // lanes))](
            decays, ends, entering, grid[0], D * N, REVERSED=down, K=K, T=tile, LANES=lanes, num_warps=4
        )
        return entering

    def backward(self, gy: Tensor, entering: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of x, dt, B, C, dt_weight, dt_bias, A, D, all but that of x in float32."""
        from . import triton_kernels as kernels

        batch, height, width, D, K, R, N = self.sizes
        gy = gy.contiguous()
        chunks, groups, _ = grid = self._grid(GROUP)
        g_x = torch.empty_like(self.x)
        so_far = g_x if g_x.dtype == torch.float32 or K == 1 else self._new(*g_x.shape)
        g_dt = self._new(groups, batch, height, width, K, R)
        g_B, g_C = (self._new(groups, batch, height, width, K, N) for _ in range(2))
        g_weight, g_bias = self._new(batch, chunks, K, R, D), self._new(batch, chunks, K, D)
        g_A, g_D = self._new(batch, chunks, K, D, N), self._new(batch, chunks, *self._skip().shape)
        if self.x.numel():
            carries = self._carries(gy)
            for index, pair in enumerate(self.pairs):
                kernels.backward_kernel[grid](
                    self.x, gy, *_strides(gy), *_walked(self.dt), *_walked(self.B), *_walked(self.C),
                    self.weight, self.bias, self.A, self._skip(), entering, carries, so_far, g_x, g_dt, g_B,
                    g_C, g_weight, g_bias, g_A, g_D, height, width, D, self.chunk, self.tiles,
                    MERGE=self.merge, FIRST=index == 0, LAST=index == len(self.pairs) - 1,
                    GROUP=GROUP, **self._constants(pair, backward=True),
                )  # fmt: skip
        by_channel = (v.sum(0) for v in (g_dt, g_B, g_C))
        g_weight, g_bias, g_A, g_D = (v.sum((0, 1)) for v in (g_weight, g_bias, g_A, g_D))
        return g_x, *by_channel, g_weight.transpose(1, 2), g_bias, g_A, g_D.expand(K, D)


def _strides(v: Tensor) -> tuple[int, int]:
    """Return the strides of images and routes of v (B, K, H, W, D), or (B, H, W, D) for all routes."""
    return v.stride(0), v.stride(1) if v.ndim == 5 else 0


def _walked(v: Tensor) -> tuple[Tensor, int, int, int]:
    """Return v (B, H, W, K, ·) and its strides of images, positions and routes."""
    return v, v.stride(0), v.stride(2), v.stride(3)


def power(n: int) -> int:
    """Return the smallest power of 2 that is at least n."""
    return 1 << (n - 1).bit_length()


def constants(pair: Pair, K: int, kind: Kind, *, backward: bool) -> dict[str, Any]:
    """Return the compile-time constants of a kernel."""
    channels = kind.channels(backward=backward)
    warps = min(8, max(1, channels * power(kind.states) // 64))  # one, for one state
    return {
        "K": K,
        "FORWARD_ROUTE": pair.forward,
        "REVERSE_ROUTE": pair.reverse,
        "COLUMN": pair.route.axis == "column",
        "WINDOW": pair.route.window or 0,
        "RANK": kind.rank,
        "RANK_": max(16, power(kind.rank)),
        "PARTS": 1 if kind.old else 3 if kind.exact else 2,  # of bfloat16, into which a float32 is split
        "STATES": kind.states,
        "STATES_": power(kind.states),
        "T": TILE,
        "CHANNELS": channels,
        "num_stages": 1,  # loads are early enough as it is, and more stages would spill registers
        # Warps have 64 threads on AMD GPUs. NVIDIA's assembler is told to use all registers: left alone it
        # spills some for the sake of more warps.
        **({"num_warps": min(4, warps)} if kind.amd else {"num_warps": warps, "maxnreg": 255}),
    }
