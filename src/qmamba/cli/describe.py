"""`qmamba describe PATH...`: the quality of photographs, described in words."""

from __future__ import annotations

import json
import sys
from enum import Enum
from typing import Annotated

import typer

from qmamba.cli._command import with_groups
from qmamba.cli._find import named_images, opened
from qmamba.cli._options import Format, MaxPixels, Paths, Progress, Recursive
from qmamba.cli._progress import bar_of
from qmamba.cli._rows import prepare_stdout
from qmamba.cli._shared import hushed, note_failed, printable
from qmamba.cli._words import WordsOptions
from qmamba.errors import ImageError

EPILOG = """\
\b
Examples:
  qmamba describe photo.jpg --model path/to/checkpoint
  qmamba describe holiday/ -r -m path/to/checkpoint --format jsonl > texts.jsonl

\b
Exit code:
  0  every image was described
  1  some images could not be described; their rows say why
  2  nothing was described: no images, a model without words, a wrong option
"""


class TextFormat(str, Enum):
    """Formats of one text per image."""

    text = "text"
    jsonl = "jsonl"


@with_groups
def describe(
    paths: Paths,
    words: WordsOptions,
    recursive: Recursive = False,
    form: Annotated[TextFormat, typer.Option("--format", "-f", help="Format of the rows.")] = TextFormat.text,
    max_pixels: MaxPixels = None,
    progress: Progress = None,
) -> None:
    """Describe the quality of photographs with a model that knows words, one row an image.

    Each row is written as soon as its image is described. docs/explain.md says which models can.
    """
    with hushed():
        files, is_complete = named_images(paths, recursive)
        scorer = words.load()
        prepare_stdout(Format.jsonl)
        failed = 0
        with bar_of(len(files), progress) as bar:
            for path, image in zip(files, opened(files), strict=True):
                try:
                    text, error = scorer.describe(image, max_pixels=max_pixels, **words.limits()), None
                except ImageError as reason:
                    text, error = None, str(reason)
                failed += error is not None
                bar.clear()
                sys.stdout.write(_row(form, str(path), text, error))
                sys.stdout.flush()
                bar.update()
        note_failed(failed, len(files))
    if failed or not is_complete:
        raise typer.Exit(1)


def _row(form: TextFormat, path: str, text: str | None, error: str | None) -> str:
    """Return the text of one row.

    >>> _row(TextFormat.text, "a.jpg", "It is sharp.", None)
    'a.jpg: It is sharp.\\n'
    """
    if form is TextFormat.jsonl:
        return json.dumps({"path": path, "text": text, "error": error}) + "\n"
    name = printable(path)
    shown = printable(text) if text is not None else f"({printable(error or '').removeprefix(f'{name}: ')})"
    return f"{name}: {shown}\n"
