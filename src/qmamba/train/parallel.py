"""Several processes that train one model: each computes a part of every batch, gradients are averaged.

On a processor, two processes of one thread each finish sooner than one process of two threads: most of a step
is many small operations. With one process nothing here is used.
"""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from ..errors import BackendError, QMambaError


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
        sizes = [g.numel() for g in gradients]
        parts = flat.div_(self.size).split(sizes)  # type: ignore[no-untyped-call]
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
def team_of(size: int, helper: Callable[..., Any], args: tuple[Any, ...]) -> Iterator[Team]:
    """Start ``size - 1`` processes that run ``helper(team, *args)``; this one is rank 0 of the team.

    Raises:
        BackendError: a process could not be started.
        QMambaError: what went wrong in another process, in place of the lost connection that it caused here.
    """
    if size == 1:
        yield Team()
        return
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder, "store"))
        others: list[tuple[Any, Connection]] = []
        try:
            for rank in range(1, size):
                others.append(_start(rank, size, store, threads, helper, args))
            for _, messages in others:
                _await(messages)
            _join(0, size, store, threads)
            yield Team(0, size)
            for process, _ in others:
                process.join(timeout=10)
        except RuntimeError as error:
            raise _cause(others) or error from None
        finally:
            for process, _ in others:
                process.kill()
            if dist.is_initialized():
                dist.destroy_process_group()
            torch.set_num_threads(threads)


def _start(
    rank: int, size: int, store: str, threads: int, helper: Callable[..., Any], args: tuple[Any, ...]
) -> tuple[Any, Connection]:
    context = mp.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(
        target=_run, args=(there, rank, size, store, threads, helper, args), daemon=True
    )
    process.start()
    there.close()  # the only other end is the process's: when it dies, whoever reads here is told
    return process, here


def _await(messages: Connection) -> None:
    try:
        messages.recv()
    except EOFError:
        raise BackendError(
            "a training process could not be started: call train(processes=…) from a file, "
            "under `if __name__ == '__main__':`, or use one process"
        ) from None


def _cause(others: Sequence[tuple[Any, Connection]]) -> QMambaError | None:
    """The error that ended one of the processes, if it said one."""
    for _, messages in others:
        try:
            if messages.poll(1.0):
                error = messages.recv()
                assert isinstance(error, QMambaError)
                return error
        except EOFError:
            continue
    return None


def _join(rank: int, size: int, store: str, threads: int) -> None:
    torch.set_num_threads(max(1, threads // size))
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)


def _run(
    messages: Connection,
    rank: int,
    size: int,
    store: str,
    threads: int,
    helper: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: rank 0 decides, and ends the others
    messages.send(None)
    _join(rank, size, store, threads)
    try:
        helper(Team(rank, size), *args)
    except QMambaError as error:
        messages.send(error)
    except RuntimeError as error:  # rank 0 has stopped, and says why itself
        if "Connection" not in str(error):
            raise
