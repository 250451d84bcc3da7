"""`qmamba reproduce TABLE`: the rows of a published table, beside the paper's numbers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qmamba.cli._options import Progress
from qmamba.cli._paper import Cache, Log, Workers, on_cpu, watched, workers_or_default
from qmamba.cli._shared import quiet_ends, tell_missing_kernel
from qmamba.cli._watch import Minutes
from qmamba.errors import RecipeError

if TYPE_CHECKING:
    from qmamba.train.paper import PaperRecipe

EPILOG = """\
\b
Examples:
  qmamba reproduce --list
  qmamba reproduce table1 --data-root DATA --rows lqmamba-t --splits 1
  accelerate launch -m qmamba reproduce table1 --data-root DATA
  qmamba reproduce table3 --data-root DATA --dry-run

\b
Exit code:
  0    all rows are there
  1    some cells are absent: their data, or what they start from; the table says which
  2    nothing was run: no such table or row, data that are not as expected
  3    --minutes are over; the same command goes on from there
  130  ended by Ctrl-C; the same command goes on from there
"""


class TableFormat(str, Enum):
    """How rows are written."""

    table = "table"
    json = "json"


def _list(wanted: bool) -> None:
    if wanted:
        from qmamba.train.paper import list_paper_recipes

        typer.echo("\n".join(list_paper_recipes()))
        raise typer.Exit()


def reproduce(
    table: Annotated[
        str,
        typer.Argument(metavar="TABLE", help="What stands before the slash in `qmamba reproduce --list`."),
    ],
    data_root: Annotated[
        Path,
        typer.Option(
            "--data-root", "-d", help="The folder that has each set in a folder (or link) of its name."
        ),
    ],
    rows: Annotated[
        list[str] | None, typer.Option("--rows", "-r", help="A row; may be given repeatedly. Default: all.")
    ] = None,
    splits: Annotated[int | None, typer.Option(min=1, help="How many. Default: the recipe's, ten.")] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for runs, and results in OUT/results/TABLE/ROW.json.")
    ] = Path("reproduced"),
    init: Annotated[
        str | None,
        typer.Option(
            help="To start all rows from: a file in the data root, a name, a Hub id, or `random`. "
            "Default: as each recipe says."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Two images a set, two steps, small crops; nothing is kept.")
    ] = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="Leave accelerators alone.")] = False,
    log: Log = None,
    workers: Workers = None,
    cache: Cache = None,
    minutes: Minutes = None,
    form: Annotated[
        TableFormat, typer.Option("--format", "-f", help="How rows are written.")
    ] = TableFormat.table,
    progress: Progress = None,
    listing: Annotated[
        bool, typer.Option("--list", callback=_list, is_eager=True, help="List tables and rows, and exit.")
    ] = False,
) -> None:
    """Run the rows of a published table, or go on with them, and print them beside the paper's numbers.

    What has been done is not done again. docs/reproducing.md describes the protocols and the data root.
    """
    with quiet_ends():
        from qmamba.train.paper import Workshop, do_row, is_first
        from qmamba.train.paper.report import row_text
        from qmamba.train.paper.runs import dry_recipe

        chosen = {name: _changed(plan, splits, init) for name, plan in _choose(table, rows).items()}
        many, done = workers_or_default(workers, cpu), {}
        if is_first() and on_cpu(cpu):
            tell_missing_kernel("cpu")
        with _folder(out, dry_run) as folder, watched(minutes, progress) as watch:
            tracker = None if log is None else log.value
            shop = Workshop(data_root, folder / "runs", cpu, tracker, many, dry_run, cache, watch)
            for name, plan in chosen.items():
                plan = dry_recipe(plan) if dry_run else plan
                done[name] = row = do_row(plan, shop, folder / "results" / f"{name}.json")
                if is_first() and form is TableFormat.table:
                    watch.bar.clear()
                    typer.echo(row_text(name, row))
        if is_first() and form is TableFormat.json:
            typer.echo(json.dumps(done, indent=2))
        if any(cell["absent"] for row in done.values() for cell in row["cells"]):
            raise typer.Exit(1)


def _choose(table: str, rows: list[str] | None) -> dict[str, PaperRecipe]:
    """The recipes of a table's rows by name, in the order of the table."""
    from qmamba.train import load_recipe
    from qmamba.train.paper import list_paper_recipes

    known = [name for name in list_paper_recipes() if name.split("/")[0] == table]
    if not known:
        tables = ", ".join(dict.fromkeys(name.split("/")[0] for name in list_paper_recipes()))
        raise RecipeError(f"no table is called {table!r}: choose from {tables}")
    wanted = [f"{table}/{row}" for row in rows] if rows else known
    if strange := [name for name in wanted if name not in known]:
        names = ", ".join(name.split("/")[1] for name in known)
        raise RecipeError(f"{table} has no row {strange[0].split('/', 1)[1]!r}: its rows are {names}")
    return {name: load_recipe(name) for name in wanted}


def _changed(plan: PaperRecipe, splits: int | None, init: str | None) -> PaperRecipe:
    plan = plan if splits is None else replace(plan, splits=splits)
    return plan if init is None else replace(plan, init_from="" if init == "random" else init)


@contextmanager
def _folder(out: Path, dry_run: bool) -> Iterator[Path]:
    """Where results go: what a dry run makes is thrown away."""
    if not dry_run:
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="qmamba-dry-run-") as folder:
        yield Path(folder)
