"""Check that a data set is complete: count its labels, and open each of its images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..errors import ImageError
from ..images import decode
from .datasets import DataSet
from .ratings import Rated

Found = TypeVar("Found")


@dataclass(frozen=True)
class CheckReport:
    """Contents of a data set, and its problems.

    Attributes:
        images: number of rated images.
        mos: lowest and highest score, higher is better.
        with_std: number of images with a standard deviation.
        references: number of distinct references.
        distortions: number of distinct distortions.
        problems: one line per problem; empty for a complete data set.
    """

    images: int
    mos: tuple[float, float]
    with_std: int
    references: int
    distortions: int
    problems: tuple[str, ...]


def check_dataset(
    ratings: Sequence[Rated],
    facts: DataSet | None = None,
    *,
    workers: int | None = None,
    done: Callable[[], object] | None = None,
) -> CheckReport:
    """Open every image of a data set, and compare its counts with those of the published one.

    Scores outside the scale are allowed: scales are nominal, and LIVE's realigned DMOS exceed theirs.

    Args:
        ratings: rated images from the reader, at least one.
        facts: expected counts of the complete data set; None skips the comparison.
        workers: number of threads that open images; by default one per CPU.
        done: called after each image.

    Returns:
        Counts, and problems: unexpected counts, duplicate paths, images that cannot be opened.
    """
    problems = []
    references = len({r.reference for r in ratings} - {""})
    if facts is not None:
        if len(ratings) != facts.images:
            problems.append(f"{len(ratings):,} rated images, expected {facts.images:,}")
        if facts.references and references != facts.references:
            problems.append(f"{references} references, expected {facts.references}")
    listed = Counter(r.path for r in ratings)
    problems += [f"{path}: listed {count} times" for path, count in listed.items() if count > 1]
    for reason in in_threads(_unreadable, [r.path for r in ratings], workers):
        if reason:
            problems.append(reason)
        if done is not None:
            done()
    return CheckReport(
        images=len(ratings),
        mos=(min(r.mos for r in ratings), max(r.mos for r in ratings)),
        with_std=sum(r.std is not None for r in ratings),
        references=references,
        distortions=len({r.distortion for r in ratings} - {""}),
        problems=tuple(problems),
    )


def in_threads(
    work: Callable[[Path], Found], paths: Sequence[Path], workers: int | None = None
) -> Iterator[Found]:
    """Yield ``work(path)`` for each path, in order; closing the generator cancels pending paths."""
    # Decoding releases the GIL, so threads suffice.
    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1)
    try:
        yield from pool.map(work, paths)
    finally:  # without waiting: the garbage collector may close this generator in any thread
        pool.shutdown(wait=False, cancel_futures=True)


def _unreadable(path: Path) -> str:
    """Return the reason why an image cannot be opened, or ""."""
    try:
        decode(path)
    except ImageError as error:
        return str(error)
    return ""
