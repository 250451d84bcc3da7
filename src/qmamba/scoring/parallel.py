"""Several images at once on a CPU, each decoded and scored in a thread that computes by itself.

Threads that work through one image together wait for each other at the end of every operation; with an image
each, nobody waits.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

import torch
from torch import nn

from qmamba.errors import ImageError
from qmamba.images import Decoded, iterate
from qmamba.images.pillow import Least
from qmamba.ops.backend import watched
from qmamba.ops.fork import use_one_thread_in_forked_child
from qmamba.ops.hooks import any_hooked
from qmamba.ops.one_thread import can_use_one_thread, use_one_thread
from qmamba.scoring.stream import decode_ahead, decoded_or_error, in_turn, is_held, never_changes

A = TypeVar("A")
T = TypeVar("T")

_local = threading.local()  # `working`: set in threads that score


def threads_for(scorer: nn.Module, device: torch.device, count: int | None) -> int:
    """Return how many images to score at once: as many as torch has threads, or 1.

    It is 1 on other devices than a CPU, for a scorer that wants all threads for each image, where torch
    cannot be told to compute with one thread in one thread only, and where something follows what happens in
    the caller's thread: a hook on a module, a compiler, a tracer, a profiler, a dispatch mode.

    Args:
        scorer: all modules that are called.
        device: of its parameters.
        count: number of images, if it is known.
    """
    use_one_thread_in_forked_child()
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1 or count == 1 or getattr(_local, "working", False):
        return 1
    if getattr(scorer, "one_at_a_time", False):
        return 1
    if watched() or any_hooked(scorer) or torch._C._autograd._profiler_enabled():
        return 1
    if torch._C._len_torch_function_stack() or any(map(_is_compiled, scorer.modules())):
        return 1
    return min(threads, count or threads) if can_use_one_thread() else 1


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def each(
    scorer: nn.Module,
    images: Any,
    extras: Iterator[A],
    work: Callable[[Decoded, A], T],
    *,
    device: torch.device,
    workers: int,
    max_pixels: int,
    least: Least | None,
) -> Iterator[T | ImageError]:
    """Decode images, and yield what a function returns for each, in their order; errors come as values.

    Args:
        scorer: all modules that `work` calls.
        images: one image or a sequence, read no further than `in_order` and `decode_ahead` tell.
        extras: a second argument of `work` for each image; its errors are raised.
        work: called with an image, in any thread.
        device: of the scorer's parameters.
        workers: images that are decoded ahead of those that are worked on.
        max_pixels: as for `qmamba.images.decode`.
        least: as for `qmamba.images.decode_for`.
    """
    iterator, single = iterate(images)
    held, count = is_held(images), 1 if single else len(images) if isinstance(images, Sized) else None
    threads = threads_for(scorer, device, count)

    def outcome(image: Decoded | ImageError, extra: A) -> T | ImageError:
        if isinstance(image, ImageError):
            return image
        try:
            return work(image, extra)
        except ImageError as error:
            # Without the frames of the traceback, which hold the image's pixels.
            return error.with_traceback(None)

    def job(image: Any, extra: A) -> Callable[[], T | ImageError]:
        if held or never_changes(image):
            return lambda: outcome(decoded_or_error(image, max_pixels, least, held=held), extra)
        found = decoded_or_error(image, max_pixels, least, held=held)
        return lambda: outcome(found, extra)

    if threads == 1:
        ahead = decode_ahead(iterator, max_pixels, workers, held=held, least=least)
        return map(outcome, ahead, extras)
    return in_order(map(job, iterator, extras), threads=threads, ahead=workers, held=held)


def in_order(
    jobs: Iterator[Callable[[], T]], *, threads: int, ahead: int = 1, held: bool = False
) -> Iterator[T]:
    """Return what each job returns, in their order; they run in threads that compute with one thread each.

    Jobs are read in the caller's thread, no more than one for each thread and `ahead` more. An error of the
    iterator, or of a job, is raised in its turn.

    Args:
        jobs: may be endless.
        threads: number of threads.
        ahead: number of jobs that wait, so that no thread does.
        held: whether the next job is available at once. Otherwise none is read while a result is ready.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="qmamba-score", initializer=_begin_thread)
    futures = (pool.submit(copy_context().run, _RUNNING.run, job) for job in jobs)
    return in_turn(futures, pool, threads + ahead, eager=held)


def _begin_thread() -> None:
    _local.working = True
    use_one_thread()


class _Running:
    """The jobs that are being worked on, whose end a fork waits for.

    A child that is forked in the midst of an operation inherits the locks that it holds, in torch and in the
    libraries below, and no thread to release them.
    """

    PATIENCE = 20.0  # seconds that a fork waits: a job may itself wait for the thread that forks

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.count = 0
        self.forks = 0

    def run(self, job: Callable[[], T]) -> T:
        with self.changed:
            self.changed.wait_for(lambda: not self.forks, timeout=self.PATIENCE)
            self.count += 1
        try:
            return job()
        finally:
            with self.changed:
                self.count -= 1
                self.changed.notify_all()

    def before_fork(self) -> None:
        if getattr(_local, "working", False):  # this very job forks
            return
        with self.changed:
            self.forks += 1
            self.changed.wait_for(lambda: not self.count, timeout=self.PATIENCE)

    def after_fork(self) -> None:
        if getattr(_local, "working", False):
            return
        with self.changed:
            self.forks -= 1
            self.changed.notify_all()


_RUNNING = _Running()


def _begin_child() -> None:
    global _RUNNING
    _RUNNING = _Running()
    _local.__dict__.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _RUNNING.before_fork(),
        after_in_parent=lambda: _RUNNING.after_fork(),
        after_in_child=_begin_child,
    )
