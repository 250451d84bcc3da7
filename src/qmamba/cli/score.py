"""`qmamba score PATH...`: one row per image, as soon as it is scored."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmamba.cli._find import find_images
from qmamba.cli._rows import Format, Row, footer, header, render
from qmamba.cli._shared import USAGE, DtypeName, ProtocolName, bar_of, load_scorer, note, quiet_ends
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
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH", help='Images, folders, or quoted patterns like "shots/**/*.jpg".'),
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", help="A name from `qmamba models`, a folder, or a Hub id.")
    ] = "lqmamba-n",
    adapter: Annotated[
        str | None, typer.Option("--adapter", "-a", help="A folder or Hub id of an adapter for the model.")
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Look into sub-folders too.")] = False,
    form: Annotated[Format, typer.Option("--format", "-f", help="How rows are written.")] = Format.table,
    batch_size: Annotated[int, typer.Option(min=1, help="Crops per forward pass; fewer, less memory.")] = 32,
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:1, mps, … Default: cpu.")
    ] = None,
    dtype: Annotated[
        DtypeName | None, typer.Option(help="What the network computes in. Default: float32.")
    ] = None,
    protocol: Annotated[
        ProtocolName | None, typer.Option(help="How images are cut into crops. Default: the model's own way.")
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Refuse images with more pixels. Default: 50,000,000.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="For a Hub id: a branch, tag or commit.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="For a Hub id: only what is cached.")] = False,
    progress: Annotated[
        bool | None, typer.Option("--progress/--no-progress", help="A bar on stderr. Default: on terminals.")
    ] = None,
) -> None:
    """Score images; higher is better, in [0, 1].

    A folder stands for the images in it, in natural order (2.jpg before 10.jpg). A row is written as soon as
    its image is scored. An image that cannot be scored gets a row that says why, and the others are still
    scored.
    """
    with quiet_ends():
        files, whole = _files(paths, recursive)
        scorer = load_scorer(model, device, dtype, protocol, revision, offline, adapter)
        rows = _rows(scorer, files, batch_size, max_pixels)
        failed = _write(rows, form, len(files), progress)
        if failed:
            note(f"{failed} of {len(files)} images could not be scored; their rows say why")
    if failed or not whole:
        raise typer.Exit(1)


def _files(paths: list[str], recursive: bool) -> tuple[list[Path], bool]:
    """The images to score, and whether everything that was named could be searched."""
    found = find_images(paths, recursive=recursive)
    for name in found.unreadable:
        note(f"the folder {name} cannot be read; check its permissions")
    hint = "" if recursive else "; add --recursive to look into sub-folders"
    for name in found.empty:
        note(f"no images in {name}{hint}" if Path(name).is_dir() else f"nothing matches {name}")
    if not found.files:
        note("no images to score")
        raise typer.Exit(USAGE)
    return found.files, not found.unreadable


def _rows(scorer: Scorer, files: list[Path], batch_size: int, max_pixels: int | None) -> Iterator[Row]:
    for index, result in scorer.iter_scores(files, batch_size=batch_size, max_pixels=max_pixels):
        path = str(files[index])
        if isinstance(result, ImageError):
            yield Row(path, error=str(result))
        elif math.isfinite(result):
            yield Row(path, score=float(result))
        else:
            yield Row(path, error=f"the model gave {result}: its weights may be damaged")


def _write(rows: Iterator[Row], form: Format, total: int, progress: bool | None) -> int:
    """Write each row as it comes; return how many are failures."""
    _prepare_stdout(form)
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


def _prepare_stdout(form: Format) -> None:
    """Make every file name writable, whatever the locale; bytes that are not UTF-8 go out as they came in."""
    if not isinstance(sys.stdout, io.TextIOWrapper):
        return
    if form is Format.csv:
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")
    else:
        sys.stdout.reconfigure(errors="backslashreplace")


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
