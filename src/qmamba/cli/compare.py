"""`qmamba compare A B...`: images beside each other, best first; folders with `--by-folder`."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmamba.cli._command import with_groups
from qmamba.cli._find import named_images
from qmamba.cli._folders import FORMATS, FolderOptions, chosen, named_folders, note_left_out
from qmamba.cli._folders import render as render_folders
from qmamba.cli._options import (
    ComparisonFormat,
    Format,
    Paths,
    Progress,
    ReadingOptions,
    Recursive,
    ScorerOptions,
)
from qmamba.cli._progress import bar_of
from qmamba.cli._rows import Comparison, footer, header, prepare_stdout, render
from qmamba.cli._shared import hushed, note_failed
from qmamba.errors import ArgumentError, ImageError
from qmamba.scoring.pipeline import senseless

if TYPE_CHECKING:
    from qmamba.scoring import Scorer

EPILOG = """\
\b
Examples:
  qmamba compare before.jpg after.jpg
  qmamba compare versions/ --format csv > versions.csv
  qmamba compare --by-folder gt/ bicubic/ mine/ --against bicubic --format latex

\b
Exit code:
  0  every image was scored
  1  some images could not be scored; their rows, the last ones, say why; or, with --by-folder, some were
     left out, and stderr says which
  2  nothing was scored: no images, an unknown model, a wrong option
"""


@with_groups
def compare(
    paths: Paths,
    scorer: ScorerOptions,
    reading: ReadingOptions,
    folders: FolderOptions,
    recursive: Recursive = False,
    form: Annotated[
        ComparisonFormat,
        typer.Option(
            "--format", "-f", help="Format of the output; latex needs --by-folder, which has no jsonl."
        ),
    ] = ComparisonFormat.table,
    progress: Progress = None,
) -> None:
    """Score images and list them, best first, with the difference from the best one.

    The last number is the standard deviation over the scores of an image's parts: its crops, or the sizes
    at which it is scored.

    With --by-folder, images are paired by their file names without extensions, and folders are listed: mean
    scores, mean differences from one folder with paired bootstrap intervals, and p-values of the paired
    permutation test.
    """
    if folders.by_folder:
        _compare_folders(paths, scorer, reading, folders, recursive, form.value, progress)
        return
    if folders.against is not None:
        raise ArgumentError("--against compares folders; add --by-folder")
    if form is ComparisonFormat.latex:
        raise ArgumentError("--format latex is for folders; add --by-folder")
    _compare_images(paths, scorer, reading, recursive, Format(form.value), progress)


def _compare_images(
    paths: list[str],
    scorer: ScorerOptions,
    reading: ReadingOptions,
    recursive: bool,
    form: Format,
    progress: bool | None,
) -> None:
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


def _compare_folders(
    paths: list[str],
    scorer: ScorerOptions,
    reading: ReadingOptions,
    options: FolderOptions,
    recursive: bool,
    form: str,
    progress: bool | None,
) -> None:
    from qmamba.analysis import compare_folders

    if form not in FORMATS:
        raise ArgumentError(f"--format must be one of {', '.join(FORMATS)} with --by-folder, got {form}")
    folders = named_folders(paths)
    against = chosen(options.against, folders)
    with hushed():
        loaded = scorer.load()
        with bar_of(None, progress) as bar:

            def advance(total: int) -> None:
                bar.total = total
                bar.update()

            found = compare_folders(
                loaded, folders, against=against, recursive=recursive, on_image=advance,
                resamples=options.resamples, seed=options.seed, **reading.to_dict(),
            )  # fmt: skip
        prepare_stdout(Format.csv if form == "csv" else Format.table)
        sys.stdout.write(render_folders(form, found))
        is_partial = note_left_out(found)
    if is_partial:
        raise typer.Exit(1)


def _rows(scorer: Scorer, files: list[Path], bar: Any, **options: Any) -> Iterator[Comparison]:
    for path, parts in zip(files, scorer.iter_crop_scores(files, **options), strict=True):
        if isinstance(parts, ImageError):
            yield Comparison(str(path), error=str(parts))
        elif not math.isfinite(parts.mean):
            yield Comparison(str(path), error=str(senseless(parts.mean)))
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
