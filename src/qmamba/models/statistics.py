"""Statistics of feature maps: a mean and a deviation per channel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

VARIANCE_FLOOR = 1e-6
"""Added to variances, as in heads that read statistics: the gradient of a square root is infinite at 0."""


def channel_statistics(maps: Sequence[Tensor]) -> Tensor:
    """Return means and deviations over positions: (B, C, H, W) per map → (B, 2 · ΣC).

    Map by map the means come first. A deviation is sqrt(variance + 1e-6), the variance that of all positions,
    so that a single position has one.
    """
    parts: list[Tensor] = []
    for each in maps:
        variance, mean = torch.var_mean(each, dim=(2, 3), correction=0)
        parts += [mean, (variance + VARIANCE_FLOOR).sqrt()]
    return torch.cat(parts, dim=1)
