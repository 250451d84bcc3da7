"""Which items a step sees: epochs are shuffled wholes, a function of seed and position alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@lru_cache(maxsize=16)
def permutation(count: int, seed: int, epoch: int, stream: int = 0) -> Tensor:
    """Return the order of ``count`` items in an epoch, (count,) int64; streams are independent."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch + stream * 7_919_777_773)
    return torch.randperm(count, generator=generator)


def epoch_indices(count: int, seed: int, first: int, number: int, stream: int = 0) -> list[int]:
    """Return ``number`` indices from position ``first`` of a sequence of shuffled epochs.

    Every item comes once before any comes again.

    >>> sorted(epoch_indices(3, seed=0, first=0, number=3))
    [0, 1, 2]
    """
    return [
        int(permutation(count, seed, position // count, stream)[position % count])
        for position in range(first, first + number)
    ]


def drawn(items: Sequence[T], count: int, seed: int) -> list[T]:
    """Return at most ``count`` items at random, none twice.

    >>> sorted(drawn("ab", 3, seed=0))
    ['a', 'b']
    """
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed))
    return [items[i] for i in order[:count].tolist()]


@lru_cache(maxsize=2)
def mixed_epoch(
    sizes: tuple[int, ...], counts: tuple[int, ...], seed: int, epoch: int
) -> list[tuple[int, int]]:
    """Return an epoch over several sets, shuffled: pairs of a set and an item of it.

    Args:
        sizes: items of each set.
        counts: how many items of each set are in an epoch, whatever its size. Where an epoch does not hold
            all items of a set, or holds some more often, they take turns over the epochs.
        seed: of the order.
        epoch: zero-based.
    """
    pairs = [
        (which, item)
        for which, (size, count) in enumerate(zip(sizes, counts, strict=True))
        for item in epoch_indices(size, seed, epoch * count, count, stream=1 + which)
    ]
    return [pairs[i] for i in permutation(len(pairs), seed, epoch).tolist()]
