"""`qmamba report FOLDER -o report.html`: a page to look through a folder with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qmamba.cli._find import named_images
from qmamba.cli._options import (
    AdapterOption,
    BatchSize,
    Device,
    Dtype,
    Force,
    MaxPixels,
    Model,
    Offline,
    Paths,
    Progress,
    ProtocolOption,
    Recursive,
    Revision,
)
from qmamba.cli._shared import bar_of, check_target, hushed, load_scorer, note, quiet_ends

EPILOG = """\
\b
Examples:
  qmamba report holiday/ -o report.html
  qmamba report "shots/**/*.png" -o report.html --force

\b
Exit code:
  0  every image was scored, and the page is there
  1  some images were not; the page lists them with what is wrong
  2  nothing was written: no images, an unknown model, a file that is there already
"""


def report(
    paths: Paths,
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML file to write.")],
    title: Annotated[str | None, typer.Option(help="Of the page. Default: what was scored.")] = None,
    model: Model = "lqmamba-n",
    adapter: AdapterOption = None,
    recursive: Recursive = False,
    force: Force = False,
    batch_size: BatchSize = 32,
    device: Device = None,
    dtype: Dtype = None,
    protocol: ProtocolOption = None,
    max_pixels: MaxPixels = None,
    revision: Revision = None,
    offline: Offline = False,
    progress: Progress = None,
) -> None:
    """Score images and write one page about them: thumbnails, maps, histogram, the best and the worst.

    The page is a single file that loads nothing from anywhere, so that it can be sent and kept.
    """
    with quiet_ends(), hushed():
        from qmamba.analysis.report import write_report
        from qmamba.images import printable

        check_target(out, force)
        files, whole = named_images(paths, recursive)
        scorer = load_scorer(model, device, dtype, protocol, revision, offline, adapter)
        with bar_of(len(files), progress) as bar:
            summary = write_report(
                out,
                scorer,
                files,
                title=title
                or f"Image quality: {', '.join(map(printable, paths[:3]))}" + " …" * (len(paths) > 3),
                batch_size=batch_size,
                max_pixels=max_pixels,
                done=bar.update,
            )
        typer.echo(str(out))
        if summary.failed:
            note(f"{summary.failed} of {len(files)} images could not be scored; the page says why")
    if summary.failed or not whole:
        raise typer.Exit(1)
