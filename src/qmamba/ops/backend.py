"""Which implementation of the operations runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import BackendError
from . import native

BACKENDS = ("torch", "native", "reference")


class Backend(NamedTuple):
    """An implementation of the scan: its name, whether it can be used here, and what it is, or why not."""

    name: str
    usable: bool
    note: str


def backends() -> list[Backend]:
    """The implementations of the scan, in the order in which they are preferred.

    ``QMAMBA_BACKEND`` chooses one of them; otherwise it is the first that takes the tensors at hand.

    >>> import qmamba
    >>> [backend.name for backend in qmamba.backends()]
    ['native', 'torch', 'reference']
    """
    try:
        variants = native.load().variants
        variant = variants[native.load().indices.index(native.load().variant())]
        kernel = Backend("native", True, f"C for processors, {variant}; eager and compiled")
    except BackendError as error:
        kernel = Backend("native", False, str(error))
    return [
        kernel,
        Backend("torch", True, "torch's own operations, on any device"),
        Backend("reference", True, "a plain loop, slow: what the others are tested against"),
    ]


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
