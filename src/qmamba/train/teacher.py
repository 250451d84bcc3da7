"""Teachers: frozen networks whose features, and scores if they rate, another network learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..checkpoints import load_checkpoint
from ..checkpoints.locate import resolve
from ..models import create_model
from ..models.capabilities import StageFeatures, require
from ..models.lite0 import LITE0, start_lite0
from .networks import Interface, interface_of


class Lesson(NamedTuple):
    """The outputs of a teacher for images: features (B, C, H, W) per stage, and scores (B,) if it rates."""

    features: list[Tensor]
    scores: Tensor | None


class Teacher(nn.Module):
    """A frozen network with features of stages, behind pixels.

    Args:
        network: any network with the capability :class:`StageFeatures`. It is frozen in place.
        interface: of the network.
        rates: whether its raw quality means something.

    Raises:
        CapabilityError: the network does not give features.
    """

    def __init__(self, network: nn.Module, interface: Interface, *, rates: bool) -> None:
        super().__init__()
        require(network, StageFeatures, "features to learn from")
        # CPUs convolve faster over channels that lie side by side.
        self.network = network.eval().requires_grad_(False)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.interface, self.rates = interface, rates

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Channels and reduction of each stage."""
        return cast(StageFeatures, self.network).feature_info

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Lesson:
        """Return features and scores of pixels (B, 3, S, S) uint8."""
        seen = self.interface.see(self.network, pixels, features=True)
        return Lesson(seen.features, seen.raw if self.rates else None)


def load_teacher(name: str | Path | None = None) -> Teacher:
    """Load a teacher.

    Args:
        name: checkpoint of a network that rates and gives features of its stages, by any name that
            ``qmamba.load`` takes: of the recipe ``teacher``, for example. None for EfficientNet-Lite0 as
            ImageNet left it, which knows features only.

    Raises:
        RecipeError: the packages of the extra ``distil`` are not installed.
        UnknownModelError, CheckpointError, HubError: there is no such checkpoint.
        CapabilityError: the network does not give features.
    """
    if name is not None:
        network, config = load_checkpoint(resolve(name))
        return Teacher(network, Interface.of(config), rates=True)
    with torch.random.fork_rng():
        network = create_model(LITE0)
        start_lite0(network)
    return Teacher(network, interface_of(LITE0), rates=False)
