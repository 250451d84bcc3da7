"""Switch off autocast for computations that need the precision of their inputs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

USUAL = ("cpu", "cuda", "mps", "xpu")


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which the caller's autocast does not act on this kind of device.

    Kinds without autocast (``meta``, for example) raise an error even when it is switched off.
    """
    # The usual kinds have it; the compiler of torch 2.11 cannot trace the question whether they do.
    if device.type not in USUAL and not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
