"""Data sets under one root, as experiments use them: one scale and direction, folds, random crops."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from ...checkpoints.safetensors_file import replace_file
from ...data import DATASETS, Rated, read_dataset, read_manifest
from ...data.splitting import make_splits
from ...errors import DataSetError, RecipeError
from ...images import as_bytes, decode
from ...images.resizing import resize, unit
from ..batches import random_crop
from ..folds import by_fold
from ..sampling import mixed_epoch
from .recipe import OWN, PaperRecipe

SIZES: dict[str, Any] = {"koniq10k": [384, 512], "flive": 384, "spaq": 384}
"""Size that images of a set are resized to in common practice: height and width, or the shorter side."""

SMALL = 5000  # training images up to which a batch has 32 crops, and 128 beyond


def missing(name: str, root: Path) -> str | None:
    """Return what a set lacks below the root, None where it is complete.

    A set of ``qmamba data list`` is the folder of its name; a file of that name with ``.csv`` beside it
    stands in for its label files. Any other name is that of a manifest, ``name.csv``.
    """
    if name in DATASETS:
        return None if (root / name).is_dir() else f"no {root / name}"
    return None if (root / f"{name}.csv").is_file() else f"no {root / name}.csv"


def read_set(name: str, root: Path) -> list[Rated]:
    """Read the rated images of a set; :func:`missing` says where they lie.

    Raises:
        DataSetError: it is absent, or not laid out as expected.
    """
    if lack := missing(name, root):
        raise DataSetError(f"the set {name!r} is absent: {lack}; make a folder or a link of that name")
    listed = root / f"{name}.csv"
    if name not in DATASETS:
        return read_manifest(listed)
    return read_dataset(name, root / name, manifest=listed if listed.is_file() else None)


@dataclass(frozen=True)
class RatedSet:
    """A set in one split.

    Attributes:
        name: of the set.
        split: name of the split, such as ``deiqt-0-03``.
        folds: images by fold, "train", "test" and perhaps "val"; MOS scaled to [0, 1], higher is better.
        size: size that images are resized to before they are cropped: the shorter side, or height and width;
            0 for their own size.
        interpolation: of that resizing, "bilinear" or "bicubic".
        cache: folder for resized images; None for none.
    """

    name: str
    split: str
    folds: Mapping[str, Sequence[Rated]]
    size: Any = 0
    interpolation: str = "bilinear"
    cache: Path | None = None

    def pixels(self, rated: Rated) -> Tensor:
        """Return one of its images, resized, (3, H, W) uint8.

        Raises:
            ImageError: it cannot be decoded.
            RecipeError: the size is not a size.
        """
        if self.cache is None or self.size == 0:
            return sized(rated.path, self.size, self.interpolation)
        about = rated.path.stat() if rated.path.is_file() else None
        key = f"{rated.path.resolve()} {about and (about.st_mtime_ns, about.st_size)} {self.size}"
        key += "" if self.interpolation == "bilinear" else f" {self.interpolation}"
        place = self.cache / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
        if not place.is_file():
            buffer = io.BytesIO()
            np.save(buffer, sized(rated.path, self.size, self.interpolation).numpy())
            self.cache.mkdir(parents=True, exist_ok=True)
            replace_file(place, buffer.getvalue())
        return torch.from_numpy(np.load(place, mmap_mode="c"))  # a crop reads its part only

    def hashes(self) -> dict[str, str]:
        """Return SHA-256 digests by which two people compare what they trained and tested on.

        Returns:
            ``split``, of file names, folds and MOS; ``images``, of file names and sizes in bytes, which
            differ between copies of a set.
        """
        rated = [(fold, r) for fold, images in self.folds.items() for r in images]
        split = (f"{r.path.name}\t{fold}\t{r.mos:.9g}" for fold, r in rated)
        files = sorted({(r.path.name, r.path.stat().st_size) for _, r in rated})
        images = (f"{name}\t{size}" for name, size in files)
        return {
            name: hashlib.sha256("\n".join(lines).encode()).hexdigest()
            for name, lines in (("split", split), ("images", images))
        }


def split_set(
    name: str,
    ratings: Sequence[Rated],
    recipe: PaperRecipe,
    index: int,
    *,
    held_out: float = 0.0,
    dry: bool = False,
    cache: Path | None = None,
) -> RatedSet:
    """Return a set in one of a recipe's splits.

    Args:
        ratings: what :func:`read_set` returned.
        index: of the split, zero-based.
        held_out: share of the training fold that becomes the fold "val", unless the set has one.
        dry: use only two images, in all folds.
        cache: see :class:`RatedSet`.

    Raises:
        DataSetError: a fold has too few images.
    """
    size = {**SIZES, **recipe.sizes}.get(name, 0)
    interpolation = recipe.interpolation.get(name, "bilinear")
    if dry:
        ends = [min(ratings, key=lambda r: r.mos), max(ratings, key=lambda r: r.mos)]
        names = ("train", "val", "test") if held_out else ("train", "test")
        folds = dict.fromkeys(names, _unit(name, ends, ends))
        return RatedSet(name, "dry run", folds, size, interpolation, cache)
    if recipe.convention == OWN and any(r.fold for r in ratings):
        label, rated = f"own-{index:02d}", list(ratings)
    else:
        convention = "deiqt" if recipe.convention == OWN else recipe.convention
        usual = DATASETS[name].split_by if name in DATASETS else None
        chosen: Any = recipe.split_by.get(name)
        split = make_splits(ratings, convention, count=index + 1, by=chosen or usual)[index]
        label, rated = split.name + (f"-by-{chosen}" if chosen else ""), split.of(ratings)
        if held_out:
            rated = hold_out(rated, held_out, split.by == "reference", index)
    folds = by_fold(rated)
    for fold in ("train", "test"):
        if len(folds[fold]) < 2:
            raise DataSetError(f"{name}: two images or more are needed in the fold {fold!r} of {label}")
    scaled = {fold: _unit(name, images, folds["train"]) for fold, images in folds.items()}
    return RatedSet(name, label, scaled, size, interpolation, cache)


def hold_out(rated: Sequence[Rated], share: float, by_reference: bool, seed: int) -> list[Rated]:
    """Move a share of the fold "train" to the fold "val", whole references at a time or single images."""
    trained = [(i, r) for i, r in enumerate(rated) if r.fold == "train"]
    keys = {i: r.reference if by_reference else f"{i:09d}" for i, r in trained}
    units = sorted(set(keys.values()))
    random.Random(seed).shuffle(units)
    held = set(units[: max(1, round(share * len(units)))])
    return [replace(r, fold="val") if keys.get(i) in held else r for i, r in enumerate(rated)]


def _unit(name: str, images: Sequence[Rated], train: Sequence[Rated]) -> list[Rated]:
    """Scale MOS to [0, 1] by the set's nominal scale, or else by the range of the training images."""
    scale = train[0].scale or (min(r.mos for r in train), max(r.mos for r in train))
    low, high = scale
    if not low < high:
        raise DataSetError(f"{name}: all training images have the MOS {low:g}, so nothing can be learnt")
    return [replace(r, mos=(r.mos - low) / (high - low), scale=(0.0, 1.0)) for r in images]


def sized(path: Path, size: Any, interpolation: str = "bilinear") -> Tensor:
    """Decode an image and resize it to a shorter side, or to a height and width: (3, H, W) uint8.

    Shrinking is antialiased.

    Args:
        path: image file; its EXIF orientation is applied.
        size: the shorter side, or height and width, in pixels; 0 for the image's own size.
        interpolation: "bilinear" or "bicubic".

    Raises:
        ImageError: it cannot be decoded.
        RecipeError: the size is not a size.
    """
    image = decode(path)
    height, width = image.shape[1:]
    if isinstance(size, (list, tuple)) and len(size) == 2 and all(type(side) is int for side in size):
        height, width = size
    elif type(size) is int and size > 0:
        shorter = min(height, width)
        height, width = (max(1, round(side * size / shorter)) for side in (height, width))
    elif size != 0 or type(size) is not int:
        raise RecipeError(f"sizes must have the shorter side, or [height, width], of each set, got {size!r}")
    if interpolation == "bilinear" or (height, width) == image.shape[1:]:
        return as_bytes(resize(image, height, width))
    resized = F.interpolate(
        unit(image)[None], size=(height, width), mode="bicubic", align_corners=False, antialias=True
    )
    return as_bytes(resized[0].clamp(0, 1))  # cubic interpolation overshoots at edges


class Crops(Dataset[tuple[Tensor, float]]):
    """All crops of a training, in the order in which they are learnt; each depends on its index alone.

    An epoch has ``crops`` crops of every image, times the weight of its set, shuffled, except for what fills
    no batch. Where a weight is not a whole number, images take turns over the epochs.

    Args:
        sets: sets whose training folds are learnt.
        recipe: crops, weights, batch, epochs.
        seed: of order, positions and flips.

    Attributes:
        batch: crops per step.
        epoch_steps: steps per epoch.
        steps: of the whole training.
    """

    def __init__(self, sets: Sequence[RatedSet], recipe: PaperRecipe, seed: int) -> None:
        self.sets, self.recipe, self.seed = list(sets), recipe, seed
        self.images = [list(each.folds["train"]) for each in sets]
        self.counts = [
            max(1, round(recipe.crops * recipe.weights.get(each.name, 1.0) * len(images)))
            for each, images in zip(sets, self.images, strict=True)
        ]
        total, wanted = sum(self.counts), recipe.batch
        if wanted is None:
            wanted = 32 if sum(map(len, self.images)) <= SMALL else 128
        parts = recipe.accumulate
        self.batch = min(wanted, total) // parts * parts
        if self.batch < 2 * parts:
            raise RecipeError(f"{total} crops an epoch are too few for a batch of {wanted} in {parts} parts")
        self.epoch_steps = total // self.batch
        self.steps = recipe.epochs * self.epoch_steps

    def __len__(self) -> int:
        return self.steps * self.batch

    def __getitem__(self, index: int) -> tuple[Tensor, float]:
        """Return a crop (3, S, S) uint8 and its image's MOS in [0, 1]."""
        epoch, within = divmod(index, self.epoch_steps * self.batch)
        sizes = tuple(map(len, self.images))
        which, item = mixed_epoch(sizes, tuple(self.counts), self.seed, epoch)[within]
        rated = self.images[which][item]
        g = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        crop = random_crop(self.sets[which].pixels(rated), self.recipe.crop, (), g)
        if self.recipe.vertical_flip and bool(torch.randint(2, (1,), generator=g)):
            crop = crop.flip(1)
        return crop, rated.mos
