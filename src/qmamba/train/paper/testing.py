"""Testing: how images are cropped, rated and measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...data import Rated
from ...images import as_bytes
from ...metrics import MetricError, plcc, plcc_fitted, srcc
from ...protocol import Protocol, fit_side, windows
from ..engine import Report
from ..prefetch import batch_workers, made_ahead
from ..processes import Processes
from .recipe import PaperRecipe
from .sets import RatedSet


def protocol_of(recipe: PaperRecipe) -> Protocol:
    """Return how images are cropped in testing."""
    return Protocol("random", crop=recipe.crop, n_crops=recipe.test_crops, seed=recipe.seed)


def rate_images(
    rate: Callable[[Tensor], Tensor],
    images: Sequence[Rated],
    of: RatedSet,
    protocol: Protocol,
    processes: Processes,
    done: Report | None = None,
) -> Tensor:
    """Return raw quality (n, crops) of images, float64; the processes share them, in float32.

    Args:
        rate: crops (B, 3, S, S) uint8 to raw quality (B,). All crops of an image go together.
        of: the set that the images are from.
        done: called with ``{"image", "images"}`` after each image of this process.

    Raises:
        ImageError: an image cannot be decoded.
    """
    mine = list(range(processes.rank, len(images), processes.size))

    def crops(i: int) -> Tensor:
        return windows_of(of, images[mine[i]], protocol)

    rows = []
    with torch.inference_mode(), torch.autocast(processes.device.type, enabled=False):
        ahead = made_ahead(crops, 0, len(mine), batch_workers(processes.device))
        for i, pixels in enumerate(ahead):
            rows.append((mine[i], rate(pixels).float().tolist()))
            if done is not None:
                done({"image": i + 1, "images": len(mine)})
    together = [row for part in processes.collect(rows) for row in part]
    return torch.tensor([raw for _, raw in sorted(together)], dtype=torch.float64)


def windows_of(of: RatedSet, rated: Rated, protocol: Protocol) -> Tensor:
    """Return the crops of an image that are rated in testing, (n, 3, S, S) uint8."""
    pixels = as_bytes(fit_side(of.pixels(rated), protocol.crop))
    boxes = windows(pixels.shape[1], pixels.shape[2], protocol)
    return torch.stack([pixels[:, t : t + h, left : left + w] for t, left, h, w in boxes])


def measure(scores: Tensor, mos: Sequence[float]) -> dict[str, Any]:
    """Return SRCC, PLCC, PLCC after the four-parameter logistic fit, and n; None where one is undefined."""
    found: dict[str, Any] = {"n": len(mos)}
    for name, metric in (("srcc", srcc), ("plcc", plcc), ("plcc_fitted", plcc_fitted)):
        try:
            value = metric(scores, mos)
        except MetricError:  # no fit: too few images, or no scipy
            value = math.nan
        found[name] = None if math.isnan(value) else round(value, 6)
    return found
