"""Batches: which photographs, which crops, which degraded copies.

A batch is a function of (seed, step, rank), so an interrupted run goes on with the batches it would have had.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..data import DEGRADATIONS, Rated, degrade
from ..images import decode
from ..protocol import fit_side
from .recipe import Recipe


@dataclass(frozen=True)
class Batch:
    """What one process computes in one step.

    Attributes:
        crops: (n + 2t, 3, S, S) uint8: n rated crops, then t mildly and t strongly degraded copies.
        mos: (n,) float32 of the rated crops.
        originals: (t,) int64, which rated crop each degraded pair was made from.
        levels: (2, t) float32, levels of the mild and the strong copy.
    """

    crops: Tensor
    mos: Tensor
    originals: Tensor
    levels: Tensor


@lru_cache(maxsize=4)
def _epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


def choose(count: int, recipe: Recipe, step: int) -> list[int]:
    """Indices of a step's photographs: epochs are shuffled wholes, one after the other."""
    first = step * recipe.images
    places = range(first, first + recipe.images)
    return [int(_epoch_order(count, recipe.seed, p // count)[p % count]) for p in places]


def make_batch(ratings: Sequence[Rated], recipe: Recipe, step: int, rank: int = 0, ranks: int = 1) -> Batch:
    """Every ``ranks``-th photograph of a step, decoded, cropped, flipped, and some of them degraded.

    Raises:
        ImageError: a photograph cannot be decoded; the message names it.
    """
    g = torch.Generator().manual_seed((recipe.seed * 1_000_003 + step) * 64 + rank)
    mine = [ratings[i] for i in choose(len(ratings), recipe, step)[rank::ranks]]
    crop = recipe.phase_at(step).crop
    crops = [_random_crop(decode(r.path), crop, g) for r in mine]
    mos = torch.tensor([r.mos for r in mine])

    # Degrading a photograph that is bad already changes little: the best of the batch teach the order.
    ranked = mos.argsort(descending=True)[: recipe.ranked // ranks]
    copies: list[list[Tensor]] = [[], []]
    levels = torch.empty(2, len(ranked))
    for t, i in enumerate(ranked.tolist()):
        kind = list(DEGRADATIONS)[_draw(len(DEGRADATIONS), g)]
        mild = 1 + _draw(4, g)
        strong = mild + 1 + _draw(5 - mild, g)
        levels[0, t], levels[1, t] = mild, strong
        for row, level in zip(copies, (mild, strong), strict=True):
            row.append(degrade(crops[i], kind, level, seed=_draw(2**31, g)))
    return Batch(torch.stack([*crops, *copies[0], *copies[1]]), mos, ranked, levels)


def prefetch(
    ratings: Sequence[Rated], recipe: Recipe, first: int, rank: int = 0, ranks: int = 1
) -> Iterator[Batch]:
    """Batches from step ``first`` to the recipe's last, made in a thread while the last one is used."""
    if first >= recipe.steps:
        return
    with ThreadPoolExecutor(1, thread_name_prefix="qmamba-batches") as pool:
        ahead = pool.submit(make_batch, ratings, recipe, first, rank, ranks)
        for step in range(first + 1, recipe.steps):
            batch, ahead = ahead.result(), pool.submit(make_batch, ratings, recipe, step, rank, ranks)
            yield batch
        yield ahead.result()


def _draw(below: int, g: torch.Generator) -> int:
    return int(torch.randint(below, (1,), generator=g))


def _random_crop(image: Tensor, size: int, g: torch.Generator) -> Tensor:
    if image.dtype != torch.uint8:
        image = (image * 255).round().byte()
    if min(image.shape[1:]) < size:
        image = (fit_side(image, size) * 255).round().byte()
    top, left = _draw(image.shape[1] - size + 1, g), _draw(image.shape[2] - size + 1, g)
    crop = image[:, top : top + size, left : left + size]
    return (crop.flip(2) if _draw(2, g) else crop).contiguous()
