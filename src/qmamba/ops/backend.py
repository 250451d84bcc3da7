"""Which implementation of the operations runs."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import BackendError
from . import native

BACKENDS = ("torch", "native", "reference")


def choose(tensors: Sequence[Tensor], backend: str = "auto") -> str:
    """The name of the backend for these tensors: the one given, else the one that the variable
    ``QMAMBA_BACKEND`` names, else native where :func:`usable`, else torch.

    Raises:
        BackendError: there is none of that name.
    """
    name = os.environ.get("QMAMBA_BACKEND", "auto") if backend == "auto" else backend
    if name == "auto":
        return "native" if usable(tensors) else "torch"
    if name not in BACKENDS:
        raise BackendError(f"unknown scan backend {name!r}: choose one of {', '.join(['auto', *BACKENDS])}")
    return name


def usable(tensors: Sequence[Tensor]) -> bool:
    """Whether the native kernels can take these arguments here and now: plain CPU tensors that nobody
    traces, the first of any floating dtype but float64, and a library that is there."""
    x = tensors[0]
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return False
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None or _dispatched():
        return False
    return native.available() and all(
        type(t) in (Tensor, torch.nn.Parameter) and t.device.type == "cpu" for t in tensors
    )


def _dispatched() -> bool:
    """Whether a mode (a tracer, a counter of operations) wants to see every operation."""
    depth = getattr(torch._C, "_len_torch_dispatch_stack", None)
    return bool(depth is not None and depth())
