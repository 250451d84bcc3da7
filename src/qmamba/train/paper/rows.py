"""A row of a table: all runs of a recipe, medians over splits, and the paper's numbers."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...checkpoints.safetensors_file import replace_file
from ...checkpoints.start import no_start
from ..processes import is_first
from .recipe import PaperRecipe, Printed
from .runs import Run, Workshop
from .sets import missing
from .task import each_run

METRICS = ("srcc", "plcc", "plcc_fitted")


@dataclass(frozen=True)
class Cell:
    """A cell of a row: what was learnt, what was measured, and what the paper prints there.

    Attributes:
        sources: sets that the network learnt.
        test: set that it was measured on.
        paper: printed PLCC and SRCC, None where there are none.
    """

    sources: tuple[str, ...]
    test: str
    paper: tuple[float, float] | None


def cells_of(recipe: PaperRecipe) -> list[Cell]:
    """Return the cells of a row, in the order of the table."""

    def cells(sources: tuple[str, ...], tests: tuple[str, ...], paper: Printed) -> list[Cell]:
        return [Cell(sources, name, paper.get(name)) for name in tests]

    if recipe.task == "single":
        return [cell for name in recipe.data for cell in cells((name,), (name,), recipe.paper)]
    if recipe.task == "universal":
        return cells(recipe.data, recipe.data, recipe.paper)
    return [cell for t in recipe.transfers for cell in cells(t.sources, t.targets, t.paper)]


def empty_row(recipe: PaperRecipe) -> dict[str, Any]:
    """Return what :func:`do_row` returns, with nothing done yet."""
    cells = [{**asdict(cell), "absent": None, "splits": []} for cell in cells_of(recipe)]
    return {"recipe": asdict(recipe), "dry_run": False, "cells": cells}


def do_row(recipe: PaperRecipe, shop: Workshop, path: Path) -> dict[str, Any]:
    """Do all runs of a recipe whose data exist, and rewrite the results file after each run.

    Args:
        shop: where and with what.
        path: of the results file, JSON.

    Returns:
        What is in it: ``recipe``, ``dry_run``, and ``cells`` with ``sources``, ``test``, ``paper``,
        ``absent`` (what is missing, or None), ``splits`` (the numbers of each) and ``median`` over them.

    Raises:
        QMambaError: existing data or weights that cannot be used.
    """

    def absent(run: Run) -> str | None:
        lacks = [missing(name, shop.root) for name in run.sets]
        if not shop.dry:
            lacks.append(no_start(recipe.init_from, shop.root))
        return next((lack for lack in lacks if lack is not None), None)

    row = {**empty_row(recipe), "dry_run": shop.dry}
    cells = row["cells"]
    for run, found in each_run(recipe, shop, absent):
        for cell in cells:
            if tuple(cell["sources"]) != run.sources or cell["test"] not in run.test:
                continue
            if isinstance(found, str):
                cell["absent"] = found
                continue
            cell["start"] = found["start"]["source"] or "random weights"
            cell["splits"].append({"split": found["split"], **found["sets"][cell["test"]]})
            cell["median"] = median(cell["splits"])
        if is_first():
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, (json.dumps(row, indent=2) + "\n").encode())
    return row


def median(splits: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Return the median of each metric over the splits in which it is defined.

    >>> median([{"srcc": 0.5}, {"srcc": 0.75}, {"srcc": None}])["srcc"]
    0.625
    """
    found: dict[str, float | None] = {}
    for name in METRICS:
        values = [s[name] for s in splits if s.get(name) is not None]
        found[name] = round(statistics.median(values), 6) if values else None
    return found
