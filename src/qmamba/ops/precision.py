"""Keeping an autocast out of what must be computed as precisely as its inputs allow."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

USUAL = ("cpu", "cuda", "mps", "xpu")


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which the caller's autocast does not act on this kind of device.

    Kinds that know no autocast (``meta``, say) refuse even to have it switched off.
    """
    # The usual kinds know it, and are not asked about: the compiler of torch 2.11 cannot trace the question.
    if device.type not in USUAL and not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
