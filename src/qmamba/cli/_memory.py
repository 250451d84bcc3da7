"""Settings of the C library's memory allocator for the process of the command line."""

from __future__ import annotations

import ctypes
import os

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # of glibc's mallopt
KEPT = 2**31 - 1


def keep_memory() -> None:
    """Let glibc keep freed memory for the next tensor.

    By default, large blocks are requested from the system each time, and touching new pages costs more than
    the arithmetic on them. Only the program does this; the library leaves it to its user. Nothing changes
    where glibc's environment variables are set.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return
    for option, value in ((MMAP_THRESHOLD, 2**30), (TRIM_THRESHOLD, KEPT), (TOP_PAD, 2**26)):
        mallopt(option, value)
