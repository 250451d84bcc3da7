"""Batches made in threads before they are needed."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def made_ahead(make: Callable[[int], T], first: int, last: int, workers: int = 1) -> Iterator[T]:
    """Yield ``make(i)`` for i from ``first`` to ``last`` - 1, in order, made by worker threads in advance."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="qmamba-batches")
    try:
        pending: deque[Future[T]] = deque()
        for i in range(first, last):
            pending.append(pool.submit(make, i))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:  # without waiting: the garbage collector may close this generator in any thread
        pool.shutdown(wait=False, cancel_futures=True)


def batch_workers(device: torch.device) -> int:
    """Return how many threads make batches: one beside a busy CPU, most cores for a GPU."""
    return 1 if device.type == "cpu" else max(1, (os.cpu_count() or 2) - 2)
