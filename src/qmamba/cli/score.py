"""`qmamba score PATH...`: one row per image, as soon as it is scored."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmamba._scoring import senseless
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
from qmamba.cli._rows import Format, Row, footer, header, prepare_stdout, render
from qmamba.cli._shared import bar_of, load_scorer, note, quiet_ends
from qmamba.errors import ImageError

if TYPE_CHECKING:
    from qmamba.scorer import Scorer

EPILOG = """\
\b
Examples:
  qmamba score photo.jpg
  qmamba score holiday/ --recursive --format csv > scores.csv
  qmamba score "shots/*.png" --format jsonl | head -n 3
  qmamba score photo.jpg --model path/to/checkpoint --protocol whole

\b
Exit code:
  0  every image was scored
  1  some images were not; their rows say why
  2  nothing could be scored: no images, an unknown model, a wrong option
"""


def score(
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
    """Score images; higher is better, in [0, 1].

    A folder stands for the images in it, in natural order (2.jpg before 10.jpg). A row is written as soon as
    its image is scored. An image that cannot be scored gets a row that says why, and the others are still
    scored.
    """
    with quiet_ends():
        files, whole = named_images(paths, recursive)
        scorer = load_scorer(model, device, dtype, protocol, revision, offline, adapter)
        rows = _rows(scorer, files, batch_size, max_pixels)
        failed = _write(rows, form, len(files), progress)
        if failed:
            note(f"{failed} of {len(files)} images could not be scored; their rows say why")
    if failed or not whole:
        raise typer.Exit(1)


def _rows(scorer: Scorer, files: list[Path], batch_size: int, max_pixels: int | None) -> Iterator[Row]:
    for index, result in scorer.iter_scores(files, batch_size=batch_size, max_pixels=max_pixels):
        path = str(files[index])
        if isinstance(result, ImageError):
            yield Row(path, error=str(result))
        elif math.isfinite(result):
            yield Row(path, score=float(result))
        else:
            yield Row(path, error=str(senseless(result)))


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
