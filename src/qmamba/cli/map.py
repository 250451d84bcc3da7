"""`qmamba map IMAGE -o FILE`: where a photograph's score comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qmamba.cli._command import with_groups
from qmamba.cli._options import Force, Image, MaxPixels, ScorerOptions
from qmamba.cli._shared import check_target, hushed, two_numbers

EPILOG = """\
\b
Examples:
  qmamba map photo.jpg -o map.png
  qmamba map photo.jpg -o map.svg --protocol grid
  qmamba map photo.jpg -o map.png --range 0:1

\b
Exit code:
  0  the picture is written, and its name is on stdout
  2  nothing was written: an unreadable image, a file that exists, matplotlib is missing
"""


@with_groups
def draw_map(
    image: Image,
    out: Annotated[Path, typer.Option("--out", "-o", help="Picture to write: .png, .jpg, .svg, .pdf, …")],
    scorer: ScorerOptions,
    max_pixels: MaxPixels = None,
    ends: Annotated[
        str | None,
        typer.Option(
            "--range", metavar="LOW:HIGH", help="Fixed colour scale, such as 0:1. Default: around the score."
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Draw a photograph and, beside it, what each position contributes to its score, with a colour bar.

    The value of a position is its contribution, not a rating of that position by itself: see docs/seeing.md.
    """
    with hushed():
        from qmamba.analysis.maps import check_picture_name, save_map
        from qmamba.images import MAX_PIXELS, decode, label

        check_target(out, force)
        limits = None if ends is None else two_numbers(ends, "--range", "LOW:HIGH, such as 0:1")
        check_picture_name(out)
        pixels = decode(image, max_pixels=max_pixels or MAX_PIXELS)
        loaded = scorer.load()
        found = loaded.quality_map(image if loaded.draft else pixels, max_pixels=max_pixels)
        save_map(out, pixels, found, name=label(image.name), limits=limits)
        typer.echo(str(out))
