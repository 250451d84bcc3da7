"""A plain ResNet v1.5 of bottlenecks (ResNet, CVPR 2016) with timm's tensor names, without its classifier.

In v1.5 the stride of a stage is in its first 3×3 convolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

EXPANSION = 4  # channels of a bottleneck's output over those inside


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolution, each normalised, around a residual connection.

    (B, inputs, H, W) → (B, 4·channels, H/stride, W/stride), sides rounded up.
    """

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * channels
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNet(nn.Module):
    """Features of four stages: (B, 3, H, W) → (B, 4·channels[j], H/r, W/r), r = 4, 8, 16, 32, rounded up.

    Args:
        stem: channels of the first convolution.
        channels: channels inside the bottlenecks of each stage.
        depths: bottlenecks of each stage.
    """

    def __init__(self, *, stem: int, channels: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        outputs = [EXPANSION * count for count in channels]
        inputs = [stem, *outputs[:-1]]
        self.layer1 = _stage(inputs[0], channels[0], depths[0], stride=1)
        self.layer2 = _stage(inputs[1], channels[1], depths[1], stride=2)
        self.layer3 = _stage(inputs[2], channels[2], depths[2], stride=2)
        self.layer4 = _stage(inputs[3], channels[3], depths[3], stride=2)
        self.out_channels = tuple(outputs)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He's initialisation of the convolutions; batch norms start as the identity."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> list[Tensor]:
        x = F.relu(self.bn1(self.conv1(images)))  # (B, stem, H/2, W/2)
        x = F.max_pool2d(x, 3, stride=2, padding=1)  # (B, stem, H/4, W/4)
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            features.append(x)
        return features


def _stage(inputs: int, channels: int, depth: int, *, stride: int) -> nn.Sequential:
    first = Bottleneck(inputs, channels, stride)
    return nn.Sequential(first, *(Bottleneck(EXPANSION * channels, channels, 1) for _ in range(depth - 1)))
