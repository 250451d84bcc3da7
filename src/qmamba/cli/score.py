"""`qmamba score PATH...`: one row per image, as soon as it is scored."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmamba.cli._find import named_images
from qmamba.cli._options import (
    AdapterOption,
    BatchSize,
    Device,
    Dtype,
    MaxPixels,
    Model,
    Offline,
    Paths,
    Progress,
    ProtocolOption,
    Recursive,
    Revision,
)
from qmamba.cli._parquet import OUT, Engine, score_by_ray, score_here
from qmamba.cli._rows import Format, Row, footer, header, prepare_stdout, render
from qmamba.cli._shared import bar_of, hushed, load_options, load_scorer, quiet_ends, tell_failed
from qmamba.cli._watch import Resume
from qmamba.errors import QMambaError
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
  qmamba score archive/ --recursive --format parquet --out scores
  qmamba score archive/ -r -f parquet -o scores --engine ray --workers 8

\b
Exit code:
  0  every image was scored
  1  some images were not; their rows say why
  2  nothing could be scored: no images, an unknown model, a wrong option
"""


class ScoreFormat(str, Enum):
    """How `qmamba score` writes its rows."""

    table = "table"
    csv = "csv"
    json = "json"
    jsonl = "jsonl"
    parquet = "parquet"


def score(
    paths: Paths,
    model: Model = "lqmamba-n",
    adapter: AdapterOption = None,
    recursive: Recursive = False,
    form: Annotated[
        ScoreFormat, typer.Option("--format", "-f", help="How rows are written.")
    ] = ScoreFormat.table,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="For parquet: the folder of its files. Default: scores.parquet."),
    ] = None,
    resume: Resume = True,
    engine: Annotated[
        Engine, typer.Option(help="What computes: this process, or actors of Ray, for parquet only.")
    ] = Engine.local,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Threads that decode, 1 by default; or Ray's actors, one a processor."),
    ] = None,
    batch_size: BatchSize = 32,
    device: Device = None,
    dtype: Dtype = None,
    protocol: ProtocolOption = None,
    max_pixels: MaxPixels = None,
    revision: Revision = None,
    offline: Offline = False,
    progress: Progress = None,
) -> None:
    """Score images; higher is better, in [0, 1].

    A folder stands for the images in it, in natural order (2.jpg before 10.jpg). A row is written as soon as
    its image is scored. An image that cannot be scored gets a row that says why, and the others are still
    scored. Parquet files go into a folder, which the same command goes on with when it was ended.
    """
    with quiet_ends(), hushed():
        if form is not ScoreFormat.parquet and (out is not None or engine is Engine.ray):
            raise QMambaError("--out and --engine ray go with --format parquet; other rows go to stdout")
        files, whole = named_images(paths, recursive, shards=engine is Engine.ray)
        named = (model, device, dtype, protocol, revision, offline, adapter)
        options: dict[str, Any] = {"batch_size": batch_size, "max_pixels": max_pixels}
        into: dict[str, Any] = {"out": out or OUT, "resume": resume, "progress": progress}
        if engine is Engine.ray:
            failed = score_by_ray(files, actors=workers, **into, **options, **load_options(*named))
        else:
            scorer, options["workers"] = load_scorer(*named), workers or 1
            if form is ScoreFormat.parquet:
                failed = score_here(scorer, files, **into, **options)
            else:
                failed = _write(_rows(scorer, files, options), Format(form.value), len(files), progress)
    if failed or not whole:
        raise typer.Exit(1)


def _rows(scorer: Scorer, files: list[Path], options: dict[str, Any]) -> Iterator[Row]:
    for index, result in scorer.iter_scores(files, **options):
        yield Row(str(files[index]), *outcome(result))


def _write(rows: Iterator[Row], form: Format, total: int, progress: bool | None) -> int:
    """Write each row as it comes; return how many are failures."""
    prepare_stdout(form)
    failed = 0
    with bar_of(total, progress) as bar:
        _emit(header(form), bar)
        try:
            for done, row in enumerate(rows):
                _emit(render(form, row, first=done == 0), bar)
                failed += row.error is not None
                bar.update()
        finally:
            _emit(footer(form), bar)  # after Ctrl-C too: what was written is a whole JSON array
    tell_failed(failed, total)
    return failed


def _emit(text: str, bar: Any) -> None:
    if not text:
        return
    if bar.disable or not sys.stdout.isatty():
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    with bar.external_write_mode(file=sys.stdout):  # rows and bar share a screen: the bar steps aside
        sys.stdout.write(text)
        sys.stdout.flush()
