"""Fit the probe that names faults, and choose the probabilities from which it speaks.

The probe is a multinomial logistic regression on standardised statistics of a frozen network. Each
photograph's samples are classified by a fit without that photograph, and the thresholds are the least ones at
which what is told is right often enough there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import RecipeError
from ..scoring.faults import CLEAN, FAULTS, FaultProbe, most_probable

KINDS = (*(kind for members in FAULTS.values() for kind in members), CLEAN)
FOLDS = 4
CONFIDENCE = 1.645  # standard deviations: the precision asked for is reached with a confidence of 95 %
STEPS = 60  # of L-BFGS


@dataclass(frozen=True, eq=False)
class Samples:
    """Statistics of distorted and undamaged copies of photographs.

    Attributes:
        statistics: (n, S) float32.
        kinds: n names of distortions, or `CLEAN`.
        photographs: (n,) indices of the photographs that they were made of.
    """

    statistics: Tensor
    kinds: tuple[str, ...]
    photographs: np.ndarray

    def weights(self) -> np.ndarray:
        """Return weights (n,) float64 with which undamaged samples count as much as all others together."""
        clean = np.array([kind == CLEAN for kind in self.kinds])
        if clean.all() or not clean.any():
            raise RecipeError("samples must be both undamaged and distorted")
        return np.where(clean, (~clean).sum() / clean.sum(), 1.0)


def fit_probe(
    samples: Samples, *, side: int, weights_sha256: str, strength: float = 0.03, precision: float = 0.9
) -> tuple[FaultProbe, Tensor]:
    """Fit a probe, and choose its thresholds on held-out photographs.

    Args:
        samples: with all kinds of `FAULTS`, and undamaged ones.
        side: square root of the number of pixels at which the statistics were taken.
        weights_sha256: of the network's weights.
        strength: of the L2 penalty on the weights of standardised statistics.
        precision: share of what is told that must be right among held-out photographs, in [0, 1], with a
            confidence of 95 %, where half of the samples are undamaged.

    Returns:
        The probe, which tells no regions yet, and held-out probabilities (n, K) of its kinds.

    Raises:
        RecipeError: a kind is missing, or there are fewer photographs than folds.
    """
    missing = set(KINDS) - set(samples.kinds)
    if missing:
        raise RecipeError(f"samples must show every kind, got none of {', '.join(sorted(missing))}")
    names = np.unique(samples.photographs)
    if len(names) < FOLDS:
        raise RecipeError(f"there must be at least {FOLDS} photographs, got {len(names)}")
    x, weights = samples.statistics.float(), torch.from_numpy(samples.weights())
    labels = torch.tensor([KINDS.index(kind) for kind in samples.kinds])
    empty = FaultProbe(
        KINDS, x.new_empty(0), x.new_empty(0), x.new_empty(0), x.new_empty(0), {}, None, side, weights_sha256
    )
    held_out = torch.zeros(len(x), len(KINDS))
    folds = torch.from_numpy(np.searchsorted(names, samples.photographs) % FOLDS)
    for fold in range(FOLDS):
        inside, outside = folds != fold, folds == fold
        probe = replace(empty, **_fitted(x[inside], labels[inside], weights[inside], strength))
        held_out[outside] = probe.probabilities(x[outside])
    probe = replace(empty, **_fitted(x, labels, weights, strength))
    return replace(probe, thresholds=thresholds(samples, held_out, precision)), held_out


def _fitted(x: Tensor, labels: Tensor, weights: Tensor, strength: float) -> dict[str, Any]:
    """Return the parameters of a probe: L-BFGS on the weighted cross-entropy with an L2 penalty."""
    mean, deviation = x.mean(dim=0), x.std(dim=0).clamp_min(1e-6)
    z = ((x - mean) / deviation).double()
    share = weights / weights.sum()
    weight = torch.zeros(len(KINDS), x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(KINDS), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        losses = F.cross_entropy(z @ weight.T + bias, labels, reduction="none")
        loss = (share * losses).sum() + strength * weight.square().sum() / 2
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    rounded = weight.detach().to(torch.float16).float()  # as it is stored
    return {"weight": rounded, "bias": bias.detach().float(), "mean": mean, "deviation": deviation}


def thresholds(samples: Samples, probabilities: Tensor, precision: float) -> dict[str, float]:
    """Return the least probability from which each fault, and each kind of a told fault, is told.

    Faults and kinds that no threshold makes precise enough are left out, and so are the kinds of faults that
    stand for one distortion only.
    """
    guesses = [most_probable(KINDS, row) for row in probabilities]
    weights, found = samples.weights(), dict[str, float]()
    for name, members in FAULTS.items():
        chosen = np.array([guess.name == name for guess in guesses])
        sure = np.array([guess.probability for guess in guesses])
        right = np.array([kind in members for kind in samples.kinds])
        least = least_threshold(sure[chosen], right[chosen], weights[chosen], precision)
        if least is None:
            continue
        found[name] = least
        told = chosen & (sure >= least)
        for kind in members if len(members) > 1 else ():
            of_kind = told & np.array([guess.kind == kind for guess in guesses])
            is_kind = np.array([each == kind for each in samples.kinds])
            column = probabilities[:, KINDS.index(kind)].double().numpy()
            of_it = least_threshold(column[of_kind], is_kind[of_kind], weights[of_kind], precision)
            if of_it is not None:
                found[kind] = of_it
    return found


def least_threshold(
    sure: np.ndarray, right: np.ndarray, weights: np.ndarray, precision: float, confidence: float = CONFIDENCE
) -> float | None:
    """Return the least value from which what is told is right often enough, or None.

    Often enough means that the lower end of Wilson's interval for the share of right statements reaches
    `precision`: a few statements that happen to be right do not suffice.

    Args:
        sure: (n,) how sure each statement is.
        right: (n,) whether it is true.
        weights: (n,) what it counts.
        precision: the share, in [0, 1], by weight.
        confidence: standard deviations from the share to the end of its interval; 0 takes the share itself.

    >>> sure, right = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, True, False, True])
    >>> least_threshold(sure, right, np.ones(4), 0.8, confidence=0)
    0.8
    """
    order = np.argsort(-sure, kind="stable")
    sure, right, weights = sure[order], right[order].astype(float), weights[order]
    totals, squares = np.cumsum(weights), np.cumsum(weights**2)
    shares, count = (
        np.cumsum(right * weights) / totals,
        totals**2 / squares,
    )  # count: as if weights were equal
    z = confidence**2 / count
    spread = confidence * np.sqrt(shares * (1 - shares) / count + z / (4 * count))
    low = (shares + z / 2 - spread) / (1 + z)
    last_of_equals = np.append(sure[1:] != sure[:-1], True)[: len(sure)]
    enough = np.flatnonzero((low >= precision) & last_of_equals)
    return float(sure[enough[-1]]) if len(enough) else None
