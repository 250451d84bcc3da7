"""Scorers shared by name within a process, so that mapped functions and pickles hold a name, not weights."""

from __future__ import annotations

import functools
import os
import threading
from typing import TypeAlias

from ..errors import BackendError
from ..scoring import Scorer, load

Model: TypeAlias = Scorer | str | os.PathLike[str]
"""A scorer, or anything that `qmamba.load` takes."""

_LOCK = threading.Lock()


def shared(model: Model) -> Scorer:
    """Return the scorer itself, or this process's shared scorer of that name, on the CPU.

    Raises:
        QMambaError: as `qmamba.load`.
    """
    if isinstance(model, Scorer):
        return model
    with _LOCK:  # the cache alone would let two threads load the model at once
        return _named(os.fspath(model))


@functools.lru_cache(maxsize=4)
def _named(model: str) -> Scorer:
    return load(model)


def missing(package: str, extra: str = "integrations") -> BackendError:
    """Return the error for a package that is not installed."""
    return BackendError(f'this needs the package {package}: pip install "qmamba[{extra}]"')
