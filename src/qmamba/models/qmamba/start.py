"""The weights that a training from nothing starts from."""

from __future__ import annotations

from torch import nn

from .network import QMamba


def start(network: QMamba) -> None:
    """Draw weights for a short training from nothing.

    Linear layers get a standard deviation of fan_in^-½: 0.02 leaves the branches of a narrow network almost
    silent. The head gives 0.5, the middle of the scale, for every image: random differences between images
    are reduced fastest by features that do not differ, and the network would collapse.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
    nn.init.zeros_(network.head.fc.weight)
    nn.init.constant_(network.head.fc.bias, 0.5)
