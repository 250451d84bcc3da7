"""Ridge regression over blocks of images that count equally, its strength chosen by leaving blocks out."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.linalg import solve

from qmamba.metrics import srcc

STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # over features of unit variance


class Moments(NamedTuple):
    """Means over the images of a block.

    Attributes:
        x: (D,) features.
        xx: (D, D) products of two features.
        y: targets.
        xy: (D,) products of a feature and the target.
    """

    x: np.ndarray
    xx: np.ndarray
    y: float
    xy: np.ndarray


class Ridge(NamedTuple):
    """A fitted ridge regression.

    Attributes:
        mean, std: (D,) of the features that it was fitted to.
        weights: (D,) for features standardised with them.
        offset: prediction for the mean features.
    """

    mean: np.ndarray
    std: np.ndarray
    weights: np.ndarray
    offset: float

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return predictions (n,) float64 for features (n, D)."""
        scaled = self.weights / self.std
        prediction: np.ndarray = x @ scaled + (self.offset - self.mean @ scaled)
        return prediction


@dataclass(frozen=True)
class Block:
    """Images that are left out together: a domain, or a fold of one.

    Attributes:
        x: (n, D) features.
        y: (n,) targets, standardised within a domain.
    """

    x: np.ndarray
    y: np.ndarray

    @functools.cached_property
    def moments(self) -> Moments:
        """Means over the block's images, in float64."""
        x, n = self.x.astype(np.float64), len(self.y)
        return Moments(x.mean(axis=0), x.T @ x / n, float(self.y.mean()), x.T @ self.y / n)


def standardised(mos: np.ndarray) -> np.ndarray:
    """Return opinions with mean 0 and variance 1."""
    return (mos - mos.mean()) / mos.std()


def pooled_moments(blocks: Sequence[Moments]) -> Moments:
    """Return the moments of blocks that count equally, whatever their sizes."""
    x, xx, y, xy = (sum(parts) / len(blocks) for parts in zip(*blocks, strict=True))
    return Moments(x, xx, float(y), xy)


class Equations(NamedTuple):
    """What ridge regressions of any strength on the same images are solved from.

    Attributes:
        mean, std: (D,) of the features.
        correlation: (D, D) of the features.
        target: (D,) means of a standardised feature times the target.
        offset: mean target.
    """

    mean: np.ndarray
    std: np.ndarray
    correlation: np.ndarray
    target: np.ndarray
    offset: float


def equations(moments: Moments) -> Equations:
    """Return the equations of images with these moments."""
    covariance = moments.xx - np.outer(moments.x, moments.x)
    std = np.sqrt(np.maximum(np.diagonal(covariance), 0)) + 1e-6
    target = (moments.xy - moments.x * moments.y) / std
    return Equations(moments.x, std, covariance / np.outer(std, std), target, moments.y)


def fit(found: Equations, strength: float) -> Ridge:
    """Return the ridge regression of a strength.

    With z the features at mean 0 and variance 1, it minimises E[(y - E y - w·z)²] + strength · |w|².
    """
    system = found.correlation + strength * np.eye(len(found.std))
    weights = solve(system, found.target, assume_a="pos", overwrite_a=True)
    return Ridge(found.mean, found.std, weights, found.offset)


class LeaveOut:
    """Ridge regressions fitted to some of several blocks.

    Args:
        blocks: by name.
        strengths: to choose from.
    """

    def __init__(self, blocks: Mapping[str, Block], strengths: Sequence[float] = STRENGTHS) -> None:
        self.blocks, self.strengths = dict(blocks), tuple(strengths)
        self._fitted: dict[tuple[frozenset[str], int], Ridge] = {}
        self._equations: tuple[frozenset[str], Equations] | None = None

    def ridge(self, names: Collection[str], index: int) -> Ridge:
        """Return the regression fitted to the blocks of these names, with the strength at an index."""
        key = frozenset(names), index
        if key not in self._fitted:
            self._fitted[key] = fit(self._equations_of(key[0]), self.strengths[index])
        return self._fitted[key]

    def _equations_of(self, names: frozenset[str]) -> Equations:
        """Return the equations of some blocks, and keep those of the last call: they are large."""
        if self._equations is None or self._equations[0] != names:
            pooled = pooled_moments([self.blocks[name].moments for name in sorted(names)])
            self._equations = names, equations(pooled)
        return self._equations[1]

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
