"""Batches of pretraining: packed crops, distorted and varied copies, crops of rated sets.

A batch is a function of (seed, step, rank), so a resumed run gets the batches it would have had.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.distortions import DISTORTIONS, KADID_KINDS, KadidScale, kadid_quality
from ..data.photos import Shards
from .recipe import PretrainRecipe
from .sampling import epoch_indices
from .variations import sensor_noise, varied

KINDS = tuple(DISTORTIONS)
CLEAN = len(KINDS)
DEGRADING = {i for i, distortion in enumerate(DISTORTIONS.values()) if distortion.degrades}
CLEAN_QUALITY = 4.6  # what KADID-10k's undistorted photographs get, of 1 to 5
STRENGTHS = (0.15, 1.5)  # of sensor noise
SCALE = KadidScale(stretch=False)  # crops span only a part of a photograph's values


@dataclass(frozen=True)
class PretrainBatch:
    """The part of a step that one process computes.

    Attributes:
        crops: (n + t + r, 3, S, S) uint8: n crops as packed, t distorted copies, and r crops of rated sets.
        kinds: (n + t + r,) int64, indices in :data:`KINDS`, :data:`CLEAN` for none, -1 for rated and for
            varied crops: theirs are unknown.
        quality: (n + t + r,) float32 from 1 to 5, NaN where it is unknown.
        worse: (w,) int64, indices of copies that can only be worse than their originals.
        better: (w,) int64, indices of these originals.
        mos: (r,) float32 opinion scores of the last crops, in the units of their sets.
        sets: (r,) int64, indices of their sets.
    """

    crops: Tensor
    kinds: Tensor
    quality: Tensor
    worse: Tensor
    better: Tensor
    mos: Tensor
    sets: Tensor


def make_pretrain_batch(
    shards: Shards, recipe: PretrainRecipe, step: int, rank: int = 0, ranks: int = 1
) -> PretrainBatch:
    """Return every ``ranks``-th crop of a step, cut to the phase's size, flipped, and distorted copies."""
    rng = np.random.default_rng((recipe.seed, step, rank))
    indices = epoch_indices(len(shards), recipe.seed, step * recipe.crops, recipe.crops)[rank::ranks]
    size = recipe.phase_at(step).crop
    crops = [random_cut(shards[i], size, rng) for i in indices]
    clean = np.isnan(shards.mos[indices])
    kinds = np.where(clean, CLEAN, -1).tolist()
    quality = np.where(clean, CLEAN_QUALITY, np.nan).tolist()
    pairs: list[tuple[int, int]] = []  # of a worse copy and its original
    for i in rng.permutation(np.flatnonzero(clean))[: recipe.damaged // ranks]:
        noisy = rng.random() < recipe.noisy
        copy, kind, rated = _noisy(crops[i], rng) if noisy else _damaged(crops[i], recipe.kadid, rng)
        if noisy or kind in DEGRADING:
            pairs.append((len(crops), i))
        crops.append(copy)
        kinds.append(kind)
        quality.append(rated)
    originals, kept = crops[: len(indices)], {i for _, i in pairs}
    for i in np.flatnonzero(rng.random(len(indices)) < recipe.varied):
        if i in kept:
            continue
        crops[i] = varied(originals[i], originals[int(rng.integers(len(originals)))], rng)
        kinds[i], quality[i] = -1, float("nan")
    rated_crops = rated_indices(shards, recipe, step)[rank::ranks]
    crops += [random_cut(shards[i], size, rng) for i in rated_crops]
    unknown = len(crops) - len(kinds)
    worse, better = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    return PretrainBatch(
        torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous(),
        torch.tensor(kinds + [-1] * unknown),
        torch.tensor(quality + [float("nan")] * unknown, dtype=torch.float32),
        worse,
        better,
        torch.from_numpy(shards.mos[rated_crops]),
        torch.from_numpy(shards.sets[rated_crops].astype(np.int64)),
    )


def rated_indices(shards: Shards, recipe: PretrainRecipe, step: int) -> list[int]:
    """Return the indices of a step's rated crops: the same number from each set, whatever its size.

    All crops of a set are used, in a random order, before one is repeated.
    """
    found: list[int] = []
    for index in range(int(shards.sets.max()) + 1 if recipe.rated else 0):
        members = np.flatnonzero(shards.sets == index)
        drawn = epoch_indices(len(members), recipe.seed, step * recipe.rated, recipe.rated, stream=1 + index)
        found += members[drawn].tolist()
    return found


def _damaged(crop: np.ndarray, share: float, rng: np.random.Generator) -> tuple[np.ndarray, int, float]:
    """A copy of a crop, distorted, its kind, and its quality of 1 to 5, NaN on the library's own levels.

    Of the kinds that KADID-10k has, ``share`` are on its levels; the others look different at ours.
    """
    kind, seed = int(rng.integers(len(KINDS))), int(rng.integers(2**31))
    name = KINDS[kind]
    if name in KADID_KINDS and rng.random() < share:
        level = float(rng.uniform(1, 5))
        return DISTORTIONS[name](crop, level, seed=seed, scale=SCALE), kind, kadid_quality(name, level).mean
    return DISTORTIONS[name](crop, int(rng.integers(1, 6)), seed=seed), kind, float("nan")


def _noisy(crop: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, int, float]:
    """A copy of a crop with a camera's noise; its kind and its quality are unknown."""
    strength = float(np.exp(rng.uniform(*np.log(STRENGTHS))))
    return sensor_noise(crop, strength, rng), -1, float("nan")


def random_cut(crop: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    top, left = rng.integers(crop.shape[0] - size + 1), rng.integers(crop.shape[1] - size + 1)
    cut = crop[top : top + size, left : left + size]
    return np.ascontiguousarray(cut[:, ::-1] if rng.integers(2) else cut)
