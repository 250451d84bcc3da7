"""What `qmamba train` and `qmamba reproduce` share: recipes of the paper's kind, run on accelerate."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qmamba.cli._shared import tell_missing_kernel
from qmamba.cli._watch import Watch
from qmamba.errors import RecipeError

if TYPE_CHECKING:
    from qmamba.train.paper import PaperRecipe


class Tracker(str, Enum):
    """Where losses are logged to, besides the run's own log."""

    tensorboard = "tensorboard"
    trackio = "trackio"


Log = Annotated[
    Tracker | None, typer.Option("--log", help="Log losses there, too; each has an extra of its name.")
]
Cache = Annotated[
    Path | None,
    typer.Option(help="Folder to keep images in that a set's size makes smaller. Default: none."),
]
Workers = Annotated[
    int | None, typer.Option(min=0, help="Processes that cut crops. Default: none on a CPU, else 8.")
]


@contextmanager
def watched(minutes: float | None, progress: bool | None, resume: bool = True) -> Iterator[Watch]:
    """A bar, which only the first of several processes shows, and the ways to end a run."""
    from qmamba.train.paper import is_first

    until = None if minutes is None else time.monotonic() + 60 * minutes
    shown = progress if is_first() else False
    with Watch(0, shown, until) as watch, watch.ends(resume), watch.ctrl_c():
        yield watch


def workers_or_default(workers: int | None, cpu: bool) -> int:
    """Return eight for an accelerator, none beside a CPU that is busy anyway."""
    if workers is not None:
        return workers
    return 0 if on_cpu(cpu) else 8


def on_cpu(cpu: bool) -> bool:
    """Return whether a run computes on the CPU: told to, or for want of an accelerator."""
    import torch

    return cpu or not torch.accelerator.is_available()


def train_paper(
    plan: PaperRecipe,
    data: Path,
    out: Path,
    *,
    device: str | None,
    init: str | None,
    arch: str | None,
    log: Tracker | None,
    workers: int | None,
    cache: Path | None,
    minutes: float | None,
    progress: bool | None,
    resume: bool,
) -> None:
    """`qmamba train` with such a recipe: all its runs, a table on stderr, and the folder on stdout."""
    from qmamba.train.paper import Workshop, do_row, is_first
    from qmamba.train.paper.report import row_text
    from qmamba.train.paper.runs import other_arch
    from qmamba.train.paper.sets import missing

    if device not in (None, "cpu"):
        raise RecipeError(
            "this recipe runs on accelerate: choose devices by `accelerate launch`, or cpu here"
        )
    if (out / "runs").exists() and not resume:
        raise RecipeError(f"{out} holds runs already: resume them, or choose another folder")
    plan = plan if init is None else replace(plan, init_from="" if init == "random" else init)
    plan = plan if arch is None else other_arch(plan, arch)
    for name in plan.sets:
        if lack := missing(name, data):
            raise RecipeError(f"the set {name!r} is absent: {lack}; --data is the folder that holds all sets")
    many = workers_or_default(workers, device == "cpu")
    if is_first() and on_cpu(device == "cpu"):
        tell_missing_kernel("cpu")
    with watched(minutes, progress, resume) as watch:
        tracker = None if log is None else log.value
        shop = Workshop(data, out / "runs", device == "cpu", tracker, many, cache=cache, report=watch)
        row = do_row(plan, shop, out / "results.json")
    if is_first():
        typer.echo(row_text(plan.name, row), err=True)
        typer.echo(str(out))
