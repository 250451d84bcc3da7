"""The networks of a training: built from a recipe, started, and shown pixels."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import QMambaError, RecipeError
from ..images import Preprocessing
from ..models import create_model
from ..models.capabilities import StageFeatures, require
from .recipe import Plan
from .start import start


def make_network(plan: Plan, device: torch.device, init: str | Path | None = None) -> nn.Module:
    """Build a recipe's network and give it the weights that it starts from.

    Args:
        plan: architecture and overrides.
        device: of the network.
        init: what :func:`qmamba.train.start.start` takes; None for a training from nothing.

    Raises:
        UnknownModelError: no such architecture.
        RecipeError: overrides that the architecture does not have.
        CheckpointError, HubError: there is nothing to start from, or it is of another network.
    """
    try:
        network = create_model(plan.arch, **plan.overrides)
    except ValueError as error:
        if isinstance(error, QMambaError):
            raise
        raise RecipeError(f"the recipe's overrides do not fit: {error}") from error
    start(network, "" if init is None else str(init))
    return network.to(device)


class Normaliser:
    """Pixels (B, 3, S, S), 0 to 255, to images as a network expects them, float32 on its device."""

    def __init__(self, preprocessing: Preprocessing, device: torch.device) -> None:
        self.device = device
        self._mean, self._std = (255 * t for t in preprocessing.tensors(device))

    def __call__(self, pixels: Tensor) -> Tensor:
        return (pixels.to(self.device).float() - self._mean) / self._std


class Seen(NamedTuple):
    """What a network makes of images: raw quality (B,), and features per stage (B, C, H, W), in float32."""

    raw: Tensor
    features: list[Tensor]


def see(network: nn.Module, images: Tensor, *, features: bool) -> Seen:
    """Return the raw quality of normalised images, and the features of each stage if asked for.

    Raises:
        CapabilityError: the network does not give features.
    """
    if not features:
        return Seen(network(images)[:, 0].float(), [])
    able = require(network, StageFeatures, "features to learn from")
    raw, found = able.forward_with_features(images)
    return Seen(raw[:, 0].float(), [each.float() for each in found])
