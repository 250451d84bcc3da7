"""`qmamba data`: check data sets, divide them into folds, and search them for duplicates."""

from __future__ import annotations

import csv
import json
import math
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmamba.cli._command import Command
from qmamba.cli._find import named_images
from qmamba.cli._options import Force, OutputFormat, Progress, Recursive, ReportFormat
from qmamba.cli._progress import bar_of
from qmamba.cli._ratings import DataArgument, Manifest, source_of
from qmamba.cli._shared import columns, hushed, note, printable
from qmamba.errors import DataSetError

if TYPE_CHECKING:
    from qmamba.data import DataSet, Rated

LIST_EPILOG = """\
\b
Examples:
  qmamba data list
"""

CHECK_EPILOG = """\
\b
Examples:
  qmamba data check koniq10k=KonIQ-10k
  qmamba data check live=LIVE --manifest mine.csv
  qmamba data check ratings.csv

\b
Exit code:
  0  the data set is complete: all counts are as expected, and every image can be opened
  1  something is wrong; stdout says what
  2  the data set could not be read; stderr says what is missing
"""

SPLITS_EPILOG = """\
\b
Examples:
  qmamba data splits livec=ChallengeDB_release --out splits
  qmamba data splits kadid10k=kadid10k --convention loda --count 10 --out splits
  qmamba data splits agiqa3k=AIGC --by reference --out splits

\b
Exit code:
  0  the files are written, and their names are on stdout
  2  nothing was written: no such data set, a wrong option, other files of these names
"""

DUPLICATES_EPILOG = """\
\b
Examples:
  qmamba data duplicates photos/ -r
  qmamba data duplicates koniq10k=KonIQ-10k
  qmamba data duplicates koniq10k=KonIQ-10k --split splits/koniq10k-deiqt-0-00.csv

\b
Exit code:
  0  no duplicates were found
  1  duplicates were found, and stdout has a row for each pair; or images could not be opened, and stderr
     names them
  2  the data set could not be read, or the folder has no images
"""

Workers = Annotated[int | None, typer.Option(min=1, help="Threads that open images. Default: one per CPU.")]


class ConventionName(str, Enum):
    """Conventions by which splits are drawn."""

    deiqt = "deiqt"
    loda = "loda"


class SplitBy(str, Enum):
    """What splits divide."""

    image = "image"
    reference = "reference"


def list_all() -> None:
    """List the data sets that can be read; docs/data.md shows the files that each must have."""
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
    typer.echo(columns(rows))


def check(
    data: DataArgument,
    manifest: Manifest = None,
    form: OutputFormat = ReportFormat.table,
    workers: Workers = None,
    progress: Progress = None,
) -> None:
    """Count a data set's labels and open every one of its images."""
    from qmamba.data.checking import check_dataset
    from qmamba.data.datasets import find

    source = source_of(data)
    ratings = source.read(manifest)
    facts = None if source.is_manifest else find(source.name)
    with bar_of(len(ratings), progress) as bar:
        report = check_dataset(ratings, facts, workers=workers, done=bar.update)
    title = source.path.name if facts is None else facts.title
    if form is ReportFormat.json:
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
        typer.echo(_report_text(report, title, facts))
    if report.problems:
        raise typer.Exit(1)


def _report_text(report: Any, title: str, facts: DataSet | None) -> str:
    expected = "" if facts is None else f" of {facts.images:,}"
    scale = "" if facts is None else f", on a scale of {facts.scale[0]} to {facts.scale[1]}"
    inverted = ", inverted DMOS" if facts is not None and facts.direction == "lower" else ""
    lines = [
        f"{printable(title)}: {report.images:,}{expected} images",
        f"scores       {report.mos[0]:g} to {report.mos[1]:g}{scale}{inverted}",
        f"deviations   {report.with_std:,}",
        f"references   {report.references:,}",
        f"distortions  {report.distortions:,}",
        *(f"problem      {printable(problem)}" for problem in report.problems),
    ]
    return "\n".join(lines)


def splits(
    data: DataArgument,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the files, created if it does not exist.")
    ],
    manifest: Manifest = None,
    convention: Annotated[
        ConventionName, typer.Option("--convention", "-c", help="Convention by which splits are drawn.")
    ] = ConventionName.deiqt,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Number of splits.")] = 10,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Random seed. Default: the convention's, 0 for deiqt, 3407 for loda."),
    ] = None,
    by: Annotated[
        SplitBy | None,
        typer.Option(help="What is divided. Default: references, if each image has one; else images."),
    ] = None,
    force: Force = False,
) -> None:
    """Draw splits of 80 % for training and 20 % for testing, and write them as CSV files.

    By reference, no original is in both parts. AGIQA-3K is split by image, as published results are, unless
    --by reference keeps the images of a prompt together.
    """
    from qmamba.data.datasets import find
    from qmamba.data.splitting import make_splits, save_split

    source = source_of(data)
    ratings = source.read(manifest)
    usual = None if source.is_manifest else find(source.name).split_by
    by_what = usual if by is None else by.value
    for split in make_splits(ratings, convention.value, count=count, seed=seed, by=by_what):
        path = out / f"{source.label}-{split.name}{'' if by is None else f'-by-{by.value}'}.csv"
        if force:
            path.unlink(missing_ok=True)
        save_split(split, ratings, source.root, path)
        typer.echo(str(path))


def duplicates(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="A folder of images, a CSV file with image and mos, or NAME=FOLDER for a known data set.",
        ),
    ],
    manifest: Manifest = None,
    split: Annotated[
        Path | None,
        typer.Option(help="File of `qmamba data splits`: list only pairs across its folds."),
    ] = None,
    distance: Annotated[
        int | None, typer.Option(min=0, max=63, help="Maximum number of differing bits, of 64. Default: 8.")
    ] = None,
    recursive: Recursive = False,
    workers: Workers = None,
    progress: Progress = None,
) -> None:
    """Find images that look alike, by perceptual hash: `distance,first,second` as CSV, nearest first.

    Images that cannot be opened are named on stderr and passed over. Without --split, images of one
    reference are not compared: they look alike by design. Needs ImageHash: pip install "qmamba[data]".
    """
    with hushed():
        from qmamba.data.duplicates import DISTANCE, find_duplicates

        ratings = _to_compare(data, manifest, split, recursive)
        with bar_of(len(ratings), progress) as bar:
            found = find_duplicates(
                ratings,
                distance=DISTANCE if distance is None else distance,
                across_folds=split is not None,
                workers=workers,
                done=bar.update,
            )
        for index, reason in found.broken.items():
            note(f"{ratings[index].path} cannot be opened: {reason}")
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["distance", "first", "second"])
    for pair in found.pairs:
        writer.writerow([pair.distance, ratings[pair.first].path, ratings[pair.second].path])
    if found.broken:
        note(f"{len(found.broken):,} of {len(ratings):,} images cannot be opened and were passed over")
    if found.pairs:
        note(f"{len(found.pairs):,} pairs of {len(ratings):,} images look alike")
    if found.pairs or found.broken:
        raise typer.Exit(1)


def _to_compare(data: str, manifest: Path | None, split: Path | None, recursive: bool) -> list[Rated]:
    """Return the images of a folder, or of a data set."""
    from qmamba.data import Rated
    from qmamba.data.splitting import read_split

    if Path(data).is_dir():
        if manifest is not None or split is not None:
            raise DataSetError(f"--manifest and --split go with a data set; give NAME={data}, or neither")
        return [Rated(path, math.nan) for path in named_images([data], recursive)[0]]
    source = source_of(data)
    ratings = source.read(manifest)
    return ratings if split is None else read_split(split, ratings, source.root)


def build(**options: Any) -> typer.Typer:
    """Return the group of commands; `options` are those of the whole program."""
    group = typer.Typer(no_args_is_help=True, **options)
    group.callback()(_about)
    group.command("list", cls=Command, epilog=LIST_EPILOG)(list_all)
    group.command("check", cls=Command, no_args_is_help=True, epilog=CHECK_EPILOG)(check)
    group.command("splits", cls=Command, no_args_is_help=True, epilog=SPLITS_EPILOG)(splits)
    group.command("duplicates", cls=Command, no_args_is_help=True, epilog=DUPLICATES_EPILOG)(duplicates)
    return group


def _about() -> None:
    """Check data sets of image quality assessment, divide them into folds, and find duplicates."""
