"""Losses. All take raw predictions (n,) and return a scalar."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def smooth_l1(pred: Tensor, mos: Tensor, beta: float = 0.1) -> Tensor:
    """Return the smooth-L1 loss between predictions and MOS in [0, 1]."""
    return F.smooth_l1_loss(pred, mos, beta=beta)


def plcc_loss(pred: Tensor, mos: Tensor, floor: float = 0.1) -> Tensor:
    """Return (1 − PLCC) / 2 over a batch: 0 for a perfect linear relation, 1 for an inverted one.

    Predictions that hardly differ are divided by ``floor`` instead of their own standard deviation: otherwise
    the gradient of an untrained network, which grows with the inverse of that deviation, exceeds every other
    loss, and the network collapses to a constant.
    """
    p, m = pred - pred.mean(), mos - mos.mean()
    spread = torch.sqrt(p.square().mean() + 1e-12).clamp(min=floor)
    correlation: Tensor = (p * m).mean() / (spread * m.square().mean().sqrt() + 1e-8)
    return (1 - correlation) / 2


def correlation(pred: Tensor, mos: Tensor) -> Tensor:
    """Return Pearson's correlation ρ of predictions and MOS over a batch (LoDa, equation 5).

    Both are standardised: their mean is subtracted, and they are divided by their population standard
    deviation plus 1e-8, as in LoDa's public code. If all predictions or all MOS are the same, ρ is 0.
    """
    p, m = ((x - x.mean()) / (x.std(correction=0) + 1e-8) for x in (pred, mos))
    return (p * m).mean()


def correlation_loss(pred: Tensor, mos: Tensor) -> Tensor:
    """Return (1 - ρ) / 2 over a batch (LoDa, equation 5). It is blind to the scale of both.

    >>> mos = torch.tensor([0.1, 0.4, 0.9])
    >>> round(float(correlation_loss(3 * mos + 7, mos)), 4), round(float(correlation_loss(-mos, mos)), 4)
    (0.0, 1.0)
    """
    return (1 - correlation(pred, mos)) / 2


def squared_correlation_loss(pred: Tensor, mos: Tensor) -> Tensor:
    """Return (1 - ρ) / 4 + (1 - ρ²) / 8 over a batch, which LoDa's public code minimises."""
    rho = correlation(pred, mos)
    return (1 - rho) / 4 + (1 - rho.square()) / 8


def score_loss(pred: Tensor, scores: Tensor) -> Tensor:
    """Return how far predictions are from a teacher's scores, in value and in correlation."""
    return smooth_l1(pred, scores) + 0.5 * plcc_loss(pred, scores)


def ranking_loss(better: Tensor, worse: Tensor, margin: Tensor | float) -> Tensor:
    """Return the hinge loss by which each ``better`` should exceed its ``worse`` by ``margin``."""
    loss: Tensor = torch.relu(margin - (better - worse)).mean()
    return loss


def pairwise_ranking(pred: Tensor, mos: Tensor) -> Tensor:
    """Return the hinge loss over all pairs of a batch: predictions should differ by at least as much as MOS.

    >>> round(float(pairwise_ranking(torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1]))), 4)
    0.8
    """
    better, worse = (mos[:, None] > mos[None, :]).nonzero(as_tuple=True)
    if not len(better):
        return pred.sum() * 0.0
    return ranking_loss(pred[better], pred[worse], mos[better] - mos[worse])
