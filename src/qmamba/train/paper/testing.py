"""Testing: how images are cropped, rated and measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...data import Rated
from ...images import label
from ...metrics import MetricError, plcc, plcc_fitted, srcc
from ...protocol import Protocol
from ...scoring import Scorer
from ..engine import Report
from ..prefetch import batch_workers, made_ahead
from ..processes import Processes
from .recipe import PaperRecipe
from .sets import RatedSet


def protocol_of(recipe: PaperRecipe) -> Protocol:
    """Return how images are cropped in testing."""
    return Protocol("random", crop=recipe.crop, n_crops=recipe.test_crops, seed=recipe.seed)


def rate_images(
    scorer: Scorer,
    rate: Callable[[Tensor], Tensor],
    images: Sequence[Rated],
    of: RatedSet,
    processes: Processes,
    report: Report | None = None,
) -> Tensor:
    """Return raw quality (n, crops) of images, float64; the processes share them, in float32.

    Args:
        scorer: its protocol and preprocessing are those of the crops. All crops of an image go together.
        rate: normalised crops (n, 3, S, S) to raw quality (n,).
        images: of the set.
        of: the set, in the size that its images are cropped at.
        processes: all of them get the result.
        report: called with ``{"image", "images"}`` after each image of this process.

    Raises:
        ImageError: an image cannot be decoded.
    """

    def rated(mine: Sequence[Rated]) -> list[list[float]]:
        rows = []
        ahead = made_ahead(lambda i: of.pixels(mine[i]), 0, len(mine), batch_workers(processes.device))
        for i, pixels in enumerate(ahead):
            look = scorer.look(rate, pixels, label(mine[i].path), batch_size=scorer.protocol.n_crops)
            rows.append([value for _, raw in look for value in raw.tolist()])
            if report is not None:
                report({"image": i + 1, "images": len(mine)})
        return rows

    return torch.tensor(processes.share(images, rated), dtype=torch.float64)


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
