"""Compare methods by their scores of the same images: means, paired bootstrap intervals, p-values.

`compare` takes scores; `compare_folders` scores the images of folders and pairs them by file name.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qmamba.errors import ArgumentError, ImageError
from qmamba.images.find import find_images, natural

if TYPE_CHECKING:
    from qmamba.scoring import Scorer

Array = npt.NDArray[np.float64]

RESAMPLES = 10_000
EXACT = 13  # images up to which all 2^n sign flips are computed: fewer than RESAMPLES
_BLOCK = 1 << 20  # numbers drawn at a time


@dataclasses.dataclass(frozen=True)
class Method:
    """One method of a comparison.

    Attributes:
        name: key of the scores, or name of the folder.
        mean: mean score.
        low, high: bootstrap interval of the mean.
        difference: mean of the paired differences from the method compared with; None for that method.
        difference_low, difference_high: paired bootstrap interval of the difference; None for that method.
        p_value: two-sided, of the hypothesis that the difference is 0; None for that method.
    """

    name: str
    mean: float
    low: float
    high: float
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p_value: float | None = None


@dataclasses.dataclass(frozen=True)
class Unmatched:
    """An image that not every folder has.

    Attributes:
        name: file name without its extension, below its folder.
        absent: names of the folders that lack it.
    """

    name: str
    absent: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class PairedComparison:
    """Methods compared by their scores of the same images.

    Attributes:
        against: name of the method that the others are compared with.
        images: number of images that every method has a score for.
        level: of the intervals, 0.95 unless asked otherwise.
        methods: in the order given.
        unmatched: images that were left out because not every folder has them.
        failed: path and error of each image that could not be scored; its name is left out in all folders.
    """

    against: str
    images: int
    level: float
    methods: tuple[Method, ...]
    unmatched: tuple[Unmatched, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, ready for JSON."""
        return dataclasses.asdict(self)


def compare(
    scores: Mapping[str, Any],
    *,
    against: str | None = None,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> PairedComparison:
    """Compare methods by their scores of the same n images.

    Intervals are percentile bootstrap intervals: images are drawn with replacement, the same draws for all
    methods (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). p-values are those of
    the paired permutation test, which flips the signs of differences (Fisher, The Design of Experiments,
    1935, section 21): all 2^n flips for up to 13 images, and otherwise `resamples` random ones, so that no
    p-value is below 1 / (resamples + 1). They are not corrected for the number of methods.

    Args:
        scores: (n,) numbers by the name of each method, of the same images in the same order, n ≥ 2.
        against: method that the others are compared with; the first by default.
        resamples: draws of the bootstrap and of the permutation test, at least 100.
        level: of the intervals, in (0, 1).
        seed: of the draws, 0 or more; equal seeds give equal results. The global random state is not used.

    Raises:
        ArgumentError: fewer than two methods or images, lengths that differ, numbers that are not finite, an
            unknown `against`, or an option out of its range.

    Examples:
        >>> found = compare({"bicubic": [0.4, 0.5, 0.6, 0.5], "mine": [0.5, 0.6, 0.6, 0.7]})
        >>> mine = found.methods[1]
        >>> round(mine.mean, 3), round(mine.difference, 3), mine.p_value
        (0.6, 0.1, 0.25)
    """
    table = _table(scores)
    against = _known(against, tuple(scores))
    if resamples < 100 or not 0 < level < 1 or seed < 0:
        raise ArgumentError(
            "a comparison needs resamples of at least 100, a level in (0, 1) and a seed of at least 0, got "
            f"resamples={resamples}, level={level} and seed={seed}"
        )
    differences = table - table[list(scores).index(against)]
    ends = [(1 - level) / 2, (1 + level) / 2]
    drawn = _resampled_means(np.concatenate([table, differences]), resamples, seed)
    lows, highs = np.quantile(drawn, ends, axis=1)
    methods = []
    for row, name in enumerate(scores):
        method = Method(name, float(table[row].mean()), float(lows[row]), float(highs[row]))
        if name != against:
            method = dataclasses.replace(
                method,
                difference=float(differences[row].mean()),
                difference_low=float(lows[len(table) + row]),
                difference_high=float(highs[len(table) + row]),
                p_value=permutation_p_value(differences[row], resamples=resamples, seed=seed),
            )
        methods.append(method)
    return PairedComparison(against, table.shape[1], level, tuple(methods))


def permutation_p_value(differences: Any, *, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Return the two-sided p-value of the paired permutation test for a mean difference of 0.

    Args:
        differences: (n,) paired differences.
        resamples: random sign flips, where there are more than 13 differences.
        seed: of the flips.

    Returns:
        The share of sign flips whose mean is at least as far from 0 as the given one, in (0, 1]. The given
        signs count among the random flips (Phipson and Smyth 2010).

    Examples:
        >>> permutation_p_value([0.1, 0.2, 0.3])  # of 8 flips, + + + and - - - are as far
        0.25
    """
    values = np.asarray(differences, dtype=np.float64)
    # Sums of the same numbers in another order of signs differ by rounding.
    least = abs(float(values.sum())) - 1e-12 * float(np.abs(values).sum())
    if values.size <= EXACT:
        flips = (np.arange(2**values.size)[:, None] >> np.arange(values.size)) & 1
        return float(np.mean(np.abs((1 - 2 * flips) @ values) >= least))
    generator, extreme = np.random.default_rng(seed), 0
    for count in _blocks(resamples, values.size):
        signs = 1 - 2 * generator.integers(0, 2, (count, values.size), dtype=np.int8)
        extreme += int((np.abs(signs @ values) >= least).sum())
    return (extreme + 1) / (resamples + 1)


def _resampled_means(rows: Array, resamples: int, seed: int) -> Array:
    """Return (rows, resamples) means of each row (n,) over images drawn with replacement."""
    generator, images = np.random.default_rng(seed), rows.shape[1]
    means, start = np.empty((len(rows), resamples)), 0
    for count in _blocks(resamples, images):
        draws = generator.integers(images, size=(count, images))
        for row, values in enumerate(rows):
            means[row, start : start + count] = values[draws].mean(axis=1)
        start += count
    return means


def _blocks(total: int, width: int) -> Iterator[int]:
    """Yield counts of draws of `width` numbers each that sum to `total`, so that memory stays bounded."""
    size = max(1, _BLOCK // width)
    yield from (min(size, total - start) for start in range(0, total, size))


def _table(scores: Mapping[str, Any]) -> Array:
    """Return scores as (methods, n) float64."""
    if len(scores) < 2:
        raise ArgumentError(f"a comparison needs the scores of at least two methods, got {len(scores)}")
    columns = {}
    for name, values in scores.items():
        try:
            columns[name] = np.array(values, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"the scores of {name} must be numbers: {error}") from error
        if columns[name].ndim != 1 or not np.isfinite(columns[name]).all():
            raise ArgumentError(f"the scores of {name} must be finite numbers in one dimension")
    sizes = {name: column.size for name, column in columns.items()}
    if len(set(sizes.values())) > 1:
        counts = ", ".join(f"{size} of {name}" for name, size in sizes.items())
        raise ArgumentError(f"scores must be of the same images, got {counts}")
    if min(sizes.values()) < 2:
        raise ArgumentError(f"a comparison needs at least two images, got {min(sizes.values())}")
    return np.stack(list(columns.values()))


def _known(against: str | None, names: Sequence[str]) -> str:
    if against is None:
        return names[0]
    if against not in names:
        raise ArgumentError(f"against must be one of {', '.join(names)}, got {against!r}")
    return against


# Folders


@dataclasses.dataclass(frozen=True)
class Pairing:
    """Images of several folders, paired by name.

    Attributes:
        names: of the images that every folder has, in natural order.
        files: for each name its file in each folder, in the order of the folders.
        unmatched: images that not every folder has.
    """

    names: tuple[str, ...]
    files: tuple[tuple[Path, ...], ...]
    unmatched: tuple[Unmatched, ...]


def pair_by_name(folders: Mapping[str, str | os.PathLike[str]], *, recursive: bool = False) -> Pairing:
    """Pair the images of folders by their file names without extensions, so that 1.png goes with 1.jpg.

    Args:
        folders: by the names that messages call them.
        recursive: whether sub-folders are searched; names then include them, as in day/1.

    Raises:
        ArgumentError: fewer than two folders, a path that is no folder, one that cannot be read, or two files
            of the same name.
    """
    if len(folders) < 2:
        raise ArgumentError(f"a comparison needs at least two folders, got {len(folders)}")
    found = {title: _by_name(Path(folder), recursive) for title, folder in folders.items()}
    every = sorted(set().union(*found.values()), key=lambda name: natural(Path(name)))
    absent = {name: tuple(title for title, files in found.items() if name not in files) for name in every}
    names = tuple(name for name in every if not absent[name])
    return Pairing(
        names,
        tuple(tuple(files[name] for files in found.values()) for name in names),
        tuple(Unmatched(name, titles) for name, titles in absent.items() if titles),
    )


def _by_name(folder: Path, recursive: bool) -> dict[str, Path]:
    if not folder.is_dir():
        raise ArgumentError(f"{folder}: not a folder; give folders of images to compare")
    found = find_images([str(folder)], recursive=recursive)
    if found.unreadable:
        raise ArgumentError(f"{found.unreadable[0]}: the folder cannot be read; check its permissions")
    files: dict[str, Path] = {}
    for path in found.files:
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in files:
            raise ArgumentError(f"{files[name]} and {path.name} have the same name; keep one of them")
        files[name] = path
    return files


def compare_folders(
    scorer: Scorer,
    folders: Mapping[str, str | os.PathLike[str]],
    *,
    against: str | None = None,
    recursive: bool = False,
    batch_size: int = 32,
    max_pixels: int | None = None,
    on_image: Callable[[int], object] | None = None,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> PairedComparison:
    """Score the images of folders, pair them by file name, and compare the folders.

    An image that cannot be scored is left out in all folders, and so are names that not every folder has.

    Args:
        scorer: from `qmamba.load`.
        folders: by the names that the result calls them.
        against: name of the folder that the others are compared with; the first by default.
        recursive: whether sub-folders are searched.
        batch_size, max_pixels: as for `Scorer.score`.
        on_image: called with the number of images in all after each one, for a progress bar.
        resamples, level, seed: as for `compare`.

    Raises:
        ArgumentError: as `pair_by_name` and `compare`; fewer than two pairs could be scored.
    """
    against = _known(against, tuple(folders)) if folders else None
    pairing = pair_by_name(folders, recursive=recursive)
    if len(pairing.names) < 2:
        raise ArgumentError(
            f"a comparison needs two images that all folders have by the same name, got {len(pairing.names)}"
        )
    paths = [path for row in pairing.files for path in row]
    values, failed = np.full(len(paths), math.nan), []
    for index, score in scorer.iter_scores(paths, batch_size=batch_size, max_pixels=max_pixels):
        if isinstance(score, ImageError):
            failed.append((str(paths[index]), str(score)))
        elif not math.isfinite(score):
            failed.append((str(paths[index]), f"{paths[index]}: its score is {score}"))
        else:
            values[index] = score
        if on_image is not None:
            on_image(len(paths))
    table = values.reshape(len(pairing.names), len(folders))  # (image, folder)
    complete = table[np.isfinite(table).all(axis=1)]
    if len(complete) < 2:
        raise ArgumentError(
            f"a comparison needs two images that could be scored in all folders, got {len(complete)}; "
            f"{failed[0][1]}"
        )
    found = compare(
        dict(zip(folders, complete.T, strict=True)),
        against=against, resamples=resamples, level=level, seed=seed,
    )  # fmt: skip
    return dataclasses.replace(found, unmatched=pairing.unmatched, failed=tuple(failed))
