"""Sequences of images: read as they are scored, decoded ahead in threads, errors with their positions."""

from __future__ import annotations

import math
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Literal, Protocol, TypedDict, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qmamba.errors import ImageError
from qmamba.images import Decoded, decode_for, label
from qmamba.images.pillow import Least
from qmamba.ops.fork import use_one_thread_in_forked_child
from qmamba.protocol import check_aspect

T = TypeVar("T")


class Column(Protocol):
    """A pandas Series, for type checkers."""

    @property
    def iloc(self) -> Any: ...


class ScoreOptions(TypedDict, total=False):
    """Options of `Scorer.score`, which documents them."""

    on_error: Literal["raise", "nan"]
    batch_size: int
    progress: bool
    max_pixels: int | None
    return_std: bool
    adapters: Sequence[str | None] | None


LOWEST, HIGHEST = -0.5, 1.5  # beyond these a batch is not in [0, 1] by mistake, not by overshoot


def check_batch(batch: Tensor) -> None:
    """Refuse what is not a batch of images; values are not looked at while a compiler traces.

    Raises:
        ImageError: another type, shape or range than (B, 3, H, W) floats in [0, 1].
    """
    if not isinstance(batch, Tensor) or batch.ndim != 4 or batch.shape[1] != 3:
        given = f"shape {tuple(batch.shape)}" if isinstance(batch, Tensor) else type(batch).__name__
        raise ImageError(f"batch: expected a tensor (B, 3, H, W), not {given}; use .score() for other inputs")
    if batch.layout != torch.strided:
        raise ImageError(f"batch: only dense tensors hold images, not {batch.layout}; call .to_dense()")
    if not batch.dtype.is_floating_point:
        raise ImageError(
            f"batch: expected floats in [0, 1], not {batch.dtype}; divide by 255, or use .score()"
        )
    if batch.numel() == 0 or batch.is_meta or torch.compiler.is_compiling():
        return
    check_aspect(batch.shape[-2], batch.shape[-1], "batch")
    low, high = (float(bound) for bound in _unwrapped(batch).detach().aminmax())
    if not (low >= LOWEST and high <= HIGHEST):
        what = "NaN" if math.isnan(low) else f"values from {low:.4g} to {high:.4g}"
        raise ImageError(f"batch: {what} in place of values in [0, 1]; rescale it, and do not normalise it")


def _unwrapped(batch: Tensor) -> Tensor:
    """Return the values of a tensor within transforms of ``torch.func``, with their batch dimensions."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(batch):
        batch = functorch.get_unwrapped(batch)
    return batch


def _new_locks() -> None:
    global _loading
    _loading = tuple(threading.Lock() for _ in range(16))


_loading: tuple[threading.Lock, ...] = ()
_new_locks()
if hasattr(os, "register_at_fork"):  # another thread of the parent may hold one at a fork
    os.register_at_fork(after_in_child=_new_locks)


def decoded(image: Any, max_pixels: int, least: Least | None = None) -> Decoded:
    """Decode an image, as `qmamba.images.decode_for`; safe for one Pillow image in several threads.

    Raises:
        ImageError: the image cannot be decoded.
    """
    if not isinstance(image, Image.Image):
        return decode_for(image, least, max_pixels=max_pixels)
    # Pillow reads the pixels of an opened file at their first use, and not in two threads at the same time.
    with _loading[id(image) // 16 % len(_loading)]:
        return decode_for(image, max_pixels=max_pixels)


def is_held(images: Any) -> bool:
    """Return whether all images of a sequence exist at once: none changes when the next is read."""
    return isinstance(images, (list, tuple, np.ndarray, Tensor))


def decode_ahead(
    images: Iterator[Any],
    max_pixels: int,
    workers: int = 1,
    *,
    held: bool = False,
    least: Least | None = None,
) -> Iterator[Decoded | ImageError]:
    """Decode images in order in other threads; errors come as values.

    No more than `workers` images are read ahead. Unless they are held, the pixels of one are copied before
    the next is asked for: an iterator may yield one object whose frame moves on, or a buffer that it fills
    again. Only paths and bytes, which cannot change, are then decoded at the same time.

    Args:
        images: of any kind that `qmamba.images.decode` takes.
        max_pixels: as for `qmamba.images.decode`.
        workers: number of threads.
        held: as `is_held` tells.
        least: as for `qmamba.images.decode_for`.
    """
    use_one_thread_in_forked_child()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="qmamba-decode")

    def submitted() -> Iterator[Future[Decoded | ImageError]]:
        for image in images:
            future = pool.submit(decoded_or_error, image, max_pixels, least, held=held)
            if not (held or never_changes(image)):
                wait([future])
            yield future

    yield from in_turn(submitted(), pool, workers + 1)


def in_turn(
    futures: Iterator[Future[T]], pool: ThreadPoolExecutor, most: int, *, eager: bool = True
) -> Iterator[T]:
    """Yield the results of futures in their order, and shut their pool down at the end.

    An error of the iterator, or of a future, is raised in its turn: the results before it are still given.

    Args:
        futures: may be endless; read in the caller's thread.
        pool: that they were submitted to.
        most: maximum number of futures whose results have not been yielded.
        eager: read that many before a result is yielded. Otherwise none is read while a result is ready.
    """
    pending: deque[Future[T]] = deque()
    ended = False
    try:
        while True:
            while not ended and len(pending) < most and (eager or not pending or not pending[0].done()):
                try:
                    pending.append(next(futures))
                except StopIteration:
                    ended = True
                except Exception as error:
                    failed: Future[T] = Future()
                    failed.set_exception(error)
                    pending.append(failed)
                    ended = True
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        # Do not wait: the garbage collector may close this generator in any thread, even in one that is just
        # starting and holds the lock that joining another thread needs.
        pool.shutdown(wait=False, cancel_futures=True)


def never_changes(image: Any) -> bool:
    """Return whether an image is a path or bytes, which nobody can change before they are decoded."""
    return isinstance(image, (str, bytes, os.PathLike))


def decoded_or_error(image: Any, max_pixels: int, least: Least | None, *, held: bool) -> Decoded | ImageError:
    """Decode an image; an error is returned. Unless it is held, its pixels share no memory with it."""
    try:
        found = decoded(image, max_pixels, least)
        if held or never_changes(image) or isinstance(image, Image.Image):
            return found
        return found._replace(pixels=found.pixels.clone())
    except ImageError as error:
        return error
    except (MemoryError, RuntimeError) as error:  # the next image may be smaller
        if not is_out_of_memory(error):
            raise
        return ImageError(f"{label(image)}: not enough memory to decode it; shrink it or lower max_pixels")


def is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Return whether an error says that memory did not suffice, of the CPU or of a GPU.

    torch has a class for GPUs; its allocator for CPUs, and the libraries below it, raise a RuntimeError.
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(words in str(error) for words in _NO_MEMORY)


_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")


def located(error: ImageError, index: int, scores: Tensor) -> ImageError:
    """Return the same error with the index of its input, and with the scores computed before it."""
    found = type(error)(f"input {index}: {error}")
    found.__cause__ = error
    found.__dict__.update(index=index, scores=scores)
    return found


def as_tensor(scores: Sequence[float]) -> Tensor:
    """Return scores as a float32 tensor on the CPU, whatever the default device is."""
    return torch.tensor(scores, dtype=torch.float32, device="cpu")


def as_given(scores: Tensor, images: Any) -> Any:
    """Return the scores, for a Series as a Series with the same index, since pandas aligns by it."""
    pandas: Any = sys.modules.get("pandas")  # imported already where there is a Series
    if pandas is None or not isinstance(images, pandas.Series):
        return scores
    return pandas.Series(scores.numpy(), index=images.index)


def outcome(result: float | ImageError) -> tuple[float | None, str | None]:
    """Return a result as a row's score and error, one of which is None."""
    if not isinstance(result, ImageError):
        if math.isfinite(result):
            return float(result), None
        result = senseless(result)
    return None, str(result)


def senseless(score: float) -> ImageError:
    """Return the error for an image whose score is not finite."""
    return ImageError(f"the model gave {score}: its weights may be damaged")


def with_bar(results: Iterator[Any], total: int | None) -> Iterator[Any]:
    """Return the same results, with a progress bar on stderr."""
    from tqdm import tqdm

    return iter(tqdm(results, total=total, unit=" images"))
