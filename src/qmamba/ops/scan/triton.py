"""The selective scan on a GPU: what its kernels in Triton are launched with, and the sums they leave.

Routes that visit the same positions in opposite orders are walked by one launch. A walk is cut into chunks,
so that a single image fills the card and what a chunk reads is still near when it is read again; what enters
each chunk is found first, from what every chunk does to a state of zero. Nothing here adds up in an order
that varies: same input, same bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..routes import Route
from .native import rows
from .torch import LOG2E

TILE = 16  # steps that a thread works on together, as few as tensor cores take
LANES = 64  # channels times states that a program works on together, two of a thread where it is one warp
GROUP = 128  # channels whose sums a program adds up backwards, one block after the other
CHUNK = 512  # steps, at most, that are walked one after the other
SHORTEST = 64  # steps of a chunk, where a walk has so many
PROGRAMS = 2048  # that a launch should have, where the shapes allow it
CARRIES = (32, 64)  # chunks that a program carries states through together, and lanes


class Pair(NamedTuple):
    """The indices of two routes over one order of positions, forwards and reversed; -1 if there is none."""

    forward: int
    reverse: int
    route: Route


class Kind(NamedTuple):
    """What kernels are compiled for, beside routes."""

    rank: int
    states: int
    exact: bool  # results are as precise as float32
    amd: bool = False
    old: bool = False  # a card of NVIDIA's whose tensor cores don't take bfloat16

    def channels(self, *, backward: bool = False) -> int:
        """Channels that a program works on: fewer where the expansion of step sizes would take more registers
        than there are."""
        many = self.rank > (16 if self.exact else 32) and not backward
        return max(LANES // (1 + many) // (1 + self.old) // power(self.states), 16)


def pairs(routes: Sequence[Route]) -> list[Pair]:
    """All routes, two at a time.

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


def selective_scan_triton(
    x: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    routes: Sequence[Route],
    merge: bool = True,
) -> Tensor:
    """See :func:`qmamba.ops.selective_scan`."""
    y: Tensor = TritonScan.apply(x, dt, B, C, dt_weight, dt_bias, A, D, tuple(routes), merge)  # type: ignore[no-untyped-call]
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
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors  # asked for once: under activation checkpointing they are made then
        tensors, kept = saved[:8], saved[8:]
        with torch.cuda.device_of(gy):  # type: ignore[no-untyped-call]
            problem = Problem.of(tensors, ctx.routes, ctx.merge)
            grads = problem.backward(gy, kept[0] if kept else problem.entering())
        return (*(g.to(t.dtype) for g, t in zip(grads, tensors, strict=True)), None, None)


@dataclass(frozen=True)
class Problem:
    """The arguments of the op, laid out as the kernels take them."""

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
        """images, height, width, channels, routes, rank, states."""
        batch, height, width, channels = self.x.shape
        return batch, height, width, channels, *self.weight.shape[:2], self.B.shape[-1]

    @property
    def reversed(self) -> int:
        """A bit for each route, set if it is the reversed one of its pair."""
        return sum(1 << pair.reverse for pair in self.pairs if pair.reverse >= 0)

    @property
    def chunk(self) -> int:
        """Steps of a chunk, in whole tiles; forwards and backwards the same, since tiles start with it."""
        batch, D = self.x.shape[0], self.x.shape[-1]
        others = max(1, batch * -(-D // self.kind.channels()))
        tiles = self.tiles // -(-PROGRAMS // others)
        return TILE * max(SHORTEST // TILE, min(CHUNK // TILE, tiles))

    @cached_property  # it is asked for several times a launch
    def kind(self) -> Kind:
        """What kernels are compiled for."""
        *_, R, N = self.sizes
        old = self.x.is_cuda and torch.cuda.get_device_capability(self.x.device) < (8, 0)
        return Kind(R, N, self.x.dtype == torch.float32, torch.version.hip is not None, old)

    @property
    def tiles(self) -> int:
        """Tiles of a walk."""
        return -(-self.x.shape[1] * self.x.shape[2] // TILE)

    def forward(self, keep: bool = False) -> tuple[Tensor, Tensor | None]:
        """y, and with ``keep`` the state that enters each tile, (B, K, tiles, D, N)."""
        batch, height, width, D, K, _, _ = self.sizes
        grid = (batch, height, width, D) if self.merge else (batch, K, height, width, D)
        y = self.x.new_empty(grid)
        entering = self._tiles() if keep else None
        if y.numel():
            self._outputs(y, entering)
        return y, entering

    def entering(self) -> Tensor:
        """The state that enters each tile, without the outputs."""
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
        out = self.x if y is None else y  # without y nothing is written there
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
        """The state that enters each chunk, (B, K, chunks, D, N); of the adjoint recurrence with ``gy``."""
        from . import triton_kernels as kernels

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
        """Gradients of x, dt, B, C, dt_weight, dt_bias, A, D, all but x's in float32."""
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
    """From image to image and from route to route of v (B, K, H, W, D), or (B, H, W, D) of all routes."""
    return v.stride(0), v.stride(1) if v.ndim == 5 else 0


def _walked(v: Tensor) -> tuple[Tensor, int, int, int]:
    """v (B, H, W, K, ·) and its strides from image to image, position to position, route to route."""
    return v, v.stride(0), v.stride(2), v.stride(3)


def power(n: int) -> int:
    """The next power of 2, at least n."""
    return 1 << (n - 1).bit_length()


def constants(pair: Pair, K: int, kind: Kind, *, backward: bool) -> dict[str, Any]:
    """What a kernel is compiled for."""
    channels = kind.channels(backward=backward)
    warps = min(8, max(1, channels * power(kind.states) // 64))  # with one state one, which waits for none
    return {
        "K": K,
        "FORWARD_ROUTE": pair.forward,
        "REVERSE_ROUTE": pair.reverse,
        "COLUMN": pair.route.axis == "column",
        "WINDOW": pair.route.window or 0,
        "RANK": kind.rank,
        "RANK_": max(16, power(kind.rank)),
        "PARTS": 1
        if kind.old
        else 3
        if kind.exact
        else 2,  # of bfloat16, that tensor cores take of a float32
        "STATES": kind.states,
        "STATES_": power(kind.states),
        "T": TILE,
        "CHANNELS": channels,
        "num_stages": 1,  # loads go ahead as it is, and more of them would take registers until some spill
        # Warps have 64 threads on AMD's cards. For NVIDIA's the assembler is told to take all registers: left
        # alone it spills some for the sake of more warps.
        **({"num_warps": min(4, warps)} if kind.amd else {"num_warps": warps, "maxnreg": 255}),
    }
