"""Compute with a single thread in one thread of the process, and leave the others alone.

``torch.set_num_threads`` acts on the whole process: threads that start later take its number over, and MKL
keeps one number for all. OpenMP, which torch's loops, oneDNN and the native kernel ask, has a number for
each thread, and MKL takes one for a thread as well.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch

from .native.team import opened, torch_openmp

Setter = Callable[[int], object]


def use_one_thread() -> bool:
    """Let torch and the native kernel compute with one thread when this thread calls them, from now on.

    Returns:
        Whether they do. They do not where torch has no OpenMP library that could be asked.
    """
    torch.get_num_threads()  # sets a new thread's number to that of the process, once: before ours
    for set_threads in _setters():
        set_threads(1)
    return torch.get_num_threads() == 1


@lru_cache(maxsize=1)
def can_use_one_thread() -> bool:
    """Return whether :func:`use_one_thread` works here; a thread is started to try it."""
    found: list[bool] = []
    trial = threading.Thread(target=lambda: found.append(use_one_thread()))
    trial.start()
    trial.join()
    return found == [True]


@lru_cache(maxsize=1)
def _setters() -> tuple[Setter, ...]:
    """Return the functions that set the calling thread's number of threads."""
    path = torch_openmp()
    if path is None:
        return ()
    try:
        of_openmp: Setter = opened(path).omp_set_num_threads
    except (OSError, AttributeError):
        return ()
    of_mkl = _mkl_setter()
    return (of_openmp,) if of_mkl is None else (of_openmp, of_mkl)


def _mkl_setter() -> Setter | None:
    """Return MKL's function, from torch's own library or one that is loaded for all; None without MKL."""
    if sys.platform != "linux" or not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return None
    for path in (Path(torch.__file__).parent / "lib" / "libtorch_cpu.so", None):
        try:
            library = ctypes.CDLL(None if path is None else str(path), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
            setter: Setter = library.MKL_Set_Num_Threads_Local
        except (OSError, AttributeError):
            continue
        return setter
    return None
