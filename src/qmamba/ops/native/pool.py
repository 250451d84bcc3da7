"""Threads that work through the native kernel's tasks together.

A kernel takes tasks from a counter in its arguments until none is left. The calling thread works too. Which
thread does a task has no influence on its result.

The threads are torch's own where its OpenMP library is found. Elsewhere, and in forked children, which have
lost that library's team, Python's threads do the work.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import torch

from .team import torch_team

ALIGNMENT = 64
Work = Callable[[int, int | None], None]  # number of threads, address of a Team

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_local = threading.local()
_forked = False


def scratch(floats: int) -> int:
    """Return the address of this thread's scratch memory: that many floats, aligned, uninitialised."""
    buffer: torch.Tensor | None = getattr(_local, "buffer", None)
    size = floats + ALIGNMENT // 4
    if buffer is None or buffer.numel() < size:
        with torch.inference_mode(False):
            buffer = torch.empty(size, dtype=torch.float32, device="cpu")
        _local.buffer = buffer
    address = buffer.data_ptr()
    return address + -address % ALIGNMENT


def run(work: Work, tasks: int) -> None:
    """Work in as many threads as torch uses, but no more than there are tasks."""
    threads = min(torch.get_num_threads(), tasks)
    team = torch_team() if threads > 1 and not _forked else None
    if threads <= 1 or team is not None:
        work(threads, None if team is None else ctypes.addressof(team))
        return
    pool = _threads(threads - 1)
    others = [pool.submit(work, 1, None) for _ in range(threads - 1)]
    try:
        work(1, None)
    finally:
        wait(others)  # they write into memory that the caller owns
    for other in others:
        other.result()


def _threads(count: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    with _lock:
        if _pool is None or _pool_size < count:
            _pool, _pool_size = ThreadPoolExecutor(count, thread_name_prefix="qmamba"), count
        return _pool


def _forget() -> None:
    """Forget the threads in a forked child: they are gone, and so may be the holder of the lock."""
    global _lock, _pool, _pool_size, _forked
    _lock, _pool, _pool_size, _forked = threading.Lock(), None, 0, True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
