"""Distillation: the network learns to predict a teacher's features at each of its own stages.

An opinion score is one noisy number for a whole photograph, and a Vision Mamba trained on nothing else
learns slowly at first. A teacher's features are hundreds of numbers for every position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Info = Sequence[Mapping[str, Any]]


class Distiller(nn.Module):
    """Projections from a network's stages to a teacher's, and the loss between them.

    Args:
        student, teacher: ``feature_info`` of both. Each stage of the teacher is predicted from the student's
            stage with the nearest reduction.

    Attributes:
        groups: stages of the student that predict any, with the stages of the teacher that each predicts.
    """

    def __init__(self, student: Info, teacher: Info) -> None:
        super().__init__()
        sources = [_nearest(student, stage["reduction"]) for stage in teacher]
        self.groups = [
            (source, [i for i, each in enumerate(sources) if each == source])
            for source in sorted(set(sources))
        ]
        self.projections = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(student[source]["num_chs"]),
                nn.Linear(student[source]["num_chs"], sum(teacher[i]["num_chs"] for i in predicted)),
            )
            for source, predicted in self.groups
        )

    def forward(self, features: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """Return the squared error, mean over the stages, each teacher channel standardised over the batch.

        Args:
            features: of the student, (B, C, H, W) per stage.
            targets: of the teacher, (B, C', H', W') per stage; averaged to H × W where sizes differ.
        """
        losses = []
        for (source, predicted), projection in zip(self.groups, self.projections, strict=True):
            feature = features[source]
            height, width = feature.shape[2:]
            pooled = [F.adaptive_avg_pool2d(targets[i], (height, width)) for i in predicted]
            target = torch.cat(pooled, dim=1)
            std, mean = torch.std_mean(target, dim=(0, 2, 3), keepdim=True)
            wanted = ((target - mean) / (std + 1e-4)).permute(0, 2, 3, 1)
            losses.append(F.mse_loss(projection(feature.permute(0, 2, 3, 1)), wanted))
        return torch.stack(losses).mean()


def _nearest(stages: Info, reduction: float) -> int:
    return min(range(len(stages)), key=lambda i: abs(stages[i]["reduction"] - reduction))
