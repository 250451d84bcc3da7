"""`qmamba distort`: distorted copies of a photograph."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmamba.cli._options import Force, Image, Seed
from qmamba.cli._shared import check_target, columns
from qmamba.errors import DistortionError

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

    from qmamba.data.distortions import Distortion

EPILOG = """\
\b
Examples:
  qmamba distort --list
  qmamba distort photo.jpg gaussian_blur --level 3 -o blurred.png
  qmamba distort photo.jpg --all -o damaged/
  qmamba distort photo.jpg --sheet -o sheet.jpg
  qmamba distort photo.jpg jpeg --scale kadid --level 3.5 -o blocks.png

\b
Exit code:
  0  the files are written, and their names are on stdout
  2  nothing was written: an unknown name, an unreadable image, a file that exists
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

    rows = [("name", "family", "levels 1 to 5", "parameter", "levels with --scale kadid")]
    rows += [
        (d.name, d.family, levels(d, "qmamba"), d.parameter, levels(d, "kadid")) for d in DISTORTIONS.values()
    ]
    typer.echo(columns(rows))
    raise typer.Exit()


def distort(
    image: Image,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="File to write, in the format of its extension; with --all, a folder."
        ),
    ],
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Distortion, from `qmamba distort --list`.")
    ] = None,
    level: Annotated[
        float | None,
        typer.Option(
            "--level",
            "-l",
            help="Strength, 1 (just visible) to 5 (severe). Default: 3; with --all, all.",
        ),
    ] = None,
    scale: Annotated[
        str,
        typer.Option(help="Scale of the levels: qmamba (integers), or kadid (KADID-10k's, fractions too)."),
    ] = "qmamba",
    seed: Seed = 0,
    every: Annotated[
        bool, typer.Option("--all", help="Write all distortions, as PNG files NAME-LEVEL.png.")
    ] = False,
    sheet: Annotated[
        bool,
        typer.Option(
            "--sheet", help="Write one contact sheet: a row for each distortion, or for NAME alone."
        ),
    ] = False,
    force: Force = False,
    listing: Annotated[
        bool, typer.Option("--list", callback=_list, is_eager=True, help="List the distortions and exit.")
    ] = False,
) -> None:
    """Write a distorted copy of a photograph, of the same size; docs/distortions.md shows each distortion.

    PNG keeps the copy exactly. JPEG, WebP and AVIF, at quality 95, add slight distortions of their own.
    """
    if sheet:
        if every or level is not None:
            raise DistortionError("--sheet shows all levels on one sheet; leave out --all and --level")
        check_target(out, force)
        _write_sheet(image, name, out, seed, scale)
        return
    plan = _plan(name, level, scale, out, every)
    for path in plan:
        check_target(path, force, is_folder_made=every)
        _format(path)
    _write(image, plan, seed, scale, folder=out if every else None)


def _plan(
    name: str | None, level: float | None, scale: str, out: Path, every: bool
) -> dict[Path, tuple[str, float]]:
    """Return the distortion and level of each file to write."""
    from qmamba.data.distortions import DISTORTIONS, find, find_scale

    if every == (name is not None):
        raise DistortionError("give the NAME of a distortion (qmamba distort --list), or --all, or --sheet")
    kinds = [d for d in DISTORTIONS.values() if find_scale(scale).covers(d)] if every else [find(name or "")]
    levels: list[float] = list(range(1, 6)) if level is None else [int(level) if level % 1 == 0 else level]
    if name is not None and level is None:
        levels = [3]
    for kind in kinds:
        for each in levels:
            find_scale(scale).parameter(kind, each)  # a bad level is refused before anything is written
    if not every:
        return {out: (kinds[0].name, levels[0])}
    return {out / f"{kind.name}-{each:g}.png": (kind.name, each) for kind in kinds for each in levels}


def _format(path: Path) -> str:
    """Return the format of a file name's extension, if qmamba can also read it.

    Raises:
        DistortionError: it cannot.
    """
    from PIL import Image as Pillow

    from qmamba.images.pillow import FORMATS

    kind = Pillow.registered_extensions().get(path.suffix.lower(), "")
    if kind not in FORMATS or kind not in Pillow.SAVE:
        reason = f"images cannot be written as {path.suffix}" if path.suffix else "the name has no extension"
        raise DistortionError(f"{path}: {reason}; use .png for exact pixels, .jpg or .webp for small files")
    return kind


def _write(
    source: Path, plan: dict[Path, tuple[str, float]], seed: int, scale: str, folder: Path | None
) -> None:
    """Write the files of a plan; `folder` is created first."""
    from PIL import Image as Pillow

    from qmamba.data.distort import to_pixels
    from qmamba.data.distortions import DISTORTIONS

    pixels = to_pixels(source)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    for path, (name, level) in plan.items():
        _save(Pillow.fromarray(DISTORTIONS[name](pixels, level, seed=seed, scale=scale)), path)


def _write_sheet(source: Path, name: str | None, out: Path, seed: int, scale: str) -> None:
    """Write the contact sheet of one distortion or of all."""
    from qmamba.analysis.sheet import contact_sheet
    from qmamba.data.distortions import find, find_scale

    _format(out)
    rows = None if name is None else [find(name)]
    for distortion in rows or ():
        find_scale(scale).parameter(distortion, 1)  # refuses a scale that does not cover it
    _save(contact_sheet(source, rows, seed=seed, scale=scale), out)


def _save(picture: PillowImage, path: Path) -> None:
    """Write a picture in the format of its name, as a whole or not at all, and print the name.

    Raises:
        DistortionError: it cannot be written in that format.
    """
    kind, buffer = _format(path), io.BytesIO()  # no partial file if a codec fails
    try:
        picture.save(buffer, kind, **_OPTIONS.get(kind, {}))
    except (OSError, ValueError) as error:  # such as an image too wide for the format
        raise DistortionError(f"{path}: cannot be written as {kind} ({error})") from error
    path.write_bytes(buffer.getvalue())
    typer.echo(str(path))
