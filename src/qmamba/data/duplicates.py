"""Find near-duplicate photographs by the perceptual hash of the library ImageHash.

The 64-bit hash describes a photograph at 32 × 32 pixels: resized, compressed or slightly retouched copies
have nearly the same hash; mirrored or heavily cropped ones do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from ..errors import DataSetError, RecipeError
from .checking import in_threads
from .ratings import Rated

DISTANCE = 8  # of 64 bits; hashes of unrelated photographs differ in about 32
BLOCK = 128  # rows compared at a time: 80 MB for 40,000 photographs
_BITS = np.array([bin(i).count("1") for i in range(1 << 16)], np.uint8)  # numpy.bitwise_count needs NumPy 2


class Duplicate(NamedTuple):
    """Two similar photographs: their indices in the list, and the number of differing bits of 64."""

    first: int
    second: int
    distance: int


def find_duplicates(
    ratings: Sequence[Rated],
    *,
    distance: int = DISTANCE,
    across_folds: bool = False,
    workers: int | None = None,
    done: Callable[[], object] | None = None,
) -> list[Duplicate]:
    """Return pairs of near-duplicate photographs, nearest first.

    Args:
        ratings: photographs, each opened once.
        distance: maximum number of differing bits, of 64.
        across_folds: whether to return only pairs in different folds, which leak into a test, whatever their
            references. Otherwise all pairs except those of one reference, which look alike by design.
        workers: number of threads; by default one per CPU.
        done: called after each photograph.

    Raises:
        RecipeError: the library ImageHash is not installed.
        DataSetError: a photograph cannot be opened.
    """
    hashes = np.zeros(len(ratings), np.uint64)
    for i, found in enumerate(in_threads(_hasher(), [r.path for r in ratings], workers)):
        hashes[i] = found
        if done is not None:
            done()
    pairs = []
    for pair in near_pairs(hashes, distance):
        a, b = ratings[pair.first], ratings[pair.second]
        if a.fold != b.fold if across_folds else not a.reference or a.reference != b.reference:
            pairs.append(pair)
    return sorted(pairs, key=lambda pair: (pair.distance, pair.first, pair.second))


def near_pairs(hashes: np.ndarray, distance: int) -> list[Duplicate]:
    """Return the pairs of hashes (n,) uint64 that differ in at most ``distance`` bits.

    >>> near_pairs(np.array([0b0000, 0b0011, 0b1111], np.uint64), 2)
    [Duplicate(first=0, second=1, distance=2), Duplicate(first=1, second=2, distance=2)]
    """
    pairs = []
    for start in range(0, len(hashes), BLOCK):
        rows, columns = hashes[start : start + BLOCK, None], hashes[None, start:]
        differ = np.ascontiguousarray(rows ^ columns).view(np.uint16).reshape(len(rows), -1, 4)
        bits = _BITS[differ].sum(axis=2, dtype=np.uint8)
        for i, j in zip(*np.nonzero(bits <= distance), strict=True):
            if i < j:
                pairs.append(Duplicate(int(start + i), int(start + j), int(bits[i, j])))
    return pairs


def _hasher() -> Callable[[Path], int]:
    try:
        from imagehash import phash
    except ImportError as error:
        raise RecipeError('finding duplicates needs ImageHash: pip install "qmamba[data]"') from error

    def hash_of(path: Path) -> int:
        try:
            with Image.open(path) as image:
                image.draft("L", (128, 128))  # decodes JPEG at a fraction of its size, which suffices
                bits = phash(ImageOps.exif_transpose(image)).hash
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataSetError(f"{path} cannot be opened; `qmamba data check` lists such files") from error
        return int.from_bytes(np.packbits(bits.ravel()).tobytes(), "big")

    return hash_of
