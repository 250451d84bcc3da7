"""What `qmamba train` and `qmamba reproduce` share: the paper's recipes, which run on accelerate."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qmamba.cli._shared import note_missing_kernel
from qmamba.cli._watch import RunOptions, Watch, WatchOptions
from qmamba.errors import RecipeError

if TYPE_CHECKING:
    from qmamba.train.paper import PaperRecipe, Workshop


class Tracker(str, Enum):
    """Experiment trackers."""

    tensorboard = "tensorboard"
    trackio = "trackio"


@dataclass(frozen=True)
class PaperOptions:
    """How the runs of such a recipe are logged and fed."""

    log: Annotated[
        Tracker | None, typer.Option("--log", help="Tracker to log losses to; each is an extra of that name.")
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that make crops. Default: 0 on a CPU, 8 on a GPU."),
    ] = None
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder for images resized to their set's size. Default: no cache."),
    ] = None

    def shop(
        self, root: Path, out: Path, *, cpu: bool, watch: Watch | None = None, dry: bool = False
    ) -> Workshop:
        """Return where and with what runs are done: data below `root`, runs in folders of `out`."""
        import torch

        from qmamba.train.paper import Workshop, is_first

        is_on_cpu = cpu or not torch.cuda.is_available()
        if is_on_cpu and is_first():
            note_missing_kernel("cpu")
        workers = self.workers
        if workers is None:
            workers = 0 if is_on_cpu else 8
        tracker = None if self.log is None else self.log.value
        return Workshop(root, out, cpu, tracker, workers, dry, self.cache, watch)


@contextmanager
def watched(options: WatchOptions, resume: bool = True) -> Iterator[Watch]:
    """Show progress, only in the first of several processes, and handle the ways to stop."""
    from qmamba.train.paper import is_first

    progress = options.progress if is_first() else False
    with Watch(0, progress, options.minutes) as watch, watch.ends(resume):
        yield watch


def with_start(recipe: PaperRecipe, init: str | None) -> PaperRecipe:
    """Return a recipe that starts from other weights; "random" for none."""
    return recipe if init is None else replace(recipe, init_from="" if init == "random" else init)


def train_paper(
    recipe: PaperRecipe,
    name: str,
    data: Path,
    out: Path,
    run: RunOptions,
    paper: PaperOptions,
    *,
    init: str | None,
    arch: str | None,
) -> None:
    """Run all runs of such a recipe, which `name` loads: a table on stderr, and the folder on stdout."""
    from qmamba.train.paper import do_row, is_first
    from qmamba.train.paper.report import row_text
    from qmamba.train.paper.runs import other_arch
    from qmamba.train.paper.sets import missing

    if run.device not in (None, "cpu"):
        raise RecipeError(
            f"--device must be cpu for this recipe, got {run.device}: choose GPUs by `accelerate launch`"
        )
    if (out / "runs").exists() and not run.resume:
        raise RecipeError(f"{out} holds runs already; resume them, or choose another folder")
    recipe = with_start(recipe, init)
    recipe = recipe if arch is None else other_arch(recipe, arch)
    for name in recipe.sets:
        if lack := missing(name, data):
            raise RecipeError(f"the set {name!r} is absent: {lack}; --data must be the folder of all sets")
    if run.threads is not None:
        import torch

        torch.set_num_threads(run.threads)
    with watched(run, run.resume) as watch:
        shop = paper.shop(data, out / "runs", cpu=run.device == "cpu", watch=watch)
        changes = {"--init": init, "--arch": arch}
        words = [word for key, value in changes.items() if value is not None for word in (key, value)]
        command = shlex.join(["qmamba", "train", name, *words, "--data", "DATA", "--out", "OUT"])
        row = do_row(recipe, shop, out / "results.json", command)
    if is_first():
        typer.echo(row_text(recipe.name, row), err=True)
        typer.echo(str(out))
