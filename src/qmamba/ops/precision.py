"""Keeping an autocast out of what must be computed as precisely as its inputs allow."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which the caller's autocast does not act on this kind of device.

    Kinds that know no autocast (Apple's before torch 2.5, say) refuse even to have it switched off.
    """
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
