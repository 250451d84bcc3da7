"""Errors of damaged files, whatever a decoder raises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qmamba.errors import ImageError


@contextmanager
def named_damage(name: str) -> Iterator[None]:
    """Turn what a decoder raises within the context into one line about the image.

    Raises:
        ImageError: for anything but a MemoryError.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(
            f"{name}: the image is truncated or damaged ({reason}); save or download it again"
        ) from error
