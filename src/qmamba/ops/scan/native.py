"""The selective scan in C: the fastest on a CPU, where the library has been built.

This module lays out the arguments of the library and adds up the partial sums of its tasks. Results have the
same bits in every run and for any number of threads: the tasks depend on the shapes only.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import native
from ..backend import usable
from ..native import pool
from ..routes import Route
from .tensors import ScanTensors
from .torch import LOG2E, second_order_gradients, selective_scan_torch

BLOCK = 64  # channels; QM_BLOCK in scan.h
TASKS = 8  # wanted number of tasks, where the shapes allow it
ALONE = 2**15  # elements (images · positions · channels · routes) that are not worth a second thread

_NUMBERS = ("images", "length", "channels", "routes", "rank", "states", "merge", "image_groups",
            "channel_groups", "route_groups", "next", *(f"{v}_{s}" for v in ("dt", "B", "C")
                                        for s in ("image", "position", "route")))  # fmt: skip
_ARRAYS = ("order", "x", "dt", "B", "C", "dt_weight", "dt_bias", "A", "D", "y", "gy",
           "g_x", "g_dt", "g_B", "g_C", "g_weight", "g_bias", "g_A", "g_D")  # fmt: skip


class _Arguments(ctypes.Structure):
    """``qm_scan`` of scan.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _NUMBERS),
        *((name, ctypes.c_void_p) for name in _ARRAYS),
    ]


def selective_scan_native(tensors: ScanTensors, routes: tuple[Route, ...], merge: bool) -> Tensor:
    """Compute :func:`qmamba.ops.selective_scan`; float64 and other than plain CPU tensors run in torch."""
    native.load()
    if not tensors.x.numel() or not usable(tensors):
        return selective_scan_torch(tensors, routes, merge)
    y: Tensor = NativeScan.apply(*tensors, routes, merge)  # type: ignore[no-untyped-call]
    return y


class NativeScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        tensors, (routes, merge) = args[:8], args[8:]
        ctx.save_for_backward(*tensors)
        ctx.routes, ctx.merge = routes, merge
        p = Problem.of(tensors, routes, merge)
        shape = tensors[0].shape if merge else (p.grid[0], len(routes), *tensors[0].shape[1:])
        y = p.x.new_empty(shape)
        p.call("forward", y=y)
        return y.to(tensors[0].dtype)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Any, ...]:
        tensors = ctx.saved_tensors
        if torch.is_grad_enabled():
            return second_order_gradients(ctx, tensors, gy)
        p = Problem.of(tensors, ctx.routes, ctx.merge)
        grads = p.gradients(gy.to(torch.float32).contiguous())
        return (*(g.to(t.dtype) for g, t in zip(grads, tensors, strict=True)), None, None)


@dataclass(frozen=True)
class Problem:
    """The arguments of the operation, in float32 and with strides that the library takes."""

    x: Tensor  # (B, H, W, D), contiguous
    dt: Tensor  # (B, H, W, K, R)
    B: Tensor  # (B, H, W, K, N)
    C: Tensor  # (B, H, W, K, N)
    dt_weight: Tensor  # (K, R, D)
    dt_bias: Tensor  # (K, D)
    A: Tensor  # (K, N, D), times log2 e
    D: Tensor  # (K, D)
    routes: tuple[Route, ...]
    merge: bool

    @classmethod
    def of(cls, tensors: Sequence[Tensor], routes: tuple[Route, ...], merge: bool) -> Problem:
        x, dt, B, C, weight, bias, A, D = (t.detach().to(torch.float32) for t in tensors)
        return cls(
            x.contiguous(), rows(dt), rows(B), rows(C), weight.transpose(1, 2).contiguous(),
            bias.contiguous(), (A.transpose(1, 2) * LOG2E).contiguous(), D.contiguous(), routes, merge,
        )  # fmt: skip

    @property
    def grid(self) -> tuple[int, int, int]:
        batch, height, width = self.x.shape[:3]
        return batch, height, width

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int]:
        """Return images, length, channels, routes, rank, states."""
        batch, height, width = self.grid
        K, R, D = self.dt_weight.shape
        return batch, height * width, D, K, R, self.B.shape[-1]

    def call(self, direction: str, **outputs: Tensor) -> None:
        """Run ``"forward"`` or ``"backward"`` over all tasks, given its cotangent and output tensors."""
        sizes = self.sizes
        groups = _backward_groups(*sizes) if direction == "backward" else _forward_groups(*sizes, self.merge)
        order = _orders(self.routes, *self.grid[1:])
        strides = [s for v in (self.dt, self.B, self.C) for s in (v.stride(0), v.stride(2), v.stride(3))]
        arguments = _Arguments(*sizes, int(self.merge), *groups, 0, *strides)
        arguments.order = order.ctypes.data
        inputs = {name: getattr(self, name) for name in _ARRAYS[1:9]}
        for name, tensor in (inputs | outputs).items():
            setattr(arguments, name, tensor.data_ptr())
        library = native.load()
        assert library.functions.qm_scan_size() == ctypes.sizeof(_Arguments)
        variant, address = library.variant(), ctypes.addressof(arguments)
        floats = library.functions.qm_scan_scratch(variant, address)

        def work(threads: int, team: int | None) -> None:
            scratch = pool.scratch(floats * threads)
            library.functions.qm_scan_run(variant, address, direction == "backward", scratch, threads, team)

        batch, length, channels, routes = sizes[:4]
        tasks = math.prod(groups) if batch * length * channels * routes > ALONE else 1
        pool.run(work, tasks)

    def gradients(self, gy: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of x, dt, B, C, dt_weight, dt_bias, A, D."""
        batch, length, D, K, R, N = self.sizes
        images, channels, _ = _backward_groups(batch, length, D, K, R, N)
        grid = self.x.shape[:3]
        new = self.x.new_empty
        parts = {
            "g_x": new(self.x.shape),
            "g_dt": new(channels, *grid, K, R), "g_B": new(channels, *grid, K, N),
            "g_C": new(channels, *grid, K, N), "g_weight": new(images, K, R, D),
            "g_bias": new(images, K, D), "g_A": new(images, K, N, D), "g_D": new(images, K, D),
        }  # fmt: skip
        self.call("backward", gy=gy, **parts)
        g_x, *rest = parts.values()
        g_dt, g_B, g_C, g_weight, g_bias, g_A, g_D = (v[0] if len(v) == 1 else v.sum(0) for v in rest)
        return g_x, g_dt, g_B, g_C, g_weight.transpose(1, 2), g_bias, g_A.transpose(1, 2), g_D


def rows(v: Tensor) -> Tensor:
    """Return v (B, H, W, K, ·) with a contiguous last dimension and positions one stride apart."""
    fits = v.stride(4) == 1 and v.stride(1) == v.stride(2) * v.shape[2]
    return v if fits else v.contiguous()


@lru_cache(maxsize=256)
def _forward_groups(
    images: int, length: int, channels: int, routes: int, rank: int, states: int, merge: bool
) -> tuple[int, int, int]:
    """Return into how many groups images, channels and routes are divided to make tasks."""
    image_groups = min(images, TASKS)
    channel_groups = min(-(-channels // BLOCK), -(-TASKS // image_groups))
    route_groups = 1 if merge else min(routes, -(-TASKS // (image_groups * channel_groups)))
    return image_groups, channel_groups, route_groups


@lru_cache(maxsize=256)
def _backward_groups(
    images: int, length: int, channels: int, routes: int, rank: int, states: int
) -> tuple[int, int, int]:
    """Return the same for the backward, where groups of routes would share the gradient of x.

    Of the divisions with enough tasks, this is the one with the smallest partial sums: every group of
    channels has its own gradients of dt, B and C, and every group of images those of the weights.
    """
    blocks = -(-channels // BLOCK)
    enough = min(TASKS, images * blocks)

    def cost(groups: tuple[int, int, int]) -> int:
        per_channels = groups[1] * images * length * routes * (rank + 2 * states)
        return per_channels + groups[0] * routes * channels * (rank + states + 2)

    choices = [(i, c, 1) for i in range(1, images + 1) for c in range(1, blocks + 1) if i * c >= enough]
    return min(choices, key=cost)


@lru_cache(maxsize=256)
def _orders(routes: tuple[Route, ...], height: int, width: int) -> np.ndarray:
    """Return the position that each route visits at each step, (K, L) int32."""
    orders = np.stack([route.visits(height, width) for route in routes]).astype(np.int32)
    orders.flags.writeable = False
    return orders
