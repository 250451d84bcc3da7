"""`qmamba score PATH...`: one row per image, as soon as it is scored."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmamba.cli._command import with_groups
from qmamba.cli._find import named_images, opened
from qmamba.cli._options import (
    Format,
    Paths,
    Progress,
    ReadingOptions,
    Recursive,
    Resume,
    ScorerOptions,
)
from qmamba.cli._parquet import OUT, Engine, score_by_ray, score_here
from qmamba.cli._rows import Row, write_rows
from qmamba.cli._shared import hushed
from qmamba.errors import ArgumentError
from qmamba.scoring.pipeline import outcome

if TYPE_CHECKING:
    from qmamba.scoring import Scorer

EPILOG = """\
\b
Examples:
  qmamba score photo.jpg
  qmamba score holiday/ --recursive --format csv > scores.csv
  qmamba score "shots/*.png" --format jsonl | head -n 3
  qmamba score photo.jpg --model path/to/checkpoint --protocol whole
  curl -s https://example.org/photo.jpg | qmamba score -
  qmamba score archive/ --recursive --format parquet --out scores
  qmamba score archive/ -r -f parquet -o scores --engine ray --workers 8

\b
Exit code:
  0  every image was scored
  1  some images could not be scored; their rows say why
  2  nothing was scored: no images, an unknown model, a wrong option
"""


class ScoreFormat(str, Enum):
    """Formats of `qmamba score`."""

    table = "table"
    csv = "csv"
    json = "json"
    jsonl = "jsonl"
    parquet = "parquet"


@with_groups
def score(
    paths: Paths,
    scorer: ScorerOptions,
    reading: ReadingOptions,
    recursive: Recursive = False,
    form: Annotated[
        ScoreFormat, typer.Option("--format", "-f", help="Format of the rows.")
    ] = ScoreFormat.table,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for parquet files. Default: scores.parquet."),
    ] = None,
    resume: Resume = True,
    engine: Annotated[
        Engine, typer.Option(help="What computes: this process, or actors of Ray (for parquet only).")
    ] = Engine.local,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Threads that decode for a GPU. Default: 1. With Ray, actors; default: one per core."
        ),
    ] = None,
    progress: Progress = None,
) -> None:
    """Score images in [0, 1]; higher is better.

    A folder stands for the images in it, in natural order (2.jpg before 10.jpg). Each row is written as soon
    as its image is scored. An image that cannot be scored gets a row that says why, and the others are scored
    all the same. Parquet files are written to a folder; the same command resumes an interrupted run.
    """
    with hushed():
        if form is not ScoreFormat.parquet and (out is not None or engine is Engine.ray):
            raise ArgumentError(
                "--out and --engine ray need --format parquet; rows of other formats go to stdout"
            )
        files, is_complete = named_images(paths, recursive, shards=engine is Engine.ray)
        target: dict[str, Any] = {"out": out or OUT, "resume": resume, "progress": progress}
        if engine is Engine.ray:
            options = {**reading.to_dict(), **scorer.load_options()}
            failed = score_by_ray(files, actors=workers, **target, **options)
        else:
            options = {**reading.to_dict(), "workers": workers or 1}
            if form is ScoreFormat.parquet:
                failed = score_here(scorer.load(), files, **target, **options)
            else:
                rows = _rows(scorer.load(), files, options)
                failed = write_rows(rows, Format(form.value), len(files), progress)
    if failed or not is_complete:
        raise typer.Exit(1)


def _rows(scorer: Scorer, files: list[Path], options: dict[str, Any]) -> Iterator[Row]:
    for index, result in scorer.iter_scores(opened(files), **options):
        yield Row(str(files[index]), *outcome(result))
