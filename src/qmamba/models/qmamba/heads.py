"""The heads: from the features of the stages to one number.

:class:`MeanHead` is the paper's. :class:`StatisticsHead` is this project's: it reads all stages.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from ...ops.precision import without_autocast

EPS = 1e-6  # added to a variance before its square root, whose gradient at zero is infinite


class MeanHead(nn.Module):
    """LayerNorm, mean over positions, Linear to one number (QMamba, Figure 2).

    Args:
        width: C, channels of the last stage.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return raw quality (B, 1) of the last stage's features (B, H, W, C)."""
        out: Tensor = self.fc(self.norm(x).mean(dim=(1, 2)))
        return out

    def positions(self, x: Tensor) -> Tensor:
        """Return the value of each position (B, H, W); their mean is what :meth:`forward` returns."""
        out: Tensor = self.fc(self.norm(x))[..., 0]
        return out


def statistics(x: Tensor) -> Tensor:
    """Return means and standard deviations over positions, (B, H, W, C) → (B, 2, C).

    In float32 at least, and in two passes: with sums of squares, a channel far from zero would lose its
    variance to rounding. A deviation is sqrt(variance + 1e-6).
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    mean = x.mean(dim=(1, 2))
    variance = (x - mean[:, None, None]).square().mean(dim=(1, 2))
    return torch.stack([mean, (variance + EPS).sqrt()], dim=1)


class StatisticsHead(nn.Module):
    """A linear function of the channels' means and standard deviations at all stages.

    With s the S = 2·ΣC statistics, stage by stage the means and then the deviations, this is
    ``bias + weight · ((s - mean) · scale)``. A ridge regression on standardised statistics is written into it
    by filling ``mean``, ``scale``, ``fc.weight`` and ``fc.bias``.

    Args:
        widths: C of each stage.

    Attributes:
        mean: (S,) buffer, subtracted from the statistics; zeros at first.
        scale: (S,) buffer, the inverse deviation of each statistic; ones at first.
        fc: the Linear, S to 1.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(2 * sum(widths)))
        self.register_buffer("scale", torch.ones(2 * sum(widths)))
        self.fc = nn.Linear(2 * sum(widths), 1)

    @torch.no_grad()
    def write(self, mean: Tensor, scale: Tensor, weight: Tensor, bias: float) -> None:
        """Fill the buffers and the Linear: mean, scale and weight are (S,)."""
        self.mean.copy_(mean)
        self.scale.copy_(scale)
        self.fc.weight.copy_(weight[None])
        self.fc.bias.fill_(bias)

    def forward(self, found: Sequence[Tensor]) -> Tensor:
        """Return raw quality (B, 1), float32 at least, of what :func:`statistics` returned for each stage.

        Raises:
            ValueError: the statistics of another number of stages.
        """
        if len(found) != len(self.widths):
            raise ValueError(
                f"the head must be given statistics of {len(self.widths)} stages, got {len(found)}; pass "
                "what forward_until of a network with head='statistics' returned"
            )
        s = torch.cat([stage.flatten(1) for stage in found], dim=1)
        with without_autocast(s.device):  # some hundreds of terms cancel: they need their digits
            out: Tensor = self.fc(((s - self.mean) * self.scale).to(self.mean.dtype))
        return out

    def positions(self, features: Sequence[Tensor], found: Sequence[Tensor]) -> Tensor:
        """Return the value of each position of the last stage (B, h, w); their mean is the raw quality.

        A deviation is written as the mean over positions of ((x - mean)² + 1e-6) / deviation. Values of
        earlier stages are averaged over the area of each position of the last.

        Args:
            features: per stage what the statistics were taken of, (B, H, W, C).
            found: the statistics, per stage (B, 2, C).
        """
        weight, sizes = self.fc.weight[0] * self.scale, [2 * width for width in self.widths]
        total = self.fc.bias - (weight * self.mean).sum()
        h, w = features[-1].shape[1:3]
        for x, s, weights in zip(features, found, torch.split(weight, sizes), strict=True):
            of_mean, of_deviation = rearrange(weights.to(s.dtype), "(two c) -> two c", two=2)
            mean, deviation = rearrange(s, "b two c -> two b 1 1 c")
            with without_autocast(x.device):
                x = x.to(s.dtype)
                squares = ((x - mean).square() + EPS) / deviation
                total = total + area_mean(x @ of_mean + squares @ of_deviation, h, w)
        return total


def area_mean(values: Tensor, height: int, width: int) -> Tensor:
    """Average values (B, H, W) over the areas of a coarser grid, (B, height, width), with the same mean.

    Where H is no multiple of ``height``, a value that lies in two areas is shared between them.
    """
    rows, columns = (
        _overlaps(fine, coarse).to(values)
        for fine, coarse in zip(values.shape[1:], (height, width), strict=True)
    )
    return rows @ values @ columns.T


def _overlaps(fine: int, coarse: int) -> Tensor:
    """Return how much of each of ``coarse`` equal intervals each of ``fine`` covers: (coarse, fine)."""
    starts = torch.arange(fine, dtype=torch.float64, device="cpu")
    edges = torch.arange(coarse + 1, dtype=torch.float64, device="cpu")[:, None] * (fine / coarse)
    shared = torch.minimum(edges[1:], starts + 1) - torch.maximum(edges[:-1], starts)
    return shared.clamp_min(0) * (coarse / fine)
