"""The networks of a training: built from a recipe, started, and shown pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ..checkpoints import ModelConfig
from ..checkpoints.start import Start, start
from ..errors import QMambaError, RecipeError
from ..images.resizing import unit
from ..models import create_model, get_architecture
from ..models.capabilities import StageFeatures, require
from ..models.registry import Output
from ..preprocessing import Preprocessing
from ..scoring.pipeline import quality
from .recipe import Plan

if TYPE_CHECKING:
    from .paper.recipe import PaperRecipe


def make_network(
    recipe: Plan | PaperRecipe, device: torch.device, init: str | Path | None = None, root: Path | None = None
) -> tuple[nn.Module, Start]:
    """Build a recipe's network and give it the weights that it starts from.

    Args:
        recipe: its architecture and overrides.
        device: of the network.
        init, root: what :func:`qmamba.checkpoints.start.start` takes; None for a training from nothing.

    Returns:
        The network, and what became of the tensors that it started from.

    Raises:
        UnknownModelError: no such architecture.
        RecipeError: overrides that the architecture does not have.
        CheckpointError, HubError: there is nothing to start from, or it is of another network.
    """
    try:
        network = create_model(recipe.arch, **recipe.overrides)
    except ValueError as error:
        if isinstance(error, QMambaError):
            raise
        raise RecipeError(f"the recipe's overrides do not fit: {error}") from error
    began = start(network, "" if init is None else str(init), root)
    return network.to(device), began


class Seen(NamedTuple):
    """A network's outputs for images: raw quality (B,), and features per stage (B, C, H, W), in float32."""

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

    @classmethod
    def of(cls, config: ModelConfig) -> Interface:
        """Return the interface of a checkpoint's network."""
        return cls(config.preprocessing, config.output)

    def images(self, pixels: Tensor, device: torch.device) -> Tensor:
        """Return a network's inputs, float32, from pixels (B, 3, S, S) uint8."""
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
