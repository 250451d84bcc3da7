"""Buffers that operations reuse: on a CPU fresh memory often costs more than the arithmetic."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

KEPT = 5 * 2**20  # elements of the largest buffer that is kept between calls


class Scratch:
    """Buffers by name, for one call of an operation.

    On a CPU the thread keeps small ones, and large ones until its outermost :func:`workspace` ends.
    """

    def __init__(self, like: Tensor) -> None:
        self._like = like
        plain = type(like) is Tensor and like.device.type == "cpu" and not torch.compiler.is_compiling()
        self._kept = _buffers("kept", like.dtype) if plain else {}
        self._large = _buffers("large", like.dtype) if plain and _depth() else {}

    def __call__(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return an uninitialised buffer, valid until the next call with the same name."""
        size = math.prod(shape)
        buffers = self._kept if size <= KEPT else self._large
        buffer = buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffers.pop(name, None)
            with torch.inference_mode(False):  # so that others can write to it
                buffer = buffers[name] = self._like.new_empty(size)
        return buffer[:size].view(shape)


@contextmanager
def workspace() -> Iterator[None]:
    """Reuse large buffers, too, until the outermost workspace of the thread ends."""
    _local.depth = _depth() + 1
    try:
        yield
    finally:
        _local.depth -= 1
        if not _local.depth:
            _local.__dict__.pop("large", None)


_local = threading.local()


def _depth() -> int:
    depth: int = getattr(_local, "depth", 0)
    return depth


def _buffers(which: str, dtype: torch.dtype) -> dict[str, Tensor]:
    by_type: dict[torch.dtype, dict[str, Tensor]] = _local.__dict__.setdefault(which, {})
    return by_type.setdefault(dtype, {})
