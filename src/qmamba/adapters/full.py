"""Full tuning: a copy of the whole network (QMamba, Table 3, "Full_tuning")."""

from __future__ import annotations

import copy
from typing import ClassVar

from torch import Tensor

from ..models.qmamba import QMamba
from .base import Adapter, NoOptions
from .registry import register


@register("full")
class Full(Adapter):
    """Every parameter trains, in a copy: the base stays. As large as a model, on disk and in memory."""

    lr: ClassVar[float] = 1e-4

    def __init__(self, network: QMamba, options: NoOptions) -> None:
        super().__init__(options)
        self.network = copy.deepcopy(network).requires_grad_(True)

    def forward(self, network: QMamba, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) → raw quality (B, 1) of the copy."""
        raw: Tensor = self.network(images)
        return raw

    def positions(self, network: QMamba, images: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and what each position adds, in the copy."""
        return self.network.forward_positions(images)
