"""`qmamba data`: data sets checked, divided into folds, and searched for duplicates."""

from __future__ import annotations

import csv
import json
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmamba.cli._options import Progress
from qmamba.cli._shared import bar_of, note, printable, quiet_ends

if TYPE_CHECKING:
    from qmamba.data import Rated

LIST_EPILOG = """\
\b
Examples:
  qmamba data list
"""

CHECK_EPILOG = """\
\b
Examples:
  qmamba data check koniq10k KonIQ-10k
  qmamba data check live LIVE --manifest mine.csv
  qmamba data check manifest ratings.csv

\b
Exit code:
  0  the data set is whole: all counts are as expected, and every image can be opened
  1  something is wrong, and is on stdout
  2  it could not be read at all; stderr says what is missing
"""

SPLITS_EPILOG = """\
\b
Examples:
  qmamba data splits livec ChallengeDB_release --out splits
  qmamba data splits kadid10k kadid10k --convention loda --count 10 --out splits

\b
Exit code:
  0  the files are there, and their names are on stdout
  2  they are not: no such data set, a wrong option, other files of these names
"""

DUPLICATES_EPILOG = """\
\b
Examples:
  qmamba data duplicates koniq10k KonIQ-10k
  qmamba data duplicates koniq10k KonIQ-10k --split splits/koniq10k-deiqt-0-00.csv

\b
Exit code:
  0  there are none
  1  there are some; a row of stdout names each pair
  2  the data set could not be read
"""

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="From `qmamba data list`, or `manifest` for one's own ratings.")
]
Root = Annotated[
    Path, typer.Argument(metavar="ROOT", help="The data set's folder; for `manifest`, the CSV file.")
]
Manifest = Annotated[
    Path | None,
    typer.Option(
        help="CSV file with image (from ROOT) and mos, or dmos for DMOS sets, in place of its label files."
    ),
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Threads that open images. Default: one a processor.")
]


class DataFormat(str, Enum):
    """How `qmamba data check` writes what it found."""

    text = "text"
    json = "json"


class ConventionName(str, Enum):
    """The protocols whose splits can be drawn."""

    deiqt = "deiqt"
    loda = "loda"


def list_all() -> None:
    """List the data sets that can be read; docs/data.md has the files that each is expected to have."""
    with quiet_ends():
        from qmamba.data import DATASETS

        rows = [("name", "images", "references", "scale", "layout", "from")]
        rows += [
            (
                d.name,
                f"{d.images:,}",
                str(d.references or "-"),
                f"{d.scale[0]} to {d.scale[1]} {'DMOS' if d.direction == 'lower' else 'MOS'}",
                "verified" if d.verified else "unverified",
                d.home,
            )
            for d in DATASETS.values()
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (text.ljust(width) for text, width in zip(row, widths, strict=True))
            typer.echo("  ".join(cells).rstrip())


def check(
    name: Name,
    root: Root,
    manifest: Manifest = None,
    form: Annotated[DataFormat, typer.Option("--format", "-f", help="How it is written.")] = DataFormat.text,
    workers: Workers = None,
    progress: Progress = None,
) -> None:
    """Count a data set's labels and open every one of its images."""
    with quiet_ends():
        from qmamba.data.checking import check_dataset
        from qmamba.data.datasets import MANIFEST, find, read_dataset

        ratings = read_dataset(name, root, manifest=manifest)
        facts = None if name == MANIFEST else find(name)
        with bar_of(len(ratings), progress) as bar:
            report = check_dataset(ratings, facts, workers=workers, done=bar.update)
        title = root.name if facts is None else facts.title
        scale = "" if facts is None else f", on a scale of {facts.scale[0]} to {facts.scale[1]}"
        turned = ", turned DMOS" if facts is not None and facts.direction == "lower" else ""
        if form is DataFormat.json:
            found = {
                "data": title,
                "images": report.images,
                "expected": None if facts is None else facts.images,
                "mos": report.mos,
                "with_std": report.with_std,
                "references": report.references,
                "distortions": report.distortions,
                "problems": report.problems,
            }
            typer.echo(json.dumps(found, indent=2))
        else:
            expected = "" if facts is None else f" of {facts.images:,}"
            typer.echo(f"{printable(title)}: {report.images:,}{expected} images")
            typer.echo(f"scores       {report.mos[0]:g} to {report.mos[1]:g}{scale}{turned}")
            typer.echo(f"deviations   {report.with_std:,}")
            typer.echo(f"references   {report.references:,}")
            typer.echo(f"distortions  {report.distortions:,}")
            for problem in report.problems:
                typer.echo(f"problem      {printable(problem)}")
        if report.problems:
            raise typer.Exit(1)


def splits(
    name: Name,
    root: Root,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the files, made where it is not there.")
    ],
    manifest: Manifest = None,
    convention: Annotated[
        ConventionName, typer.Option("--convention", "-c", help="The protocol whose splits they are.")
    ] = ConventionName.deiqt,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many.")] = 10,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Default: the convention's own, 0 for deiqt and 3407 for loda.")
    ] = None,
) -> None:
    """Draw splits of 80 % for training and 20 % for testing, and write them as CSV files.

    By reference where every image has one, so that no original is in both; otherwise by image.
    """
    with quiet_ends():
        from qmamba.data.splitting import make_splits, save_split

        ratings, folder, label = _read(name, root, manifest)
        for split in make_splits(ratings, convention.value, count=count, seed=seed):
            path = out / f"{label}-{split.name}.csv"
            save_split(split, ratings, folder, path)
            typer.echo(str(path))


def duplicates(
    name: Name,
    root: Root,
    manifest: Manifest = None,
    split: Annotated[
        Path | None,
        typer.Option(help="A file of `qmamba data splits`: look for pairs across its folds, and no others."),
    ] = None,
    distance: Annotated[
        int | None, typer.Option(min=0, max=63, help="The most bits of 64 that may differ. Default: 8.")
    ] = None,
    workers: Workers = None,
    progress: Progress = None,
) -> None:
    """Find images that look alike, by perceptual hash: `distance,first,second` as CSV, nearest first.

    Without --split, images of one reference are not compared: they look alike by design. Needs ImageHash:
    pip install "qmamba[data]".
    """
    with quiet_ends():
        from qmamba.data.duplicates import DISTANCE, find_duplicates
        from qmamba.data.splitting import read_split

        ratings, folder, _ = _read(name, root, manifest)
        if split is not None:
            ratings = read_split(split, ratings, folder)
        with bar_of(len(ratings), progress) as bar:
            found = find_duplicates(
                ratings,
                distance=DISTANCE if distance is None else distance,
                across_folds=split is not None,
                workers=workers,
                done=bar.update,
            )
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["distance", "first", "second"])
        for pair in found:
            writer.writerow([pair.distance, ratings[pair.first].path, ratings[pair.second].path])
        if found:
            note(f"{len(found):,} pairs of {len(ratings):,} images look alike")
            raise typer.Exit(1)


def _read(name: str, root: Path, manifest: Path | None) -> tuple[list[Rated], Path, str]:
    """The images, the folder that their names start at, and what to call them in file names."""
    from qmamba.data.datasets import MANIFEST, find, read_dataset

    ratings = read_dataset(name, root, manifest=manifest)
    return (ratings, root.parent, root.stem) if name == MANIFEST else (ratings, root, find(name).name)


def build(**options: Any) -> typer.Typer:
    """The group of commands, with the options of the whole."""
    group = typer.Typer(no_args_is_help=True, **options)
    group.callback()(_about)
    group.command("list", epilog=LIST_EPILOG)(list_all)
    group.command("check", no_args_is_help=True, epilog=CHECK_EPILOG)(check)
    group.command("splits", no_args_is_help=True, epilog=SPLITS_EPILOG)(splits)
    group.command("duplicates", no_args_is_help=True, epilog=DUPLICATES_EPILOG)(duplicates)
    return group


def _about() -> None:
    """Data sets of image quality assessment: check them, divide them into folds, find duplicates."""
