"""`qmamba explain PATH...`: one row per image: its score, and what is known about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from qmamba.cli._command import with_groups
from qmamba.cli._find import named_images, opened
from qmamba.cli._options import Format, Paths, Progress, ReadingOptions, Recursive, RowFormat, ScorerOptions
from qmamba.cli._rows import Explained, write_rows
from qmamba.cli._shared import hushed, note
from qmamba.errors import ImageError

if TYPE_CHECKING:
    from qmamba.scoring import Scorer

EPILOG = """\
\b
Examples:
  qmamba explain photo.jpg
  qmamba explain holiday/ --recursive --format csv > reasons.csv

\b
Exit code:
  0  every image was scored
  1  some images could not be scored; their rows say why
  2  nothing was scored: no images, an unknown model, a wrong option
"""


@with_groups
def explain(
    paths: Paths,
    scorer: ScorerOptions,
    reading: ReadingOptions,
    recursive: Recursive = False,
    form: RowFormat = Format.table,
    progress: Progress = None,
) -> None:
    """Score images, and say what is wrong with them as far as that is known.

    A row has the score, the standard deviation over the image's parts, the fault that it resembles, where it
    is worst, and measures that stand out. Where no fault is clear, that is what it says: docs/reasons.md has
    how often a fault that is named is the right one. Only the embedded model names faults and regions; other
    models tell what is measured.
    """
    with hushed():
        files, is_complete = named_images(paths, recursive)
        rows = _rows(scorer.load(), files, reading)
        failed = write_rows(rows, form, len(files), progress, Explained)
    if failed or not is_complete:
        raise typer.Exit(1)


def _rows(scorer: Scorer, files: list[Path], reading: ReadingOptions) -> Iterator[Explained]:
    from qmamba.scoring.explanation import Explainer

    look = Explainer(scorer, **reading.to_dict())
    if look.no_probe is not None:
        note(look.no_probe)
    results = scorer.each(opened(files), look, max_pixels=reading.max_pixels)
    for path, result in zip(files, results, strict=True):
        if isinstance(result, ImageError):
            yield Explained(str(path), error=str(result))
            continue
        found = result[0]
        yield Explained(
            str(path), found.score, found.std, None if found.fault is None else found.fault.name,
            None if found.fault is None else found.fault.kind, found.worst, found.reason,
        )  # fmt: skip
