"""`qmamba map PHOTO -o FILE`: where a photograph's score comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qmamba.cli._options import (
    AdapterOption,
    Device,
    Dtype,
    Force,
    MaxPixels,
    Model,
    Offline,
    ProtocolOption,
    Revision,
)
from qmamba.cli._shared import check_target, hushed, load_scorer, quiet_ends

EPILOG = """\
\b
Examples:
  qmamba map photo.jpg -o map.png
  qmamba map photo.jpg -o map.svg --protocol grid

\b
Exit code:
  0  the picture is there, and its name is on stdout
  2  nothing was written: an unreadable image, a file that is there already, matplotlib is missing
"""


def draw_map(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture to write, its format by its name.")],
    model: Model = "lqmamba-n",
    adapter: AdapterOption = None,
    force: Force = False,
    device: Device = None,
    dtype: Dtype = None,
    protocol: ProtocolOption = None,
    max_pixels: MaxPixels = None,
    revision: Revision = None,
    offline: Offline = False,
) -> None:
    """Draw a photograph and, beside it, what each place adds to its score, with a colour bar.

    A place's value is its contribution, and no rating of that place by itself: docs/seeing.md says more.
    """
    with quiet_ends(), hushed():
        from qmamba.analysis.maps import check_picture_name, save_map
        from qmamba.images import MAX_PIXELS, decode, label

        check_target(out, force)
        check_picture_name(out)
        scorer = load_scorer(model, device, dtype, protocol, revision, offline, adapter)
        found = scorer.quality_map(image, max_pixels=max_pixels)
        pixels = decode(image, max_pixels=max_pixels or MAX_PIXELS)
        save_map(out, pixels, found, name=label(image.name))
        typer.echo(str(out))
