"""`qmamba photos`: public photographs, cut into crops and packed into shards for pretraining."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qmamba.cli._ratings import read_ratings
from qmamba.cli._shared import note
from qmamba.errors import DataSetError

if TYPE_CHECKING:
    from qmamba.data import Rated

EPILOG = """\
\b
Examples:
  qmamba photos --data biq2021=BIQ2021 --out shards
  qmamba photos --source clones --data biq2021=BIQ2021 --out shards
  qmamba photos --list

\b
Exit code:
  0  the shards are written, and their folder is on stdout
  2  a repository cannot be cloned, or the folder holds shards already
"""


def _list(wanted: bool) -> None:
    if wanted:
        from qmamba.data.photos import list_sources

        for source in list_sources():
            typer.echo(f"https://github.com/{source.repository}")
        raise typer.Exit()


def photos(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the shards: about 6 GB.")],
    source: Annotated[
        Path | None,
        typer.Option(help="Folder with clones of the repositories, also bare ones. Default: clone them."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "-d",
            metavar="DATA",
            help="Rated images, whose fold `train` is packed too: a CSV file (a column `set` tells several "
            "data sets apart), or biq2021=FOLDER.",
        ),
    ] = None,
    listing: Annotated[
        bool, typer.Option("--list", callback=_list, is_eager=True, help="List the repositories and exit.")
    ] = False,
) -> None:
    """Pack public photographs for pretraining: crops of 160 pixels, in shards of 59 MB.

    The repositories are cloned (4 GB), or taken from --source, where clones are named owner/name, owner+name,
    name or name.git. The same photographs give the same shards.
    """
    from qmamba.data.photos import pack

    rated = [] if data is None else _rated(data)
    folder = pack(out, clones=source, rated=rated, say=note)
    counts = json.loads((folder / "photos.json").read_text(encoding="utf-8"))
    note(f"{sum(counts.values())} photographs")
    typer.echo(str(folder))


def _rated(data: str) -> list[Rated]:
    """Return the photographs of the fold `train`: no others may be learnt from."""
    rated = [r for r in read_ratings(data) if r.fold == "train"]
    if not rated:
        raise DataSetError(f"{data}: no photographs are in the fold 'train'; add a column fold")
    return rated
