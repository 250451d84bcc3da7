"""`qmamba publish FOLDER`: a checkpoint or an adapter on the Hub, and its line for an index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qmamba.cli._shared import note

EPILOG = """\
\b
Examples:
  qmamba publish runs/mine --to lab --dry-run
  qmamba publish reproduced/runs/lqmamba-t-koniq10k-1a2b3c4d/split-00 --to lab --license MIT
  qmamba publish runs/stills/adapter --to lab/stills-adapter --name lqmamba-n-stills

\b
Exit code:
  0  it is published, or passes all checks with --dry-run; its index line is on stdout
  2  nothing was sent: stderr says what is missing, or why the Hub refused
"""


def publish(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Checkpoint or adapter, or the run that made it.")
    ],
    to: Annotated[str, typer.Option("--to", help="Hub user, or USER/REPO. Default REPO: the name.")],
    name: Annotated[
        str | None, typer.Option(help="Name for `qmamba.load`. Default: the one that its config has.")
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option(
            "--license",
            metavar="LICENSE",
            help="License of the weights, for the card. Default: its config's.",
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the index line, and send nothing.")
    ] = False,
) -> None:
    """Publish a checkpoint or an adapter on the Hugging Face Hub, and print its line for an index.

    Weights must have the digest of their config, and the folder a card, a licence, data sets, a calibration
    and an evaluation. Everybody with the line in an index (QMAMBA_INDEX) loads the model by its name.
    """
    from qmamba.publishing import prepare
    from qmamba.publishing import publish as upload

    publication = prepare(folder, to, name, licence)
    if dry_run:
        sizes = {file: (publication.folder / file).stat().st_size for file in publication.files}
        files = ", ".join(f"{file} ({size:,} bytes)" for file, size in sizes.items())
        note(f"dry run, nothing was sent; {publication.entry.repo} would get {files}")
        entry = publication.entry
    else:
        entry = upload(publication, private=private)
        note(f"published at {entry.repo}; add this line below [{publication.kind}] of an index, models.toml")
    typer.echo(entry.line())
