"""`qmamba ask IMAGE QUESTION`: a question about a photograph, answered in words."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from qmamba.cli._command import with_groups
from qmamba.cli._options import Image, MaxPixels
from qmamba.cli._shared import hushed, note
from qmamba.cli._words import WordsOptions

EPILOG = """\
\b
Examples:
  qmamba ask photo.jpg "Is it blurred?" --model path/to/checkpoint
  qmamba ask photo.jpg "Which part is sharp?" -m path/to/checkpoint --seconds 20
  qmamba ask photo.jpg "Is it dark?" -m path/to/checkpoint --choice Yes --choice No

\b
Exit code:
  0  the answer is on stdout
  1  the answer names none of the choices
  2  nothing was asked: an unreadable image, a model without words, a wrong option
"""


@with_groups
def ask(
    image: Image,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="Question about the image.")],
    words: WordsOptions,
    choices: Annotated[
        list[str] | None,
        typer.Option(
            "--choice", metavar="TEXT", help="Possible answer; give two or more. Default: free text."
        ),
    ] = None,
    max_pixels: MaxPixels = None,
) -> None:
    """Ask a model that knows words about a photograph; the answer appears while it is written.

    The likeliest words are taken, so that the same question has the same answer. docs/explain.md says which
    models can answer.
    """
    with hushed():
        scorer = words.load()
        if choices:
            found = scorer.choose(image, question, choices, max_pixels=max_pixels)
            if found is None:
                note("the answer names none of the choices")
                raise typer.Exit(1)
            typer.echo(found)
            return
        for piece in scorer.stream(image, question, max_pixels=max_pixels, **words.limits()):
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
