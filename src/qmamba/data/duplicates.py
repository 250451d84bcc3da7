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

from ..errors import RecipeError
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


class Alike(NamedTuple):
    """What a search for duplicates has found.

    Attributes:
        pairs: that look alike, nearest first.
        broken: indices of images that cannot be opened, and why.
    """

    pairs: list[Duplicate]
    broken: dict[int, str]


def find_duplicates(
    ratings: Sequence[Rated],
    *,
    distance: int = DISTANCE,
    across_folds: bool = False,
    workers: int | None = None,
    done: Callable[[], object] | None = None,
) -> Alike:
    """Find pairs of near-duplicate photographs, nearest first.

    Args:
        ratings: photographs, each opened once; their scores are not used.
        distance: maximum number of differing bits, of 64.
        across_folds: find pairs in different folds, which is what leaks into a test, whatever their
            references. Otherwise any pair except those of one reference, which look alike by design.
        workers: number of threads; by default one per CPU core.
        done: called after each photograph.

    Returns:
        The pairs, and the photographs that cannot be opened, which are passed over.

    Raises:
        RecipeError: the library ImageHash is not installed.
    """
    hashes: list[int] = []
    places: list[int] = []
    broken: dict[int, str] = {}
    for i, found in enumerate(in_threads(_hasher(), [r.path for r in ratings], workers)):
        if isinstance(found, str):
            broken[i] = found
        else:
            hashes.append(found)
            places.append(i)
        if done is not None:
            done()
    pairs = []
    for near in near_pairs(np.array(hashes, np.uint64), distance):
        pair = Duplicate(places[near.first], places[near.second], near.distance)
        a, b = ratings[pair.first], ratings[pair.second]
        if a.fold != b.fold if across_folds else not a.reference or a.reference != b.reference:
            pairs.append(pair)
    return Alike(sorted(pairs, key=lambda pair: (pair.distance, pair.first, pair.second)), broken)


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


def _hasher() -> Callable[[Path], int | str]:
    """Return a function from a file to its hash, or to the reason why it cannot be opened."""
    try:
        from imagehash import phash
    except ImportError as error:
        raise RecipeError('finding duplicates needs ImageHash: pip install "qmamba[data]"') from error

    def hash_of(path: Path) -> int | str:
        try:
            with Image.open(path) as image:
                image.draft("L", (128, 128))  # decodes JPEG at a fraction of its size, which suffices
                bits = phash(ImageOps.exif_transpose(image)).hash
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return " ".join(str(error).split()) or type(error).__name__
        return int.from_bytes(np.packbits(bits.ravel()).tobytes(), "big")

    return hash_of
