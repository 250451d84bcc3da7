"""Threads that work through the native kernels' tasks together.

A kernel takes tasks from a counter in its arguments until none is left, so every thread makes one call. The
calling thread works too. Which thread does a task has no influence on its result.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import torch

ALIGNMENT = 64

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_local = threading.local()


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


def run(work: Callable[[], None], tasks: int) -> None:
    """Call ``work`` once in each of as many threads as torch uses and there are tasks for."""
    threads = min(torch.get_num_threads(), tasks)
    if threads <= 1:
        work()
        return
    pool = _threads(threads - 1)
    others = [pool.submit(work) for _ in range(threads - 1)]
    try:
        work()
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
    """In a forked child the threads are gone, and so may be whoever held the lock."""
    global _lock, _pool, _pool_size
    _lock, _pool, _pool_size = threading.Lock(), None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
