"""Full tuning: a trainable copy of the whole network (QMamba, Table 3, "Full_tuning")."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

from torch import Tensor

from ..models.capabilities import AdapterHost
from .base import Adapter, NoOptions
from .registry import register


@register("full")
class Full(Adapter):
    """Train every parameter, in a copy of the base. As large as a model, on disk and in memory."""

    lr: ClassVar[float] = 1e-4

    def __init__(self, network: Any, options: NoOptions) -> None:
        super().__init__(options)
        self.network = copy.deepcopy(network).requires_grad_(True)

    def forward(self, network: AdapterHost, images: Tensor) -> Tensor:
        """Return raw quality (B, 1) of the copy for normalised images (B, 3, H, W)."""
        raw: Tensor = self.network(images)
        return raw

    def positions(self, network: AdapterHost, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return raw quality (B, 1) of the copy, and the value of each position (B, h, w)."""
        positions: tuple[Tensor, Tensor] = self.network.forward_positions(images)
        return positions

    def no_weight_decay(self) -> set[str]:
        """Return the names that the network itself exempts from weight decay."""
        return {f"network.{name}" for name in self.network.no_weight_decay()}
