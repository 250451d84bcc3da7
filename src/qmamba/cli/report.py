"""`qmamba report FOLDER -o report.html`: a page to look through a folder with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qmamba.cli._command import with_groups
from qmamba.cli._find import named_images
from qmamba.cli._options import Force, Paths, Progress, ReadingOptions, Recursive, ScorerOptions
from qmamba.cli._progress import bar_of
from qmamba.cli._shared import check_target, hushed, note

EPILOG = """\
\b
Examples:
  qmamba report holiday/ -o report.html
  qmamba report "shots/**/*.png" -o report.html --force

\b
Exit code:
  0  every image was scored, and the page is written
  1  some images could not be scored; the page lists them and says why
  2  nothing was written: no images, an unknown model, a file that exists
"""


@with_groups
def report(
    paths: Paths,
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file to write.")],
    scorer: ScorerOptions,
    reading: ReadingOptions,
    title: Annotated[
        str | None, typer.Option(help="Title of the page. Default: the names of what was scored.")
    ] = None,
    recursive: Recursive = False,
    force: Force = False,
    progress: Progress = None,
) -> None:
    """Score images and write one page about them: thumbnails, maps, histogram, the best and the worst.

    The page is a single file that loads nothing else, so that it can be sent and archived.
    """
    with hushed():
        from qmamba.analysis.report import write_report

        check_target(out, force)
        files, is_complete = named_images(paths, recursive)
        loaded = scorer.load()
        with bar_of(len(files), progress) as bar:
            summary = write_report(
                out, loaded, files, title=title or _title(paths), done=bar.update, **reading.to_dict()
            )
        typer.echo(str(out))
        if summary.failed:
            note(f"{summary.failed} of {len(files)} images could not be scored; the page says why")
    if summary.failed or not is_complete:
        raise typer.Exit(1)


def _title(paths: list[str]) -> str:
    from qmamba.images import printable

    return f"Image quality: {', '.join(map(printable, paths[:3]))}" + " …" * (len(paths) > 3)
