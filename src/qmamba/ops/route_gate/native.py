"""The route gate's passes over all routes, in C; the small network between them is torch's.

Sums over positions are made in chunks of a fixed size and added in a fixed order: same input, same
bits, for any number of threads.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ..native import load, pool

CHUNK = 256  # positions
ALONE = 2**17  # elements of all routes that are not worth a second thread

MOMENTS, OUT, G_GATES, ADD_UP, G_Y = range(5)  # the passes, as gate.h has them

_NUMBERS = ("images", "routes", "length", "channels", "chunk", "next", "onto")
_ARRAYS = ("y", "mean", "rstd", "sums", "gates", "out", "g_out", "g_norm", "g_y")


class _Arguments(ctypes.Structure):
    """``qm_gate`` of gate.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _NUMBERS),
        *((name, ctypes.c_void_p) for name in _ARRAYS),
    ]


def moments(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return LayerNorm's statistics of routes (B, K, L, D), float32.

    Mean and 1/σ over the channels, (B, K, L) each, and the normalised routes' mean over positions (B, K, D).
    """
    B, K, L, D = y.shape
    mean, sums = y.new_empty(B, K, L), y.new_empty(B, -(-L // CHUNK), K, D)
    rstd = torch.empty_like(mean)
    _run((MOMENTS, ADD_UP), y, mean=mean, rstd=rstd, sums=sums)
    return mean, rstd, sums[:, 0] / L


def gated_sum(y: Tensor, gates: Tensor, out: Tensor, *, onto: bool = False) -> None:
    """Write the sum of routes (B, K, L, D) times their gates (B, K, D) to out (B, L, D), or add to it."""
    _run((OUT,), y, onto=onto, gates=gates, out=out)


def gates_gradient(y: Tensor, g_out: Tensor) -> Tensor:
    """Return routes (B, K, L, D) times cotangent (B, L, D), summed over positions: (B, K, D)."""
    B, K, L, D = y.shape
    sums = y.new_empty(B, -(-L // CHUNK), K, D)
    _run((G_GATES, ADD_UP), y, g_out=g_out, sums=sums)
    return sums[:, 0]


def routes_gradient(
    y: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gates: Tensor,
    g_out: Tensor,
    g_norm: Tensor,
    out: Tensor | None = None,
) -> Tensor:
    """Return the gradient of the routes (B, K, L, D); ``out`` may be ``y`` itself.

    The normalised rows of all positions of a route have the same cotangent ``g_norm`` (B, K, D).
    """
    g_y = torch.empty_like(y) if out is None else out
    # A constant in the cotangent has no effect on a normalised row.
    g_norm = g_norm - g_norm.mean(-1, keepdim=True)
    _run((G_Y,), y, mean=mean, rstd=rstd, gates=gates, g_out=g_out, g_norm=g_norm, g_y=g_y)
    return g_y


def _run(passes: tuple[int, ...], y: Tensor, onto: bool = False, **tensors: Tensor) -> None:
    library = load()
    assert library.functions.qm_gate_size() == ctypes.sizeof(_Arguments)
    variant = library.variant()
    B, K, L, D = y.shape
    arguments = _Arguments(B, K, L, D, CHUNK, 0, onto)
    for name, tensor in {"y": y, **tensors}.items():
        assert tensor.is_contiguous() and tensor.dtype == torch.float32
        setattr(arguments, name, tensor.data_ptr())
    tasks = B * -(-L // CHUNK) if y.numel() > ALONE else 1
    for which in passes:
        arguments.next = 0
        pool.run(_work(library.functions, variant, arguments, which), 1 if which == ADD_UP else tasks)


def _work(functions: ctypes.CDLL, variant: int, arguments: _Arguments, which: int) -> pool.Work:
    address = ctypes.addressof(arguments)
    return lambda threads, team: functions.qm_gate_run(variant, address, which, threads, team)
