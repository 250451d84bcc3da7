"""Every size of LoDa, with the paper's values as defaults."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Far above any use: a stranger's config must not keep the machine busy before it is refused.
MAX_SIZE, MAX_BLOCKS, MAX_MLP_RATIO = 2**16, 1000, 64
CNN_BN = ("batch", "frozen")


@dataclass(frozen=True)
class Sizes:
    """Sizes of a LoDa network.

    Args:
        image_size: side of the square images, in pixels; a multiple of ``patch_size``.
        patch_size: side of the ViT's patches, in pixels.
        width: channels of the ViT's tokens; a multiple of ``heads``.
        depth: blocks of the ViT, and injectors.
        heads: attention heads of the ViT.
        mlp_ratio: hidden width of the ViT's MLPs over ``width``.
        cnn_stem: channels of the ResNet's first convolution.
        cnn_channels: channels inside the bottlenecks of the four stages; their outputs have four times these.
        cnn_depths: bottlenecks of the four stages.
        latent: channels of the distortion tokens; a multiple of ``cross_heads``.
        grid: side of the distortion tokens' grid at each of the four scales.
        cross_heads: attention heads of the injectors.
        dropout: rate on the class feature in training.
        cnn_bn: in training, the ResNet's batch norms use and track the statistics of the ``"batch"``, as the
            published training does, or those they have, ``"frozen"``.

    Raises:
        ValueError: a value of a wrong type or out of range, or sizes that do not divide.
    """

    image_size: int = 224
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    cnn_stem: int = 64
    cnn_channels: Sequence[int] = (64, 128, 256, 512)
    cnn_depths: Sequence[int] = (3, 4, 6, 3)
    latent: int = 64
    grid: int = 7
    cross_heads: int = 4
    dropout: float = 0.1
    cnn_bn: str = "batch"

    def __post_init__(self) -> None:
        for name in (
            "image_size", "patch_size", "width", "depth", "heads", "cnn_stem", "latent", "grid", "cross_heads"
        ):  # fmt: skip
            _check_size(name, getattr(self, name))
        for name in ("cnn_channels", "cnn_depths"):
            object.__setattr__(self, name, _four_sizes(name, getattr(self, name)))
        _check_number("mlp_ratio", self.mlp_ratio, 1 / self.width, MAX_MLP_RATIO)
        _check_number("dropout", self.dropout, 0.0, math.nextafter(1.0, 0.0))
        if self.depth > MAX_BLOCKS or sum(self.cnn_depths) > MAX_BLOCKS:
            raise ValueError(f"depth and the sum of cnn_depths must be at most {MAX_BLOCKS}, got {self}")
        for whole, part in (("image_size", "patch_size"), ("width", "heads"), ("latent", "cross_heads")):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"{whole} must be a multiple of {part}, got {getattr(self, whole)} and "
                    f"{getattr(self, part)}"
                )
        if self.cnn_bn not in CNN_BN:
            raise ValueError(f"cnn_bn must be one of {', '.join(CNN_BN)}, got {self.cnn_bn!r}")


def _check_size(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIZE:
        raise ValueError(f"{name} must be a whole number from 1 to {MAX_SIZE}, got {value!r}")


def _four_sizes(name: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 4:
        raise ValueError(f"{name} must be four sizes, one for each stage, got {value!r}")
    for item in value:
        _check_size(name, item)
    return tuple(value)


def _check_number(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{name} must be a number from {low:.3g} to {high:.3g}, got {value!r}")
