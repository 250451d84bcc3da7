"""Resize and normalise crops for a network."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from qmamba.errors import CheckpointError

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)

Interpolation: TypeAlias = Literal["bilinear", "bicubic"]
Padding: TypeAlias = Literal["none", "mean"]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Size and normalisation of a network's inputs.

    Args:
        mean: of the channels red, green, blue, for images in [0, 1].
        std: standard deviations of the channels.
        size: (height, width) that the network takes, or None where it takes any. A crop of another size is
            resized to it.
        interpolation: of that resizing, "bilinear" or "bicubic", over all pixels that fall together.
        padding: "mean" pads a crop with `mean` to the proportions of `size` before it is resized, its content
            in the middle; "none" stretches it.

    Raises:
        CheckpointError: a value of a wrong type or out of range.
    """

    mean: tuple[float, ...] = _IMAGENET_MEAN
    std: tuple[float, ...] = _IMAGENET_STD
    size: tuple[int, int] | None = None
    interpolation: Interpolation = "bilinear"
    padding: Padding = "none"

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not _are_numbers(values, 3):
                raise _wrong(name, "three finite numbers", values)
            object.__setattr__(self, name, tuple(float(value) for value in values))
        if min(self.std) <= 0:
            raise _wrong("std", "three numbers above zero", self.std)
        if self.size is not None:
            sides = self.size
            if (
                not isinstance(sides, (list, tuple))
                or len(sides) != 2
                or any(type(side) is not int or not 1 <= side <= 2**13 for side in sides)
            ):
                raise _wrong("size", "null or two integers from 1 to 8192", sides)
            object.__setattr__(self, "size", tuple(sides))
        for name, known in (("interpolation", get_args(Interpolation)), ("padding", get_args(Padding))):
            if getattr(self, name) not in known:
                raise _wrong(name, f"one of {', '.join(known)}", getattr(self, name))

    def __call__(self, crops: Tensor) -> Tensor:
        """Return a network's inputs (N, 3, h', w') float32 from crops (N, 3, h, w) float32 in [0, 1]."""
        mean, std = (crops.new_tensor(numbers).view(1, 3, 1, 1) for numbers in (self.mean, self.std))
        return (self._sized(crops, mean) - mean) / std

    def _sized(self, crops: Tensor, mean: Tensor) -> Tensor:
        if self.size is None or tuple(crops.shape[-2:]) == self.size:
            return crops
        height, width = int(crops.shape[-2]), int(crops.shape[-1])
        if self.padding == "mean":
            tall = max(height, -(-width * self.size[0] // self.size[1]))
            wide = max(width, -(-height * self.size[1] // self.size[0]))
            # A side that is not padded is resized first: the square around a strip may fill the memory.
            first = (
                height if tall > height else self.size[0],
                width if wide > width else self.size[1],
            )
            top, left = (tall - height) // 2, (wide - width) // 2
            margins = (left, wide - width - left, top, tall - height - top)
            crops = F.pad(self._resized(crops, first) - mean, margins) + mean
        return self._resized(crops, self.size)

    def _resized(self, crops: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(crops, size=size, mode=self.interpolation, align_corners=False, antialias=True)

    def tensors(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation, each (3, 1, 1) float32."""
        mean, std = (torch.tensor(numbers, device=device).view(3, 1, 1) for numbers in (self.mean, self.std))
        return mean, std

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, ready for JSON."""
        lists = {"mean": list(self.mean), "std": list(self.std)}
        size = None if self.size is None else list(self.size)
        return {**lists, "size": size, "interpolation": self.interpolation, "padding": self.padding}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preprocessing:
        """Return the inverse of `to_dict`; CheckpointError when a field is missing or unknown."""
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(data, Mapping) or set(data) != set(names):
            raise CheckpointError(f"preprocessing must be an object with {', '.join(names)}, got {data!r}")
        return cls(**data)


def _are_numbers(values: object, count: int) -> bool:
    """Return whether a value is a list or tuple of this many finite numbers."""
    return (
        isinstance(values, (list, tuple))
        and len(values) == count
        # bool is an int to Python, but `true` as a mean is a mistake.
        and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
        and all(math.isfinite(value) for value in values)
    )


def _wrong(name: str, expected: str, value: object) -> CheckpointError:
    return CheckpointError(f"preprocessing: {name} must be {expected}, got {value!r}")
