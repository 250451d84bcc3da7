"""`qmamba photos`: public photographs, cut into crops and packed into shards for pretraining."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from qmamba.cli._shared import note, quiet_ends

EPILOG = """\
\b
Examples:
  qmamba photos --biq2021 BIQ2021 --out shards
  qmamba photos --source clones --biq2021 BIQ2021 --out shards
  qmamba photos --list

\b
Exit code:
  0    the shards are there, and their folder is on stdout
  2    a repository cannot be had, or the folder holds shards already
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
        typer.Option(help="Folder with clones that are there already, bare ones too. Default: clone them."),
    ] = None,
    biq2021: Annotated[
        Path | None, typer.Option(help="Folder with BIQ2021: its training fold is packed too, with ratings.")
    ] = None,
    listing: Annotated[
        bool, typer.Option("--list", callback=_list, is_eager=True, help="List the repositories and exit.")
    ] = False,
) -> None:
    """Pack public photographs for pretraining: crops of 160 pixels, in shards of 59 MB.

    The repositories are cloned (4 GB), or taken from --source, where a clone is looked for as owner/name,
    owner+name, name or name.git. The same photographs give the same shards.
    """
    with quiet_ends():
        from qmamba.data import read_biq2021
        from qmamba.data.photos import pack

        rated = [] if biq2021 is None else read_biq2021(biq2021, ["train"])
        folder = pack(out, clones=source, rated=rated, say=note)
        counts = json.loads((folder / "photos.json").read_text(encoding="utf-8"))
        note(f"{sum(counts.values())} photographs")
        typer.echo(str(folder))
