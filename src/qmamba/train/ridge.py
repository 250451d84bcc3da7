"""Ridge regression over blocks of images that count equally.

Each block has its own zero: features and targets are centred within it, since opinions of different data sets
cannot be compared. So only differences within a block are learned, and predictions have no zero of their own.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Moments(NamedTuple):
    """Means over the images of a block, or over blocks.

    Attributes:
        mean: (D,) features.
        covariance: (D, D) of the features, within blocks.
        cross: (D,) covariances of a feature with the target, within blocks.
    """

    mean: np.ndarray
    covariance: np.ndarray
    cross: np.ndarray


@dataclass(frozen=True)
class Block:
    """Images that are compared with one another: a data set, or a part of one.

    Attributes:
        x: (n, D) features.
        y: (n,) targets.
    """

    x: np.ndarray
    y: np.ndarray

    @functools.cached_property
    def moments(self) -> Moments:
        """Means over the block's images, in float64."""
        mean = self.x.mean(axis=0, dtype=np.float64)
        x, y, n = self.x - mean, self.y - self.y.mean(), len(self.y)
        return Moments(mean, x.T @ x / n, x.T @ y / n)


def standardised(mos: np.ndarray) -> np.ndarray:
    """Return opinions with mean 0 and variance 1."""
    found: np.ndarray = (mos - mos.mean()) / mos.std()
    return found


def pooled_moments(blocks: Sequence[Moments]) -> Moments:
    """Return the moments of blocks that count equally, whatever their sizes."""
    return Moments(*(sum(each[1:], start=each[0]) / len(each) for each in zip(*blocks, strict=True)))


class Ridge(NamedTuple):
    """A fitted ridge regression, ``weights · ((x - mean) / deviation)``.

    Attributes:
        mean: (D,) features for which the prediction is 0.
        deviation: (D,) of the features, within blocks.
        weights: (D,).
    """

    mean: np.ndarray
    deviation: np.ndarray
    weights: np.ndarray

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return predictions (n,) float64 for features (n, D)."""
        prediction: np.ndarray = ((x - self.mean) / self.deviation) @ self.weights
        return prediction


def fit(moments: Moments, strength: float) -> Ridge:
    """Return the ridge regression of a strength.

    With z the centred features at variance 1 and y the centred target, it minimises
    E[(y - w·z)²] + strength · |w|².
    """
    deviation = np.sqrt(np.diagonal(moments.covariance)) + 1e-6
    correlation = moments.covariance / deviation / deviation[:, None]
    correlation[np.diag_indices_from(correlation)] += strength
    return Ridge(moments.mean, deviation, np.linalg.solve(correlation, moments.cross / deviation))
