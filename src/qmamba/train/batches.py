"""Batches: which photographs, which views of them, which distorted copies.

A batch is a function of (seed, step, rank), so a resumed run gets the batches it would have had.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data import DISTORTIONS, Rated
from ..images import as_bytes, decode
from ..images.resizing import resize
from .rated_sets import by_set, mixed_choice
from .recipe import Recipe
from .sampling import epoch_indices
from .variations import sensor_noise

# The 17 that only degrade; the most common ones in photographs are drawn more often.
DRAWN = (
    *(name for name, distortion in DISTORTIONS.items() if distortion.degrades),
    *("jpeg", "jpeg2000", "gaussian_blur", "white_noise") * 2,
)
SENSOR = "sensor_noise"
SENSOR_STRENGTHS = (0.3, 0.55, 1.0, 1.75, 3.0)  # by level


@dataclass(frozen=True)
class Batch:
    """The part of a step that one process computes.

    Attributes:
        crops: (n + 2t, 3, S, S) uint8: n rated views, then t mildly and t strongly distorted copies.
        mos: (n,) float32 of the rated crops.
        originals: (t,) int64, which rated view each distorted pair was made from.
        levels: (2, t) float32, levels of the mild and the strong copy.
    """

    crops: Tensor
    mos: Tensor
    originals: Tensor
    levels: Tensor


def choose(ratings: Sequence[Rated], recipe: Recipe, step: int) -> list[Rated]:
    """Return a step's photographs."""
    if recipe.sets:
        return mixed_choice(by_set(ratings, tuple(recipe.sets)), recipe.sets, recipe.seed, step)
    indices = epoch_indices(len(ratings), recipe.seed, step * recipe.images, recipe.images)
    return [ratings[index] for index in indices]


def make_batch(ratings: Sequence[Rated], recipe: Recipe, step: int, rank: int = 0, ranks: int = 1) -> Batch:
    """Return every ``ranks``-th photograph of a step, decoded, cropped or shrunk, flipped, some distorted.

    Raises:
        ImageError: a photograph cannot be decoded; the message names it.
    """
    g = torch.Generator().manual_seed((recipe.seed * 1_000_003 + step) * 64 + rank)
    mine = choose(ratings, recipe, step)[rank::ranks]
    size = recipe.phase_at(step).crop
    mos = torch.tensor([r.mos for r in mine])

    # Distorting a bad photograph changes little: the best of the batch teach the order.
    ranked = mos.argsort(descending=True)[: recipe.ranked // ranks]
    pairs = {i: t for t, i in enumerate(ranked.tolist())}
    crops: list[Tensor] = []
    copies = torch.empty(2, len(ranked), 3, size, size, dtype=torch.uint8)
    levels = torch.empty(2, len(ranked))
    for i, r in enumerate(mine):
        image = decode(r.path)
        view = _random_view(image, size, recipe.sides, g)
        if i not in pairs:
            crops.append(_shown(_square(image, view, view.scale), view))
            continue
        square = _square(image, view, _between(view.scale, g))
        crops.append(_shown(square, view))
        name, seed = DRAWN[_draw(len(DRAWN), g)], _draw(2**31, g)
        if recipe.noisy and float(torch.rand((), generator=g)) < recipe.noisy:
            name = SENSOR
        mild = 1 + _draw(4, g)
        for row, level in enumerate((mild, mild + 1 + _draw(5 - mild, g))):
            pixels = square.permute(1, 2, 0).contiguous().numpy()
            distorted = torch.from_numpy(_distorted(pixels, name, level, seed)).permute(2, 0, 1)
            copies[row, pairs[i]], levels[row, pairs[i]] = _shown(distorted, view), level
    return Batch(torch.cat([torch.stack(crops), *copies]), mos, ranked, levels)


def _distorted(pixels: np.ndarray, name: str, level: int, seed: int) -> np.ndarray:
    """Return a copy of pixels (S, S, 3) uint8."""
    if name == SENSOR:
        return sensor_noise(pixels, SENSOR_STRENGTHS[level - 1], np.random.default_rng(seed))
    return DISTORTIONS[name](pixels, level, seed=seed)


def _draw(below: int, g: torch.Generator) -> int:
    return int(torch.randint(below, (1,), generator=g))


class View(NamedTuple):
    """A square of ``size`` pixels, its corner at (``top``, ``left``) of the photograph at ``scale``."""

    scale: float
    size: int
    top: int
    left: int
    flipped: bool


def random_crop(image: Tensor, size: int, sides: Sequence[int], g: torch.Generator) -> Tensor:
    """Return a random square (3, size, size) uint8 of a photograph (3, H, W), mirrored half of the time."""
    view = _random_view(image, size, sides, g)
    return _shown(_square(image, view, view.scale), view)


def _random_view(image: Tensor, size: int, sides: Sequence[int], g: torch.Generator) -> View:
    """Draw a square of the photograph (3, H, W) at its own size, or with sides at a random scale.

    Scales range from one at which the square is all of it to that of the largest side.
    """
    height, width = image.shape[1:]
    least, scale = size / min(height, width), 1.0
    if sides:
        most = max(least, max(sides) / math.sqrt(height * width))
        scale = least + (most - least) * float(torch.rand((), generator=g))
    scale = max(scale, least)
    top, left = (_draw(max(size, round(side * scale)) - size + 1, g) for side in (height, width))
    return View(scale, size, top, left, bool(_draw(2, g)))


def _between(scale: float, g: torch.Generator) -> float:
    """Draw a scale between that of a view and the photograph's own.

    Users' photographs are distorted at their own size and shrunk by the protocol; but these photographs have
    been through JPEG at their own size, and are clean only once they are shrunk.
    """
    return scale + (max(scale, 1.0) - scale) * float(torch.rand((), generator=g))


def _square(image: Tensor, view: View, scale: float) -> Tensor:
    """Return what a view shows of a photograph (3, H, W), at a given scale: (3, S, S) uint8."""
    size = round(view.size * scale / view.scale)
    height, width = (max(size, round(side * scale)) for side in image.shape[1:])
    scaled = as_bytes(resize(image, height, width))
    top, left = (round(place * scale / view.scale) for place in (view.top, view.left))
    top, left = min(top, height - size), min(left, width - size)
    return scaled[:, top : top + size, left : left + size]


def _shown(square: Tensor, view: View) -> Tensor:
    """Return a square (3, S, S) as the network sees it: (3, size, size) uint8, flipped or not."""
    shown = as_bytes(resize(square, view.size, view.size))
    return (shown.flip(2) if view.flipped else shown).contiguous()
