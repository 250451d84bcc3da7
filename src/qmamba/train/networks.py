"""The networks of a training: built from a recipe, started, and shown pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import QMambaError, RecipeError
from ..images import Preprocessing
from ..models import create_model, get_architecture
from ..models.capabilities import StageFeatures, require
from ..models.registry import Output
from ..protocol import unit
from ..scoring.pipeline import quality
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


class Seen(NamedTuple):
    """What a network makes of images: raw quality (B,), and features per stage (B, C, H, W), in float32."""

    raw: Tensor
    features: list[Tensor]


@dataclass(frozen=True)
class Interface:
    """How a network is shown pixels, and what its output means.

    Attributes:
        preprocessing: of the network.
        output: kind of its output.
    """

    preprocessing: Preprocessing
    output: Output = "number"

    def images(self, pixels: Tensor, device: torch.device) -> Tensor:
        """Return what a network takes, float32, of pixels (B, 3, S, S) uint8."""
        return self.preprocessing(unit(pixels.to(device)))

    def see(self, network: nn.Module, pixels: Tensor, *, features: bool = False) -> Seen:
        """Return the raw quality of pixels, and the features of each stage if asked for.

        Raises:
            CapabilityError: the network does not give features.
        """
        images = self.images(pixels, next(network.parameters()).device)
        if not features:
            return Seen(quality(network(images), self.output), [])
        able = require(network, StageFeatures, "features to learn from")
        outputs, found = able.forward_features(images)
        return Seen(quality(outputs, self.output), [each.float() for each in found])


def interface_of(arch: str) -> Interface:
    """Return the interface of an architecture.

    Raises:
        UnknownModelError: no such architecture.
    """
    architecture = get_architecture(arch)
    return Interface(architecture.preprocessing, architecture.output)
