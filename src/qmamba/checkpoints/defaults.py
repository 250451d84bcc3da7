"""The config of a network that has no checkpoint yet."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from qmamba.checkpoints.config import ModelConfig
from qmamba.models import get_architecture
from qmamba.models.capabilities import OneSize


def default_config(network: nn.Module, name: str, **fields: Any) -> ModelConfig:
    """Return the config of a network of `create_model`, as its architecture has it.

    Where the network takes images of one size only, crops are of that size, unless images are seen whole.

    Args:
        network: of `create_model`.
        name: of the checkpoint.
        fields: of `ModelConfig`, in place of the architecture's.

    Raises:
        UnknownModelError: the network is not of `create_model`.
        CheckpointError: a field of a wrong type or out of range.

    >>> from qmamba.models import create_model
    >>> default_config(create_model("lqmamba-n", drop_path=0.0), "mine").overrides
    {'drop_path': 0.0}
    """
    arch: Any = getattr(network, "arch", None)
    architecture = get_architecture(arch)
    preprocessing, protocol = architecture.preprocessing, architecture.protocol
    if isinstance(network, OneSize):
        preprocessing = replace(preprocessing, size=network.input_size)
        if protocol.kind != "whole":
            protocol = replace(protocol, crop=min(network.input_size))
    defaults = {
        "overrides": getattr(network, "overrides", {}), "preprocessing": preprocessing, "protocol": protocol,
        "output": architecture.output, "bases": architecture.bases,
        "tokenizers": architecture.tokenizers,
    }  # fmt: skip
    return ModelConfig(**{"name": name, "arch": arch, **defaults, **fields})
