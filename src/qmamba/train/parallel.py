"""Several processes that train one model: each computes a part of every batch, gradients are averaged.

On a processor, two processes of one thread each finish sooner than one process of two threads: most of a step is
many small operations. With one process nothing here is used.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor


@dataclass(frozen=True)
class Team:
    """This process's place among its like."""

    rank: int = 0
    size: int = 1

    def average_(self, gradients: Sequence[Tensor]) -> None:
        """In place mean over the processes, in one message."""
        if self.size == 1:
            return
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        parts = flat.div_(self.size).split([g.numel() for g in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def collect(self, part: Any) -> list[Any]:
        """What every process gave, in their order."""
        if self.size == 1:
            return [part]
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, part)
        return parts


@contextmanager
def team_of(size: int, helper: Any, args: tuple[Any, ...]) -> Iterator[Team]:
    """Start ``size - 1`` processes that run ``helper(team, *args)``; this one is rank 0 of the team."""
    if size == 1:
        yield Team()
        return
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        store = os.path.join(folder, "store")  # noqa: PTH118  (torch wants a string)
        context = mp.get_context("spawn")
        others = [
            context.Process(target=_run, args=(helper, rank, size, store, threads, args), daemon=True)
            for rank in range(1, size)
        ]
        for process in others:
            process.start()
        try:
            _join(0, size, store, threads)
            yield Team(0, size)
        finally:
            for process in others:
                process.join(timeout=10)
                process.kill()
            if dist.is_initialized():
                dist.destroy_process_group()
            torch.set_num_threads(threads)


def _join(rank: int, size: int, store: str, threads: int) -> None:
    torch.set_num_threads(max(1, threads // size))
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)


def _run(helper: Any, rank: int, size: int, store: str, threads: int, args: tuple[Any, ...]) -> None:
    _join(rank, size, store, threads)
    try:
        helper(Team(rank, size), *args)
    except RuntimeError as error:  # rank 0 has stopped, and says why itself
        if "Connection" not in str(error):
            raise
