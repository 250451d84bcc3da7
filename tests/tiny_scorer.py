"""A scorer small enough for tests, and photographs to feed it."""

from __future__ import annotations

import copy
import dataclasses
import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from qmamba.calibration import Calibration
from qmamba.checkpoints import ModelConfig
from qmamba.models import create_model
from qmamba.protocol import Protocol
from qmamba.scoring import Scorer

TINY: dict[str, Any] = {"widths": (8, 16, 32, 64), "depths": (1, 1, 1, 1)}


def tiny_network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = create_model("lqmamba-n", **TINY)
        # Untrained networks give nearly the same output for every image; larger weights tell images apart.
        for parameter in network.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.3)
    return network


def tiny_config(**changes: Any) -> ModelConfig:
    calibration = Calibration(slope=0.5, offset=0.1)
    config = ModelConfig(
        name="tiny", arch="lqmamba-n", overrides=TINY, calibration=calibration, trained_on=("none",)
    )
    return config.replace(protocol=Protocol(crop=64, max_crops=4), **changes)


def with_protocol(scorer: Scorer, **fields: Any) -> Scorer:
    protocol = dataclasses.replace(scorer.protocol, **fields)
    return Scorer(copy.deepcopy(scorer.network), scorer.config.replace(protocol=protocol))


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8)).resize((width, height))
    return (np.asarray(coarse) * 0.7 + rng.integers(0, 76, (height, width, 3))).astype(np.uint8)


def encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def quick_config() -> ModelConfig:
    """Of a scorer that sees an image once, small: for tests of many images."""
    return tiny_config().replace(protocol=Protocol("scales", max_crops=0, sides=(64,)))
