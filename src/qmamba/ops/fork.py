"""Work in forked children, in which torch's threads are gone."""

from __future__ import annotations

import os

import torch

_process = os.getpid()  # that imported the library, or was forked and has been prepared


def use_one_thread_in_forked_child() -> None:
    """Set torch to one thread at the first call in a child that was forked after the library was imported.

    Once a parent has worked with several threads, GNU OpenMP waits forever in its forked children for
    threads that exist in the parent only. One thread needs no others. ``torch.set_num_threads`` in the child
    after the first call is left alone.
    """
    global _process
    if os.getpid() != _process:
        torch.set_num_threads(1)
        _process = os.getpid()
