"""`qmamba compare A B...`: images beside each other, best first."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
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
from qmamba.cli._rows import Comparison, Format, footer, header, prepare_stdout, render
from qmamba.cli._shared import bar_of, hushed, load_scorer, quiet_ends, tell_failed
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
  1  some images were not; their rows, the last ones, say why
  2  nothing could be scored: no images, an unknown model, a wrong option
"""


def compare(
    paths: Paths,
    model: Model = "lqmamba-n",
    adapter: AdapterOption = None,
    recursive: Recursive = False,
    form: Annotated[Format, typer.Option("--format", "-f", help="How rows are written.")] = Format.table,
    batch_size: BatchSize = 32,
    device: Device = None,
    dtype: Dtype = None,
    protocol: ProtocolOption = None,
    max_pixels: MaxPixels = None,
    revision: Revision = None,
    offline: Offline = False,
    progress: Progress = None,
) -> None:
    """Score images and list them, best first, with how far each is behind the best one.

    The last number is the standard deviation of the scores of an image's parts: crops, or sizes that it is
    seen at.
    """
    with quiet_ends(), hushed():
        files, whole = named_images(paths, recursive)
        scorer = load_scorer(model, device, dtype, protocol, revision, offline, adapter)
        with bar_of(len(files), progress) as bar:
            rows = ranked(_rows(scorer, files, bar, batch_size=batch_size, max_pixels=max_pixels))
        prepare_stdout(form)
        lines = (render(form, row, first=place == 0) for place, row in enumerate(rows))
        sys.stdout.write(header(form, Comparison) + "".join(lines) + footer(form))
        failed = sum(row.error is not None for row in rows)
        tell_failed(failed, len(files))
    if failed or not whole:
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
    """Best first, with differences; equal scores in the order given, and what has no score at the end."""
    best_first = sorted(rows, key=lambda row: -math.inf if row.score is None else row.score, reverse=True)
    best = best_first[0].score if best_first else None
    return [
        row if row.score is None or best is None else replace(row, difference=row.score - best)
        for row in best_first
    ]
