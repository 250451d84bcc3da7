"""Is a data set whole? Its labels counted, every one of its images opened."""

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
    """What was found in a data set.

    Attributes:
        images: how many rated images it has.
        mos: least and greatest of their scores, higher for better images.
        with_std: how many have a standard deviation.
        references: how many different references they name.
        distortions: how many different distortions they name.
        problems: one line for each thing that is wrong; none says that the data set is whole.
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
    """Open every image of a data set, and compare counts with those of the whole.

    Scores that leave the scale are no problem: scales are nominal, and LIVE's realigned DMOS, for one, leave
    theirs.

    Args:
        ratings: what its reader returned, at least one.
        facts: what is known of the whole data set; without, nothing is compared.
        workers: threads that open images; one a processor by default.
        done: called after each image.

    Returns:
        Counts, and what is wrong: other counts than expected, images named twice, images that cannot be
        opened.
    """
    problems = []
    references = len({r.reference for r in ratings} - {""})
    if facts is not None:
        if len(ratings) != facts.images:
            problems.append(f"{len(ratings):,} rated images, expected {facts.images:,}")
        if facts.references and references != facts.references:
            problems.append(f"{references} references, expected {facts.references}")
    named = Counter(r.path for r in ratings)
    problems += [f"{path}: named {count} times" for path, count in named.items() if count > 1]
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
    """What ``work`` makes of each path, in their order; ends without waiting for what has not begun."""
    # Decoding lets go of the interpreter's lock, so threads are enough.
    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1)
    try:
        yield from pool.map(work, paths)
    finally:
        pool.shutdown(cancel_futures=True)


def _unreadable(path: Path) -> str:
    """Why an image cannot be opened; "" where it can."""
    try:
        decode(path)
    except ImageError as error:
        return str(error)
    return ""
