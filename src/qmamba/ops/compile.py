"""The scans as ``torch.compile`` is given them: calls of the operators that ``operators.py`` registers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .routes import Route

_translators = 0  # how many are at work; a plain number, since torch.compile reads it while it traces


@contextmanager
def as_operators() -> Iterator[None]:
    """Within it ``torch.export`` is given operators as well, for who translates them into something else."""
    global _translators
    _translators += 1
    try:
        yield
    finally:
        _translators -= 1


def compiling() -> bool:
    """Whether ``torch.compile`` is tracing: it takes the scans as operators. ``torch.export``, whose programs
    should run without this library, is given torch's operations instead."""
    if _translators:
        return True
    # What `torch.compiler.is_exporting` returns, since torch 2.7. Up to 2.11 torch.compile takes any call of
    # it to be true, whatever it would return.
    exporting = getattr(torch.compiler, "_is_exporting_flag", None)
    return bool(torch.compiler.is_compiling() and exporting is False)


def numbers_of(routes: Sequence[Route]) -> list[int]:
    """Three numbers a route: 1 if it goes by columns, the side of its windows or 0, 1 if it is reversed."""
    return [n for r in routes for n in (int(r.axis == "column"), r.window or 0, int(r.reverse))]


def traced_scan(tensors: Sequence[Tensor], routes: Sequence[Route], merge: bool, backend: str) -> Tensor:
    """:func:`qmamba.ops.selective_scan` of x, dt, B, C, dt_weight, dt_bias, A and D."""
    y: Tensor = torch.ops.qmamba.selective_scan(tensors, numbers_of(routes), merge, backend)
    return y


def traced_gated_scan(tensors: Sequence[Tensor], routes: Sequence[Route]) -> Tensor:
    """:func:`qmamba.ops.gated_scan` of the same and the weights of the gate."""
    y: Tensor = torch.ops.qmamba.gated_scan(tensors, numbers_of(routes))
    return y
