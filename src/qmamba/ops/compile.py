"""The scans under ``torch.compile``: calls of the operators that ``operators.py`` registers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .routes import Route

_translators = 0  # nesting depth of as_operators; a plain number, since torch.compile reads it while tracing


@contextmanager
def as_operators() -> Iterator[None]:
    """Make ``torch.export`` use the operators, too, for exporters that translate them."""
    global _translators
    _translators += 1
    try:
        yield
    finally:
        _translators -= 1


def compiling() -> bool:
    """Return whether ``torch.compile`` is tracing, which takes the scans as operators.

    ``torch.export`` gets torch operations instead: its programs should run without this library.
    """
    if _translators:
        return True
    # The value of `torch.compiler.is_exporting`, since torch 2.7. Up to 2.11 torch.compile treats any call of
    # that function as true.
    exporting = getattr(torch.compiler, "_is_exporting_flag", None)
    return bool(torch.compiler.is_compiling() and exporting is False)


def numbers_of(routes: Sequence[Route]) -> list[int]:
    """Return three numbers per route: 1 for columns, the side of its windows or 0, 1 if it is reversed."""
    return [n for r in routes for n in (int(r.axis == "column"), r.window or 0, int(r.reverse))]


def traced_scan(tensors: Sequence[Tensor], routes: Sequence[Route], merge: bool, backend: str) -> Tensor:
    """Call :func:`qmamba.ops.selective_scan` with x, dt, B, C, dt_weight, dt_bias, A and D."""
    y: Tensor = torch.ops.qmamba.selective_scan(tensors, numbers_of(routes), merge, backend)
    return y


def traced_gated_scan(tensors: Sequence[Tensor], routes: Sequence[Route]) -> Tensor:
    """Call :func:`qmamba.ops.gated_scan` with the same tensors and the weights of the gate."""
    y: Tensor = torch.ops.qmamba.gated_scan(tensors, numbers_of(routes))
    return y
