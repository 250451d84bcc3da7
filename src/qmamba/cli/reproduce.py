"""`qmamba reproduce TABLE`: the rows of a published table, beside the paper's numbers."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qmamba.cli._command import with_groups
from qmamba.cli._options import OutputFormat, ReportFormat
from qmamba.cli._paper import PaperOptions, watched, with_start
from qmamba.cli._shared import columns
from qmamba.cli._watch import WatchOptions
from qmamba.errors import ArgumentError, RecipeError

if TYPE_CHECKING:
    from qmamba.train.paper import PaperRecipe, Workshop

EPILOG = """\
\b
Examples:
  qmamba reproduce --list
  qmamba reproduce table1 --data-root DATA --rows lqmamba-t --splits 1
  qmamba reproduce table1 --data-root DATA --rows lqmamba-t/koniq
  qmamba reproduce table3 --data-root DATA --rows style-prompt/koniq-livec-to-agiqa
  qmamba reproduce agiqa3k --data-root DATA --estimate
  accelerate launch -m qmamba reproduce table1 --data-root DATA
  qmamba reproduce table3 --data-root DATA --dry-run

\b
Exit code:
  0    all rows are complete
  1    some cells are absent: their data, or the weights that they start from; the table says which
  2    nothing was run: no such table or row, no data root, data that are not as expected
  3    the time limit of --minutes is reached; the same command resumes the run
  130  stopped by Ctrl-C; the same command resumes the run
"""


def _list(wanted: bool) -> None:
    if wanted:
        from qmamba.train.paper import list_paper_recipes

        typer.echo("\n".join(list_paper_recipes()))
        raise typer.Exit()


@with_groups
def reproduce(
    table: Annotated[
        str, typer.Argument(metavar="TABLE", help="Part before the slash in `qmamba reproduce --list`.")
    ],
    paper: PaperOptions,
    limits: WatchOptions,
    data_root: Annotated[
        Path | None,
        typer.Option(help="Folder that holds each set in a folder (or link) of the set's name. Required."),
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option(
            "--rows", help="Row to run, or ROW/SET for a part of it; repeatable. Default: all rows."
        ),
    ] = None,
    splits: Annotated[
        int | None, typer.Option(min=1, help="Number of splits. Default: the recipe's, ten.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for runs, and for results/TABLE/ROW.json.")
    ] = Path("reproduced"),
    init: Annotated[
        str | None,
        typer.Option(
            help="Weights to start all rows from: a file in the data root, a name, a Hub id, `bases` for "
            "the architecture's base models, or `random`. Default: the recipe's."
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Try two images per set, two steps, small crops; keep no results."),
    ] = False,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate", help="Measure a few steps, print how long the rows take, and run nothing."
        ),
    ] = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="Use the CPU even if there is a GPU.")] = False,
    form: OutputFormat = ReportFormat.table,
    listing: Annotated[
        bool, typer.Option("--list", callback=_list, is_eager=True, help="List tables and rows, and exit.")
    ] = False,
) -> None:
    """Run the rows of a published table, and print them beside the paper's numbers.

    Each row ends with the command that repeats it, the names of its checkpoints, and digests of its
    configuration, splits and images. Finished runs are not repeated, and the same command resumes an
    interrupted one. docs/reproducing.md describes the protocols and the data root.
    """
    from qmamba.train.paper import do_row, is_first
    from qmamba.train.paper.report import row_text
    from qmamba.train.paper.runs import dry_recipe

    recipes = {name: _changed(recipe, splits, init) for name, recipe in _choose(table, rows).items()}
    root, done = _checked_root(data_root, recipes), {}
    if estimate:
        _print_estimates(recipes, paper.shop(root, out / "runs", cpu=cpu), form)
        return
    with _folder(out, dry_run) as folder, watched(limits) as watch:
        shop = paper.shop(root, folder / "runs", cpu=cpu, watch=watch, dry=dry_run)
        for name, recipe in recipes.items():
            recipe = dry_recipe(recipe) if dry_run else recipe
            path = folder / "results" / f"{name}.json"
            command = _command(name, splits, init) + " --dry-run" * dry_run
            done[name] = row = do_row(recipe, shop, path, command)
            if is_first() and form is ReportFormat.table:
                watch.bar.clear()
                typer.echo(row_text(name, row))
    if is_first() and form is ReportFormat.json:
        typer.echo(json.dumps(done, indent=2))
    if any(cell["absent"] for row in done.values() for cell in row["cells"]):
        raise typer.Exit(1)


def _command(name: str, splits: int | None, init: str | None) -> str:
    """Return the command that repeats a row on another machine."""
    table, row = name.split("/", 1)
    options = {"--rows": row, "--splits": splits, "--init": init}
    given = [word for key, value in options.items() if value is not None for word in (key, str(value))]
    return shlex.join(["qmamba", "reproduce", table, *given, "--data-root", "DATA"])


def _print_estimates(recipes: dict[str, PaperRecipe], shop: Workshop, form: ReportFormat) -> None:
    from qmamba.train.estimate import in_words
    from qmamba.train.paper.cost import estimate_rows

    found = estimate_rows(recipes, shop)
    if form is ReportFormat.json:
        typer.echo(json.dumps([asdict(cost) for cost in found], indent=2))
        return
    lines = [("row", "runs", "steps", "seconds per step", "time", "CPU hours")]
    for cost in found:
        if cost.absent:
            lines.append((cost.row, "-", "-", "-", f"absent: {cost.absent}", "-"))
            continue
        counts = (str(cost.runs), f"{cost.steps:,}", f"{cost.step_seconds:.2f}")
        lines.append((cost.row, *counts, in_words(cost.seconds), f"{cost.cpu_hours:.2f}"))
    elapsed, cpu = sum(cost.seconds for cost in found), sum(cost.cpu_hours for cost in found)
    lines.append(("all", "", "", "", in_words(elapsed), f"{cpu:.2f}"))
    typer.echo(columns(lines))


def _checked_root(root: Path | None, recipes: dict[str, PaperRecipe]) -> Path:
    """Return the data root, or say which folders it must hold.

    Raises:
        ArgumentError: none was given, or it is not a folder.
    """
    if root is not None and root.is_dir():
        return root
    names = dict.fromkeys(name for recipe in recipes.values() for name in recipe.sets)
    problem = "--data-root is missing" if root is None else f"--data-root {root} is not a folder"
    raise ArgumentError(
        f"{problem}; give the folder that holds the data sets as folders, links or CSV files named "
        f"{', '.join(names)} (those that are absent are left out; see docs/reproducing.md)"
    )


def _choose(table: str, rows: list[str] | None) -> dict[str, PaperRecipe]:
    """Return the recipes of a table's rows by name, in the order of the table."""
    from qmamba.train import load_recipe
    from qmamba.train.paper import list_paper_recipes
    from qmamba.train.paper.names import narrowed

    known = [name for name in list_paper_recipes() if name.split("/")[0] == table]
    if not known:
        tables = ", ".join(dict.fromkeys(name.split("/")[0] for name in list_paper_recipes()))
        raise RecipeError(f"TABLE must be one of {tables}, got {table!r}")
    chosen = {}
    for wanted in rows or [name.split("/")[1] for name in known]:
        row, _, part = wanted.partition("/")
        if f"{table}/{row}" not in known:
            names = ", ".join(name.split("/")[1] for name in known)
            raise RecipeError(f"--rows must be of {table}: {names}; got {row!r}")
        recipe = load_recipe(f"{table}/{row}")
        chosen[f"{table}/{wanted}"] = narrowed(recipe, part) if part else recipe
    return chosen


def _changed(recipe: PaperRecipe, splits: int | None, init: str | None) -> PaperRecipe:
    recipe = recipe if splits is None else replace(recipe, splits=splits)
    return with_start(recipe, init)


@contextmanager
def _folder(out: Path, dry_run: bool) -> Iterator[Path]:
    """Yield the folder for results; that of a dry run is deleted afterwards."""
    if not dry_run:
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="qmamba-dry-run-") as folder:
        yield Path(folder)
