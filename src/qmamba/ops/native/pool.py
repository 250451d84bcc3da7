"""Threads that work through the native kernels' tasks together.

A kernel takes tasks from a counter in its arguments until none is left. The calling thread works too. Which
thread does a task has no influence on its result.

Where torch's threads come from an OpenMP library on Linux, the kernels use that library's team: it is awake
already, and another one would fight with it for the processor. Elsewhere, and in forked children, which have
lost the team, Python's threads do the work.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from pathlib import Path

import torch

ALIGNMENT = 64
Work = Callable[[int, int | None], None]  # number of threads, address of OpenMP's GOMP_parallel

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_local = threading.local()
_forked = False


def scratch(floats: int) -> int:
    """The address of this thread's scratch memory: at least so many floats, aligned, uninitialised."""
    buffer: torch.Tensor | None = getattr(_local, "buffer", None)
    size = floats + ALIGNMENT // 4
    if buffer is None or buffer.numel() < size:
        with torch.inference_mode(False):
            buffer = torch.empty(size, dtype=torch.float32, device="cpu")
        _local.buffer = buffer
    address = buffer.data_ptr()
    return address + -address % ALIGNMENT


def run(work: Work, tasks: int) -> None:
    """Work in as many threads as torch uses and there are tasks for."""
    threads = min(torch.get_num_threads(), tasks)
    team = _team() if threads > 1 and not _forked else None
    if threads <= 1 or team is not None:
        work(threads, team)
        return
    pool = _threads(threads - 1)
    others = [pool.submit(work, 1, None) for _ in range(threads - 1)]
    try:
        work(1, None)
    finally:
        wait(others)  # they write into memory that the caller owns
    for other in others:
        other.result()


@lru_cache(maxsize=1)
def _team() -> int | None:
    """The address of GOMP_parallel in the OpenMP library that torch uses: its own, or the only one loaded."""
    if sys.platform != "linux":
        return None
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    paths = {line.split(maxsplit=5)[5] for line in lines if "omp" in line and line.count("/")}
    found = {path: address for path in paths if (address := _symbol(path)) is not None}
    chosen = of_torch(found)
    return None if chosen is None else found[chosen]


def of_torch(libraries: Iterable[str]) -> str | None:
    """Which of the OpenMP libraries that are loaded torch uses: the one that came with it, else the only one.
    Others may be there, since scikit-learn, say, brings its own."""
    home = Path(torch.__file__).parent
    loaded = list(libraries)
    own = [p for p in loaded if any(Path(p).is_relative_to(f) for f in (home, home.with_name("torch.libs")))]
    chosen = own or loaded
    return chosen[0] if len(chosen) == 1 else None


def _symbol(path: str) -> int | None:
    if not Path(path).name.startswith(("libgomp", "libiomp", "libomp")):
        return None
    try:
        library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None


def _threads(count: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    with _lock:
        if _pool is None or _pool_size < count:
            _pool, _pool_size = ThreadPoolExecutor(count, thread_name_prefix="qmamba"), count
        return _pool


def _forget() -> None:
    """In a forked child the threads are gone, and so may be whoever held the lock."""
    global _lock, _pool, _pool_size, _forked
    _lock, _pool, _pool_size, _forked = threading.Lock(), None, 0, True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
