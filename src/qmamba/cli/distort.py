"""`qmamba distort`: damaged copies of a photograph."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmamba.cli._shared import quiet_ends
from qmamba.errors import DistortionError

if TYPE_CHECKING:
    from qmamba.data.distortions import Distortion

EPILOG = """\
\b
Examples:
  qmamba distort --list
  qmamba distort photo.jpg gaussian_blur --level 3 -o blurred.png
  qmamba distort photo.jpg --all -o damaged/
  qmamba distort photo.jpg jpeg --scale kadid --level 3.5 -o blocks.png

\b
Exit code:
  0  the files are there, and their names are on stdout
  2  nothing was written: an unknown name, an unreadable image, a file that is there already
"""

_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": "4:4:4"},
    "WEBP": {"quality": 95},
    "AVIF": {"quality": 95},
}


def _list(wanted: bool) -> None:
    if not wanted:
        return
    from qmamba.data.distortions import DISTORTIONS, SCALES

    def levels(distortion: Distortion, scale: str) -> str:
        if not SCALES[scale].covers(distortion):
            return "-"
        return " ".join(f"{SCALES[scale].parameter(distortion, level):g}" for level in range(1, 6))

    rows = [("name", "family", "levels 1 to 5", "what they are", "levels with --scale kadid")]
    rows += [
        (d.name, d.family, levels(d, "qmamba"), d.parameter, levels(d, "kadid")) for d in DISTORTIONS.values()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    raise typer.Exit()


def distort(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file.")],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="The file to write, its format by its name; with --all, a folder."),
    ],
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A distortion from `qmamba distort --list`.")
    ] = None,
    level: Annotated[
        float | None,
        typer.Option("--level", "-l", help="1 (just visible) to 5 (severe). Default: 3; with --all, each."),
    ] = None,
    scale: Annotated[
        str,
        typer.Option(help="What the levels mean: qmamba (integers) or kadid (KADID-10k's; 2.5, say, too)."),
    ] = "qmamba",
    seed: Annotated[int, typer.Option(min=0, help="Of what is random.")] = 0,
    every: Annotated[
        bool, typer.Option("--all", help="All distortions, as PNG files NAME-LEVEL.png.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False,
    listing: Annotated[
        bool, typer.Option("--list", callback=_list, is_eager=True, help="List the distortions and exit.")
    ] = False,
) -> None:
    """Write a damaged copy of a photograph, of the same size; docs/distortions.md shows what each does.

    PNG keeps the copy as it was made. JPEG, WebP and AVIF, at quality 95, add a little damage of their own.
    """
    with quiet_ends():
        plan = _plan(name, level, scale, out, every)
        _refuse(plan, force)
        _write(image, plan, seed, scale, folder=out if every else out.parent, make=every)


def _plan(
    name: str | None, level: float | None, scale: str, out: Path, every: bool
) -> dict[Path, tuple[str, float]]:
    """Return which files are to hold which distortion at which level."""
    from qmamba.data.distortions import DISTORTIONS, find, find_scale

    if every == (name is not None):
        raise DistortionError("give either the NAME of a distortion (qmamba distort --list) or --all")
    kinds = [d for d in DISTORTIONS.values() if find_scale(scale).covers(d)] if every else [find(name or "")]
    levels: list[float] = list(range(1, 6)) if level is None else [int(level) if level % 1 == 0 else level]
    if name is not None and level is None:
        levels = [3]
    for kind in kinds:
        for each in levels:
            find_scale(scale).parameter(kind, each)  # raises what is wrong before anything is written
    if not every:
        return {out: (kinds[0].name, levels[0])}
    return {out / f"{kind.name}-{each:g}.png": (kind.name, each) for kind in kinds for each in levels}


def _refuse(plan: dict[Path, tuple[str, float]], force: bool) -> None:
    """Say before anything is written what could not be, or should not."""
    for path in plan:
        if path.is_dir():
            raise DistortionError(f"{path}: a folder; give the name of the file to write, or --all")
        if not force and os.path.lexists(path):
            raise DistortionError(f"{path}: there already; give --force to write over it")
        _format(path)


def _format(path: Path) -> str:
    """The format that a file name's extension stands for, of those that can be read again."""
    from PIL import Image

    from qmamba.images.pillow import FORMATS

    kind = Image.registered_extensions().get(path.suffix.lower(), "")
    if kind not in FORMATS or kind not in Image.SAVE:
        ending = f"no image is written as {path.suffix}" if path.suffix else "the name has no extension"
        raise DistortionError(f"{path}: {ending}; .png keeps every pixel, and .jpg and .webp are smaller")
    return kind


def _write(
    source: Path, plan: dict[Path, tuple[str, float]], seed: int, scale: str, folder: Path, make: bool
) -> None:
    from PIL import Image

    from qmamba.data.distort import to_pixels
    from qmamba.data.distortions import DISTORTIONS

    pixels = to_pixels(source)
    if make:
        folder.mkdir(parents=True, exist_ok=True)
    elif not folder.is_dir():
        raise DistortionError(f"{folder}: no such folder to write to; make it first")
    for path, (name, level) in plan.items():
        kind = _format(path)
        buffer = io.BytesIO()  # no half a file where a codec fails
        damaged = Image.fromarray(DISTORTIONS[name](pixels, level, seed=seed, scale=scale))
        try:
            damaged.save(buffer, kind, **_OPTIONS.get(kind, {}))
        except (OSError, ValueError) as error:  # an image too wide for the format, say
            raise DistortionError(f"{path}: cannot be written as {kind} ({error})") from error
        path.write_bytes(buffer.getvalue())
        typer.echo(str(path))
