"""Hand a module to another process as one buffer."""

from __future__ import annotations

import io
from collections.abc import Callable

import torch
from torch import nn


def reduce_to_one_buffer(module: nn.Module) -> tuple[Callable[[bytes], nn.Module], tuple[bytes]]:
    """Reduce a module for `multiprocessing`, as a reducer of its pickler.

    By default torch passes a file descriptor for each tensor, and a scorer has more tensors than a process
    that is started by spawn or forkserver takes descriptors.
    """
    buffer = io.BytesIO()
    torch.save(module, buffer)
    return restore, (buffer.getvalue(),)


def restore(data: bytes) -> nn.Module:
    """Return the module in a buffer of `reduce_to_one_buffer`, which the parent process wrote."""
    module: nn.Module = torch.load(io.BytesIO(data), weights_only=False)
    return module
