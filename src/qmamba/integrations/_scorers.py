"""Scorers by name, read once in a process: what is mapped over a table or copied between processes should
hold a name, and not the weights."""

from __future__ import annotations

import functools
import os
import threading
from typing import TypeAlias

import torch

from ..errors import BackendError
from ..scoring import Scorer, load

Model: TypeAlias = Scorer | str | os.PathLike[str]
"""A scorer, or what `qmamba.load` takes."""

_LOCK = threading.Lock()
_PROCESS = os.getpid()


def shared(model: Model) -> Scorer:
    """The scorer itself, or the one of this name that all in this process share, on the CPU.

    Raises:
        QMambaError: as `qmamba.load`.
    """
    if isinstance(model, Scorer):
        return model
    if os.getpid() != _PROCESS:
        # In a forked process the parent's OpenMP threads are gone, and waiting for them takes forever.
        torch.set_num_threads(1)
    with _LOCK:  # the cache alone would let two threads load the model at once
        return _named(os.fspath(model))


@functools.lru_cache(maxsize=4)
def _named(model: str) -> Scorer:
    return load(model)


def missing(package: str, extra: str = "integrations") -> BackendError:
    """The error for a package that is not installed."""
    return BackendError(f'this needs the package {package}: pip install "qmamba[{extra}]"')
