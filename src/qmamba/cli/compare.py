"""`qmamba compare A B...`: images beside each other, best first."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from qmamba.cli._command import with_groups
from qmamba.cli._find import named_images
from qmamba.cli._options import (
    Format,
    Paths,
    Progress,
    ReadingOptions,
    Recursive,
    RowFormat,
    ScorerOptions,
)
from qmamba.cli._progress import bar_of
from qmamba.cli._rows import Comparison, footer, header, prepare_stdout, render
from qmamba.cli._shared import hushed, note_failed
from qmamba.errors import ImageError
from qmamba.scoring.pipeline import senseless

if TYPE_CHECKING:
    from qmamba.scoring import Scorer

EPILOG = """\
\b
Examples:
  qmamba compare before.jpg after.jpg
  qmamba compare versions/ --format csv > versions.csv

\b
Exit code:
  0  every image was scored
  1  some images could not be scored; their rows, the last ones, say why
  2  nothing was scored: no images, an unknown model, a wrong option
"""


@with_groups
def compare(
    paths: Paths,
    scorer: ScorerOptions,
    reading: ReadingOptions,
    recursive: Recursive = False,
    form: RowFormat = Format.table,
    progress: Progress = None,
) -> None:
    """Score images and list them, best first, with the difference from the best one.

    The last number is the standard deviation over the scores of an image's parts: its crops, or the sizes
    at which it is scored.
    """
    with hushed():
        files, is_complete = named_images(paths, recursive)
        loaded = scorer.load()
        with bar_of(len(files), progress) as bar:
            rows = ranked(_rows(loaded, files, bar, **reading.to_dict()))
        prepare_stdout(form)
        lines = (render(form, row, first=index == 0) for index, row in enumerate(rows))
        sys.stdout.write(header(form, Comparison) + "".join(lines) + footer(form))
        failed = sum(row.error is not None for row in rows)
        note_failed(failed, len(files))
    if failed or not is_complete:
        raise typer.Exit(1)


def _rows(scorer: Scorer, files: list[Path], bar: Any, **options: Any) -> Iterator[Comparison]:
    for path in files:
        try:
            parts = scorer.crop_scores(path, **options)
            if not math.isfinite(parts.mean):
                raise senseless(parts.mean)
        except ImageError as error:
            yield Comparison(str(path), error=str(error))
        else:
            yield Comparison(str(path), parts.mean, std=parts.std)
        bar.update()


def ranked(rows: Iterator[Comparison]) -> list[Comparison]:
    """Return rows, best first, with differences; ties stay in order, and rows without a score come last."""
    best_first = sorted(rows, key=lambda row: -math.inf if row.score is None else row.score, reverse=True)
    best = best_first[0].score if best_first else None
    return [
        row if row.score is None or best is None else replace(row, difference=row.score - best)
        for row in best_first
    ]
