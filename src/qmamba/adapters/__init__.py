"""Adapters: one network for many domains. What each adds to a network trains; the network stays as it is.

>>> from qmamba.models import create_model
>>> network = create_model("lqmamba-n").eval()
>>> adapter = create("style-prompt", network)
>>> import torch
>>> images = torch.randn(1, 3, 64, 64)
>>> bool((adapter(network, images) == network(images)).all())  # fresh: nothing changes yet
True
"""

from __future__ import annotations

from .base import Adapter, Size
from .folder import AdapterConfig, load_adapter, read_adapter_config, save_adapter
from .registry import create, list_methods, register

__all__ = [
    "Adapter",
    "AdapterConfig",
    "Size",
    "create",
    "list_methods",
    "load_adapter",
    "read_adapter_config",
    "register",
    "save_adapter",
]
