"""Distillation: the network learns to predict a pretrained network's features at each of its own stages.

Opinion scores are one noisy number for a whole photograph, and a Vision Mamba that has seen nothing else
starts slowly on them. A teacher's features are hundreds of numbers for every position: they teach it to see.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.qmamba import QMamba
from .teacher import Teacher


class Distiller(nn.Module):
    """Projections from a network's stages to a teacher's features, and the loss between them."""

    def __init__(self, student: QMamba) -> None:
        super().__init__()
        self.projections = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(info["num_chs"]), nn.Linear(info["num_chs"], width))
            for info, width in zip(student.feature_info, Teacher.widths, strict=True)
        )

    def forward(self, features: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """Mean over the stages of the squared error, each teacher channel standardised over the batch.

        Args:
            features: per stage (B, C, H, W), the network's.
            targets: per stage (B, C', H', W'), the teacher's; brought to H × W where sizes differ.
        """
        losses = []
        for projection, feature, target in zip(self.projections, features, targets, strict=True):
            if target.shape[2:] != feature.shape[2:]:
                target = F.interpolate(target, size=feature.shape[2:], mode="bilinear", align_corners=False)
            deviation, mean = torch.std_mean(target, dim=(0, 2, 3), keepdim=True)
            wanted = ((target - mean) / (deviation + 1e-4)).permute(0, 2, 3, 1)
            losses.append(F.mse_loss(projection(feature.permute(0, 2, 3, 1)), wanted))
        return torch.stack(losses).mean()
