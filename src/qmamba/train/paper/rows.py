"""A row of a table: all runs of a recipe, medians over splits, and the paper's numbers."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...checkpoints.safetensors_file import replace_file
from ...checkpoints.start import no_start
from ..processes import is_first
from .recipe import PaperRecipe, Printed
from .runs import Run, Workshop, folder_of, identity, runs_of
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
    return {
        "recipe": asdict(recipe), "command": "", "config_sha256": config_sha256(recipe), "dry_run": False,
        "cells": cells,
    }  # fmt: skip


def config_sha256(recipe: PaperRecipe) -> str:
    """Return a digest of everything in a recipe that its numbers depend on, whatever the number of splits."""
    runs = [identity(run, recipe) for run in runs_of(recipe, 0)]
    return digest_of(json.dumps(run, sort_keys=True) for run in runs)


def digest_of(parts: Iterable[str]) -> str:
    """Return the SHA-256 digest of several texts in their order."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def do_row(recipe: PaperRecipe, shop: Workshop, path: Path, command: str = "") -> dict[str, Any]:
    """Do all runs of a recipe whose data exist, and rewrite the results file after each run.

    Args:
        shop: where and with what.
        path: of the results file, JSON.
        command: that repeats the row, for the results file.

    Returns:
        What is in it: ``recipe``, ``command``, ``config_sha256``, ``dry_run``, and ``cells`` with
        ``sources``, ``test``, ``paper``, ``absent`` (what is lacking, or None), ``name`` of the checkpoint
        or adapter, ``splits`` (the numbers of each, digests of its split and its images, and the folder of
        its weights) and ``median`` over them. Where a recipe has ``rates``, the numbers of a split are those
        of the rate with the highest SRCC on the fold "val", and ``rates`` has all of them.

    Raises:
        QMambaError: existing data or weights that cannot be used.
    """

    def absent(run: Run) -> str | None:
        lacks = [missing(name, shop.root) for name in run.sets]
        if not shop.dry:
            lacks.append(no_start(recipe.init_from, shop.root))
        return next((lack for lack in lacks if lack is not None), None)

    row = {**empty_row(recipe), "command": command, "dry_run": shop.dry}
    cells = row["cells"]
    for run, found in each_run(recipe, shop, absent):
        for cell in cells:
            if tuple(cell["sources"]) != run.sources or cell["test"] not in run.test:
                continue
            if isinstance(found, str):
                cell["absent"] = found
                continue
            cell["start"] = found["start"]["source"] or "random weights"
            cell["name"] = found["name"]
            _add(cell["splits"], _measured(run, recipe, found, cell["test"]))
            cell["median"] = median(cell["splits"])
        if is_first():
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, (json.dumps(row, indent=2) + "\n").encode())
    return row


def _measured(run: Run, recipe: PaperRecipe, found: Mapping[str, Any], test: str) -> dict[str, Any]:
    """Return the numbers of a cell in one split."""
    kind = "checkpoint" if run.base is None else "adapter"
    line = {
        "split": found["split"], **found["sets"][test], "split_sha256": found["hashes"][test]["split"],
        "images_sha256": found["hashes"][test]["images"],
        "weights": (folder_of(run, recipe) / kind).as_posix() if run.train else "",
    }  # fmt: skip
    if run.rate is not None:
        line["rate"] = f"{run.rate:g}"
        line["rates"] = {line["rate"]: found["val"][test]["srcc"]}
    return line


def _add(splits: list[dict[str, Any]], line: dict[str, Any]) -> None:
    """Add a split's numbers, or choose between those of several learning rates."""
    if "rates" not in line or not splits or splits[-1]["split"] != line["split"]:
        splits.append(line)
        return
    rates = {**splits[-1]["rates"], **line["rates"]}

    def held_out(each: Mapping[str, Any]) -> float:
        srcc = rates[each["rate"]]
        return -2.0 if srcc is None else srcc

    best = max(splits[-1], line, key=held_out)  # the earlier one if they are equal
    splits[-1] = {**best, "rates": rates}


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
