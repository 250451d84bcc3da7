"""`qmamba distort`: damaged copies of a photograph."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from qmamba.cli._shared import quiet_ends
from qmamba.errors import DistortionError

EPILOG = """\
\b
Examples:
  qmamba distort --list
  qmamba distort photo.jpg gaussian_blur --level 3 -o blurred.png
  qmamba distort photo.jpg --all -o damaged/

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
    from qmamba.data.distortions import DISTORTIONS

    rows = [("name", "family", "levels 1 to 5", "what they are")]
    rows += [
        (d.name, d.family, " ".join(f"{p:g}" for p in d.levels), d.parameter) for d in DISTORTIONS.values()
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
        int | None,
        typer.Option("--level", "-l", help="1 (just visible) to 5 (severe). Default: 3; with --all, each."),
    ] = None,
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
        plan = _plan(name, level, out, every)
        _refuse(plan, force)
        _write(image, plan, seed, folder=out if every else out.parent, make=every)


def _plan(name: str | None, level: int | None, out: Path, every: bool) -> dict[Path, tuple[str, int]]:
    """Which files are to hold which distortion at which level."""
    from qmamba.data.distortions import DISTORTIONS, find

    if every == (name is not None):
        raise DistortionError("give either the NAME of a distortion (qmamba distort --list) or --all")
    if level is not None and not 1 <= level <= 5:
        raise DistortionError(f"the level of a distortion is an integer from 1 to 5, not {level}")
    if name is not None:
        return {out: (find(name).name, 3 if level is None else level)}
    levels = range(1, 6) if level is None else [level]
    return {out / f"{each}-{k}.png": (each, k) for each in DISTORTIONS for k in levels}


def _refuse(plan: dict[Path, tuple[str, int]], force: bool) -> None:
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


def _write(source: Path, plan: dict[Path, tuple[str, int]], seed: int, folder: Path, make: bool) -> None:
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
        damaged = Image.fromarray(DISTORTIONS[name](pixels, level, seed=seed))
        try:
            damaged.save(buffer, kind, **_OPTIONS.get(kind, {}))
        except (OSError, ValueError) as error:  # an image too wide for the format, say
            raise DistortionError(f"{path}: cannot be written as {kind} ({error})") from error
        path.write_bytes(buffer.getvalue())
        typer.echo(str(path))
