"""Ridge regressions whose strength is chosen by leaving blocks out, see `qmamba.train.ridge`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from qmamba.metrics import srcc
from qmamba.train.ridge import Block, Moments, Ridge, fit, pooled_moments

STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # over features of unit variance


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
