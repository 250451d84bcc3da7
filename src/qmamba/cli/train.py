"""`qmamba train RECIPE`: from rated photographs, or packed ones, to a checkpoint folder."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmamba.cli._options import Progress
from qmamba.cli._paper import Cache, Log, Workers, train_paper
from qmamba.cli._shared import note, quiet_ends, tell_missing_kernel
from qmamba.cli._watch import Minutes, Resume, Watch
from qmamba.errors import RecipeError

if TYPE_CHECKING:
    from qmamba.data import Rated
    from qmamba.train import PretrainRecipe, Recipe

EPILOG = """\
\b
Examples:
  qmamba train --list
  qmamba train lqmamba-n-biq2021 --data BIQ2021 --out runs/n --processes 2
  qmamba train mine.toml --data ratings.csv --out runs/mine

\b
Exit code:
  0    the checkpoint is there, and its folder is on stdout
  2    nothing was trained: a wrong recipe, missing photographs, a wrong option
  3    --minutes are over; the same command goes on from there
  130  ended by Ctrl-C; the same command goes on from there
"""


def _list(wanted: bool) -> None:
    if wanted:
        from qmamba.train import list_recipes
        from qmamba.train.paper import list_paper_recipes

        typer.echo("\n".join(list_recipes() + list_paper_recipes()))
        raise typer.Exit()


def train(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A .toml file, or a name from `qmamba train --list`.")
    ],
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            "-d",
            help="The data set's folder, the manifest (a CSV file), packed photographs, or the folder of all "
            "sets.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder for the checkpoint, the log, and the state to go on from."),
    ],
    processes: Annotated[int, typer.Option(min=1, help="How many share each batch, on a processor.")] = 1,
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:1, mps, … Default: cpu.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of all processes together. Default: one a core.")
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(help="Checkpoint to start from: folder, name or Hub id. Default: random weights."),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint of a teacher that rates, or a folder with BIQ2021, to make one from it in OUT. "
            "Default: none."
        ),
    ] = None,
    arch: Annotated[
        str | None, typer.Option(help="Another architecture than the recipe's, without its overrides.")
    ] = None,
    log: Log = None,
    workers: Workers = None,
    cache: Cache = None,
    minutes: Minutes = None,
    resume: Resume = True,
    progress: Progress = None,
    listing: Annotated[
        bool, typer.Option("--list", callback=_list, is_eager=True, help="List the shipped recipes and exit.")
    ] = False,
) -> None:
    """Train a model from a recipe; docs/training.md describes recipes and manifests.

    The train fold is learnt, the val fold is watched, the test fold is not looked at. A run that was
    interrupted goes on from where it was when the same command is given again.
    """
    with quiet_ends():
        from qmamba.train import load_recipe
        from qmamba.train.paper import PaperRecipe

        plan = load_recipe(recipe)
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        if isinstance(plan, PaperRecipe):
            if processes > 1 or teacher is not None:
                raise RecipeError(
                    "this recipe has no teacher, and its processes are those of `accelerate launch`"
                )
            train_paper(
                plan, data, out, device=device, init=init, arch=arch, log=log, workers=workers,
                cache=cache, minutes=minutes, progress=progress, resume=resume,
            )  # fmt: skip
            return
        if (log, workers, cache) != (None, None, None):
            raise RecipeError(
                "--log, --workers, --cache are for recipes with a task, see docs/reproducing.md"
            )
        if arch is not None:
            plan = dataclasses.replace(plan, arch=arch, overrides={}, name=plan.name.replace(plan.arch, arch))
        tell_missing_kernel(device or "cpu")
        options = {"processes": processes, "device": device or "cpu", "resume": resume}
        typer.echo(str(_train_after_teacher(plan, data, out, init, teacher, minutes, progress, **options)))


def _train_after_teacher(
    plan: Recipe | PretrainRecipe,
    data: Path,
    out: Path,
    init: str | None,
    teacher: Path | None,
    minutes: float | None,
    progress: bool | None,
    **options: Any,
) -> Path:
    """The checkpoint's folder; a teacher is made first where its data are given in place of its weights."""
    from qmamba.train import load_recipe

    until = None if minutes is None else time.monotonic() + 60 * minutes
    if teacher is not None and teacher.is_dir() and not (teacher / "config.json").exists():
        lessons = load_recipe("teacher")
        with Watch(lessons.steps, progress, until) as watch:
            teacher = _train(watch, lessons, teacher, out / "teacher", **options)
        note(f"the teacher that rates is {teacher}")
    with Watch(plan.steps, progress, until) as watch:
        return _train(watch, plan, data, out, init=init, teacher=teacher, **options)


def _ratings(recipe: Recipe, data: Path) -> list[Rated]:
    from qmamba.data import read_biq2021, read_manifest

    return read_manifest(data) if recipe.data == "manifest" else read_biq2021(data, ("train", "val"))


def _train(watch: Watch, recipe: Recipe | PretrainRecipe, data: Path, out: Path, **options: Any) -> Path:
    from qmamba.train import PretrainRecipe, pretrain
    from qmamba.train import train as tune

    with watch.ends(options["resume"]):
        if isinstance(recipe, PretrainRecipe):
            with watch.ctrl_c():
                return pretrain(recipe, data, out, report=watch, **options)
        ratings = _ratings(recipe, data)
        with watch.ctrl_c():
            return tune(recipe, ratings, out, report=watch, **options)
