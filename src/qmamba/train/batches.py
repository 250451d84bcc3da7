"""Batches: which photographs, which views of them, which damaged copies.

A batch is a function of (seed, step, rank), so an interrupted run goes on with the batches it would have had.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..data import DISTORTIONS, Rated
from ..images import decode
from ..protocol import resize
from .recipe import Recipe

DEGRADING = tuple(name for name, distortion in DISTORTIONS.items() if distortion.degrades)


@dataclass(frozen=True)
class Batch:
    """What one process computes in one step.

    Attributes:
        crops: (n + 2t, 3, S, S) uint8: n rated views, then t mildly and t strongly damaged copies.
        mos: (n,) float32 of the rated crops.
        originals: (t,) int64, which rated view each damaged pair was made from.
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
    """Every ``ranks``-th photograph of a step, decoded, cut or shrunk, flipped, and some of them damaged.

    Raises:
        ImageError: a photograph cannot be decoded; the message names it.
    """
    g = torch.Generator().manual_seed((recipe.seed * 1_000_003 + step) * 64 + rank)
    mine = [ratings[i] for i in choose(len(ratings), recipe, step)[rank::ranks]]
    crop = recipe.phase_at(step).crop
    crops = [_random_view(decode(r.path), crop, recipe, g) for r in mine]
    mos = torch.tensor([r.mos for r in mine])

    # Damaging a photograph that is bad already changes little: the best of the batch teach the order.
    ranked = mos.argsort(descending=True)[: recipe.ranked // ranks]
    copies: list[list[Tensor]] = [[], []]
    levels = torch.empty(2, len(ranked))
    for t, i in enumerate(ranked.tolist()):
        damage = DISTORTIONS[DEGRADING[_draw(len(DEGRADING), g)]]
        pixels, seed = crops[i].permute(1, 2, 0).contiguous().numpy(), _draw(2**31, g)
        mild = 1 + _draw(4, g)
        strong = mild + 1 + _draw(5 - mild, g)
        levels[0, t], levels[1, t] = mild, strong
        for row, level in zip(copies, (mild, strong), strict=True):
            row.append(torch.from_numpy(damage(pixels, level, seed=seed)).permute(2, 0, 1))
    return Batch(torch.stack([*crops, *copies[0], *copies[1]]), mos, ranked, levels)


def _draw(below: int, g: torch.Generator) -> int:
    return int(torch.randint(below, (1,), generator=g))


def _random_view(image: Tensor, size: int, recipe: Recipe, g: torch.Generator) -> Tensor:
    """(3, size, size) uint8: a crop of the photograph as it is, or, if the checkpoint's protocol has sides,
    of the photograph at a random size, from where the crop is all of it to the largest of the sides."""
    height, width = image.shape[1:]
    least, ratio = size / min(height, width), 1.0
    if recipe.sides:
        most = max(least, max(recipe.sides) / math.sqrt(height * width))
        ratio = least + (most - least) * float(torch.rand((), generator=g))
    ratio = max(ratio, least)
    scaled = resize(image, max(size, round(height * ratio)), max(size, round(width * ratio)))
    if scaled.dtype != torch.uint8:
        scaled = (scaled * 255).round().byte()
    top, left = _draw(scaled.shape[1] - size + 1, g), _draw(scaled.shape[2] - size + 1, g)
    view = scaled[:, top : top + size, left : left + size]
    return (view.flip(2) if _draw(2, g) else view).contiguous()
