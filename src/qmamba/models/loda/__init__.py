"""LoDa (CVPR 2024): a frozen vision transformer, with local distortion features of a frozen CNN injected."""

from __future__ import annotations

from typing import Any

from ...preprocessing import Preprocessing
from ...protocol import Protocol
from ..registry import Architecture, BaseWeights, register
from .network import LoDa, is_stored
from .published import load_loda
from .sizes import Sizes

__all__ = ["LoDa", "Sizes", "build", "is_stored"]

PROTOCOL = Protocol(
    "random", crop=224, n_crops=15, seed=3407
)  # the published one; the seed is its training's

BASES = (  # the usual ones; their digests enter a checkpoint when it is first saved with them
    BaseWeights("timm/vit_base_patch16_224.augreg2_in21k_ft_in1k", "main", "model.safetensors", "", "vit."),
    BaseWeights("timm/resnet50.a1_in1k", "main", "model.safetensors", "", "cnn."),
)


def build(**overrides: Any) -> LoDa:
    """Build an untrained network, with the keyword arguments of :class:`Sizes`; nothing is downloaded."""
    return LoDa(Sizes(**overrides))


register(
    Architecture(
        "loda", build, preprocessing=Preprocessing(size=(224, 224)), protocol=PROTOCOL, convert=load_loda,
        bases=BASES, trained=is_stored,
    )
)  # fmt: skip
