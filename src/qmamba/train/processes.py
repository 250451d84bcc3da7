"""The processes that train one model, on Hugging Face accelerate: each computes a part of every batch.

On a CPU, two processes of one thread each finish sooner than one process of two threads: most of a step is
many small operations. `joined` starts such processes; on several GPUs, `accelerate launch` does.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..errors import BackendError, QMambaError, RecipeError

MAX_PROCESSES = 64  # seeds of batches leave room for this many
_PRECISION = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
T = TypeVar("T")
R = TypeVar("R")
_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT", "OMP_NUM_THREADS")


@dataclass(frozen=True)
class Processes:
    """This process among those that train one model.

    Attributes:
        device: of this process.
        rank: zero-based index of this process.
        size: number of processes.
        accelerator: accelerate's ``Accelerator``; None where a task is used outside of training.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    accelerator: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context in which matrix products are in the recipe's precision."""
        return nullcontext() if self.accelerator is None else self.accelerator.autocast()

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replace floating tensors by their means over all processes, in one message."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([t.flatten() for t in tensors])
        parts = self.accelerator.reduce(flat, reduction="mean").split([t.numel() for t in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def collect(self, part: Any) -> list[Any]:
        """Return the parts of all processes, by rank."""
        if self.size == 1:
            return [part]
        from accelerate.utils import gather_object

        return list(gather_object([part]))

    def share(self, items: Sequence[T], work: Callable[[Sequence[T]], Sequence[R]]) -> list[R]:
        """Return the results of work on items, one an item and in order; each process has a part of them."""
        parts = self.collect(list(work(items[self.rank :: self.size])))
        return [parts[i % self.size][i // self.size] for i in range(len(items))]


def launched() -> int:
    """Return how many processes a launcher, such as `accelerate launch`, has started together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Return whether this process is the first of those that a launcher has started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def accelerated(
    device: torch.device | None, precision: str, *, tracker: str | None = None, folder: Path | None = None
) -> Iterator[Processes]:
    """Set up accelerate for one training, and leave its global state as it was.

    Args:
        device: of this process; None for accelerate's choice.
        precision: "float32", "bfloat16" or "float16".
        tracker: "tensorboard", "trackio" or None.
        folder: where a tracker writes files.

    Raises:
        RecipeError: accelerate is not installed, or has no such precision here.
    """
    many = launched() > 1
    with _accelerate_kept(connected=many):
        from accelerate import Accelerator

        try:
            accelerator = Accelerator(
                cpu=device is not None and device.type == "cpu",
                mixed_precision=_PRECISION[precision],
                log_with=tracker,
                project_dir=folder,
            )
        except ValueError as error:  # float16 on a CPU, for example
            reason = str(error).splitlines()[0]
            raise RecipeError(f"accelerate cannot train in {precision} here: {reason}") from error
        chosen = accelerator.device if many or device is None else device
        if chosen.type == "cpu":  # accelerate numbers CPUs, and torch cannot load to "cpu:0"
            chosen = torch.device("cpu")
        yield Processes(chosen, accelerator.process_index, accelerator.num_processes, accelerator)


@contextmanager
def _accelerate_kept(*, connected: bool) -> Iterator[None]:
    """Give accelerate a fresh global state for a while; processes that are connected stay so.

    Raises:
        RecipeError: accelerate is not installed.
    """
    try:
        from accelerate.state import AcceleratorState, GradientState, PartialState
    except ImportError as error:
        raise RecipeError("training needs accelerate: pip install 'qmamba[train]'") from error
    states: list[Any] = [AcceleratorState, GradientState, *([] if connected else [PartialState])]
    shared = [state._shared_state for state in states]
    before = [dict(state) for state in shared]
    for state in shared:
        state.clear()
    try:
        yield
    finally:
        for state, kept in zip(shared, before, strict=True):
            state.clear()
            state.update(kept)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Leave the random state of Python, numpy and torch as it was."""
    python, numpys = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpys)


@contextmanager
def joined(size: int, work: Callable[..., Any], arguments: tuple[Any, ...]) -> Iterator[None]:
    """Start ``size - 1`` CPU processes that run ``work(*arguments)``, connected to this one, of rank 0.

    Raises:
        RecipeError: accelerate is not installed.
        BackendError: a process could not be started.
        QMambaError: what went wrong in another process, in place of the lost connection that it caused here.
    """
    if size == 1:
        yield
        return
    import torch.distributed as dist

    threads, variables = torch.get_num_threads(), {name: os.environ.get(name) for name in _VARIABLES}
    with tempfile.TemporaryDirectory() as folder, _accelerate_kept(connected=False):
        store = str(Path(folder, "store"))
        others: list[tuple[Any, Connection]] = []
        try:
            for rank in range(1, size):
                others.append(_start(rank, size, store, threads, work, arguments))
            for _, messages in others:
                _await(messages)
            _connect(0, size, store, threads)
            yield
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
            _restore(variables)


def _start(
    rank: int, size: int, store: str, threads: int, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> tuple[Any, Connection]:
    import torch.multiprocessing as mp

    context = mp.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(
        target=_run, args=(there, rank, size, store, threads, work, arguments), daemon=True
    )
    process.start()
    there.close()  # the child has the only other end, so that reading here ends when the child dies
    return process, here


def _await(messages: Connection) -> None:
    try:
        messages.recv()
    except EOFError:
        raise BackendError(
            "a training process could not be started; call train(processes=…) from a file, "
            "under `if __name__ == '__main__':`, or use one process"
        ) from None


def _cause(others: Sequence[tuple[Any, Connection]]) -> QMambaError | None:
    """Return the error that ended one of the processes, if it sent one."""
    for _, messages in others:
        try:
            if messages.poll(1.0):
                error = messages.recv()
                assert isinstance(error, QMambaError)
                return error
        except EOFError:
            continue
    return None


def _connect(rank: int, size: int, store: str, threads: int) -> None:
    """Join the group of processes, and say so in the variables that accelerate reads."""
    import torch.distributed as dist

    own = max(1, threads // size)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), OMP_NUM_THREADS=str(own))
    os.environ.update(WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size))
    torch.set_num_threads(own)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)


def _restore(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _run(
    messages: Connection,
    rank: int,
    size: int,
    store: str,
    threads: int,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; rank 0 decides, and ends the others
    messages.send(None)
    _connect(rank, size, store, threads)
    try:
        work(*arguments)
    except QMambaError as error:
        messages.send(error)
    except RuntimeError as error:  # rank 0 has stopped, and says why itself
        if "Connection" not in str(error):
            raise
