"""What a process of the command line asks of the C library about memory."""

from __future__ import annotations

import ctypes
import os

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # of glibc's mallopt
KEPT = 2**31 - 1


def keep_memory() -> None:
    """Have glibc keep memory that is freed, for the next tensor: by default large ones come from the system
    each time, and pages that are new cost more than the sums on them. Only for a process of our own: a
    library leaves that to its user. Whoever has set glibc's variables has chosen already."""
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return
    for option, value in ((MMAP_THRESHOLD, 2**30), (TRIM_THRESHOLD, KEPT), (TOP_PAD, 2**26)):
        mallopt(option, value)
