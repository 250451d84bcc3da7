"""Ridge regression over blocks of images that count equally, its strength chosen by leaving blocks out.

Each block has its own zero: features and targets are centred within it, since opinions of different data sets
cannot be compared. So only differences within a block are learnt, and predictions have no zero of their own.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.linalg import solve

from qmamba.metrics import srcc

STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # over features of unit variance


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
    """Images that are left out together: a domain, or a fold of one.

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
    return (mos - mos.mean()) / mos.std()


def pooled_moments(blocks: Sequence[Moments]) -> Moments:
    """Return the moments of blocks that count equally, whatever their sizes."""
    mean, covariance, cross = (sum(each) / len(blocks) for each in zip(*blocks, strict=True))
    return Moments(mean, covariance, cross)


class Ridge(NamedTuple):
    """A fitted ridge regression.

    Attributes:
        mean: (D,) features for which the prediction is 0.
        weights: (D,).
    """

    mean: np.ndarray
    weights: np.ndarray

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return predictions (n,) float64 for features (n, D)."""
        prediction: np.ndarray = (x - self.mean) @ self.weights
        return prediction


def fit(moments: Moments, strength: float) -> Ridge:
    """Return the ridge regression of a strength.

    With z the centred features at variance 1 and y the centred target, it minimises
    E[(y - w·z)²] + strength · |w|².
    """
    std = np.sqrt(np.diagonal(moments.covariance)) + 1e-6
    correlation = moments.covariance / std / std[:, None]
    correlation[np.diag_indices_from(correlation)] += strength
    weights = solve(correlation, moments.cross / std, assume_a="pos", overwrite_a=True)
    return Ridge(moments.mean, weights / std)


class LeaveOut:
    """Ridge regressions fitted to some of several blocks.

    Args:
        blocks: by name.
        strengths: to choose from.
    """

    def __init__(self, blocks: Mapping[str, Block], strengths: Sequence[float] = STRENGTHS) -> None:
        self.blocks, self.strengths = dict(blocks), tuple(strengths)
        self._fitted: dict[tuple[frozenset[str], int], Ridge] = {}
        self._pooled: tuple[frozenset[str], Moments] | None = None

    def ridge(self, names: Collection[str], index: int) -> Ridge:
        """Return the regression fitted to the blocks of these names, with the strength at an index."""
        key = frozenset(names), index
        if key not in self._fitted:
            self._fitted[key] = fit(self._moments_of(key[0]), self.strengths[index])
        return self._fitted[key]

    def _moments_of(self, names: frozenset[str]) -> Moments:
        """Return the moments of some blocks, and keep those of the last call: they are large."""
        if self._pooled is None or self._pooled[0] != names:
            moments = [self.blocks[name].moments for name in sorted(names)]
            self._pooled = names, pooled_moments(moments)
        return self._pooled[1]

    def choose(self, names: Collection[str]) -> int:
        """Return the index of the strength that is best for blocks left out.

        Each named block is predicted by regressions on the other named ones, and the mean SRCC decides; the
        blocks that are not named have no say.
        """
        agreements = []
        for held_out in sorted(names):
            block, others = self.blocks[held_out], set(names) - {held_out}
            ridges = [self.ridge(others, index) for index in range(len(self.strengths))]
            agreements.append([srcc(ridge.predict(block.x), block.y) for ridge in ridges])
        return int(np.argmax(np.mean(agreements, axis=0)))

    def best(self, names: Collection[str]) -> Ridge:
        """Return the regression on these blocks with the strength that `choose` returns."""
        return self.ridge(names, self.choose(names))


def folds_of(groups: Sequence[str], count: int) -> np.ndarray:
    """Return the fold of each image, (n,) int: equal groups share one, and the groups are dealt out in turn.

    >>> folds_of(["a", "b", "a", "c"], 2).tolist()
    [0, 1, 0, 0]
    """
    order = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    return np.array([order[group] % count for group in groups])


def split(block: Block, folds: np.ndarray) -> dict[str, Block]:
    """Return the parts of a block by the number of their fold, as text."""
    return {str(fold): Block(block.x[folds == fold], block.y[folds == fold]) for fold in np.unique(folds)}
