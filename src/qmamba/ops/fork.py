"""Forked children, in which torch's OpenMP threads are gone.

GNU OpenMP keeps a team of threads for each thread that has worked in parallel. A forked child inherits the
record of the team without its threads, and waits for them forever at its next parallel loop.
"""

from __future__ import annotations

import ctypes
import os
import sys

import torch

_SOFT = 1  # omp_pause_soft: threads end, settings stay

_process = os.getpid()  # that imported this module, or was forked with its team dismissed
_dismissed = False  # whether the last fork was made without a team


def _dismiss_team() -> None:
    """End this thread's team before a fork; parent and child make new ones when they need them."""
    global _dismissed
    try:
        _dismissed = ctypes.CDLL(None).omp_pause_resource_all(_SOFT) == 0
    except (OSError, AttributeError):  # an OpenMP before 5.0, or none
        _dismissed = False


def _begin_child() -> None:
    global _process
    if _dismissed:
        _process = os.getpid()


if sys.platform == "linux":
    os.register_at_fork(before=_dismiss_team, after_in_child=_begin_child)


def use_one_thread_in_forked_child() -> None:
    """Set torch to one thread, at the first call in a child whose team was not dismissed.

    One thread waits for no other; scores may differ from the parent's in the last bits. A number of threads
    that is set after this call is left alone.
    """
    global _process
    if os.getpid() != _process:
        torch.set_num_threads(1)
        _process = os.getpid()
