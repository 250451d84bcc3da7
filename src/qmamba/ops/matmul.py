"""A Linear of plain float32 tensors on a CPU by oneDNN, which comes with torch.

``F.linear`` uses MKL there, which takes its AVX-512 paths on Intel's CPUs only: on another maker's,
``lqmamba-t`` took 0.88 to 0.93 of the time with oneDNN (a forward pass, one thread).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import watched

PLAIN = (Tensor, torch.nn.Parameter)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``F.linear`` of x (…, I), weight (O, I) and bias (O): (…, O).

    Other devices and dtypes, autocast, tracers and dispatch modes get ``F.linear`` itself.
    """
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if not _takes(tensors) or x.numel() == 0:
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        out: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return out
    return _product(x, weight, bias)


def plain(tensors: tuple[Tensor, ...], dtypes: tuple[torch.dtype, ...]) -> bool:
    """Return whether these are plain CPU tensors of these dtypes, outside of tracers, modes and autocast."""
    return (
        not watched()  # first, so that tracers skip the rest
        and all(t.device.type == "cpu" and t.dtype in dtypes and type(t) in PLAIN for t in tensors)
        and not torch.is_autocast_enabled("cpu")
    )


def _takes(tensors: tuple[Tensor, ...]) -> bool:
    enabled = bool(torch.backends.mkldnn.enabled)  # users can switch it off
    return plain(tensors, (torch.float32,)) and enabled and _available()


@lru_cache(maxsize=1)
def _available() -> bool:
    """Return whether torch has the operation and the CPU AVX-512; with AVX2 there was no gain."""
    exists = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]
    return exists and torch.backends.cpu.get_cpu_capability() == "AVX512"


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        of_x, of_weight = ctx.needs_input_grad[:2]  # keep only what the gradients asked for need
        ctx.save_for_backward(x if of_weight else None, weight if of_x else None)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = g.reshape(-1, g.shape[-1])
        g_x = linear(g, weight.t()) if of_x else None
        # Not by oneDNN, which would need copies of both.
        g_weight = rows.t() @ x.reshape(-1, x.shape[-1]) if of_weight else None
        return g_x, g_weight, rows.sum(0) if of_bias else None
