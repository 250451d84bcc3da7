"""What is done to the pixels of a crop before a network sees them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from qmamba.checks import fail, numbers, same_keys

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Channel means and standard deviations (red, green, blue), for images in [0, 1]."""

    mean: tuple[float, ...] = _IMAGENET_MEAN
    std: tuple[float, ...] = _IMAGENET_STD

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", numbers(self.mean, "preprocessing.mean", 3))
        object.__setattr__(self, "std", numbers(self.std, "preprocessing.std", 3))
        if min(self.std) <= 0:
            raise fail("preprocessing.std", "three numbers above zero", self.std)

    def tensors(self, device: torch.device | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation, each (3, 1, 1) in float32."""
        mean, std = (torch.tensor(numbers, device=device).view(3, 1, 1) for numbers in (self.mean, self.std))
        return mean, std

    def to_dict(self) -> dict[str, Any]:
        return {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preprocessing:
        same_keys(data, {"mean", "std"}, "preprocessing")
        return cls(mean=data["mean"], std=data["std"])
