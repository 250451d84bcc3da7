"""`qmamba train RECIPE`: from rated or packed photographs to a checkpoint folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmamba.cli._command import with_groups
from qmamba.cli._paper import PaperOptions, train_paper
from qmamba.cli._ratings import read_ratings, source_of
from qmamba.cli._shared import note
from qmamba.cli._watch import RunOptions, Watch
from qmamba.errors import RecipeError

if TYPE_CHECKING:
    from qmamba.data import Rated
    from qmamba.train import HeadRecipe, PretrainRecipe, Recipe, WordsRecipe

EPILOG = """\
\b
Examples:
  qmamba train --list
  qmamba train lqmamba-n-biq2021 --data biq2021=BIQ2021 --out runs/n --processes 2
  qmamba train mine.toml --data ratings.csv --out runs/mine
  qmamba train lqmamba-n-head --data ratings.csv --init runs/n/checkpoint --out runs/head
  qmamba train q-adapt-stage1 --data pathway.json --images IMAGES --out runs/words1 --device cuda
  qmamba train q-adapt-stage2 --data all.json --images IMAGES --init runs/words1/checkpoint --out runs/words2

\b
Exit code:
  0    the checkpoint is written, and its folder is on stdout
  2    nothing was trained: a wrong recipe, missing photographs, a wrong option
  3    the time limit of --minutes is reached; the same command resumes the run
  130  stopped by Ctrl-C; the same command resumes the run
"""


def _list(wanted: bool) -> None:
    if wanted:
        from qmamba.train import list_recipes
        from qmamba.train.paper import list_paper_recipes

        typer.echo("\n".join(list_recipes() + list_paper_recipes()))
        raise typer.Exit()


@dataclass(frozen=True)
class StartOptions:
    """What a training starts from."""

    init: Annotated[
        str | None,
        typer.Option(
            help="Checkpoint to start from: folder, name or Hub id, or `bases` for the architecture's base "
            "models. Default: random weights."
        ),
    ] = None
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="TEACHER",
            help="For recipes that train on ratings: checkpoint of a teacher, or biq2021=FOLDER to train one "
            "that rates in OUT first. Default: one that knows features only.",
        ),
    ] = None
    images: Annotated[
        Path | None,
        typer.Option(help="For conversations: folder of their images. Default: the folder of the JSON file."),
    ] = None
    arch: Annotated[
        str | None, typer.Option(help="Architecture to train instead of the recipe's, without its overrides.")
    ] = None


@with_groups
def train(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="Recipe: a .toml file, or a name from `qmamba train --list`."),
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            "-d",
            metavar="DATA",
            help="What the recipe trains on: a CSV file with image, mos and fold; NAME=FOLDER for a data set "
            "of `qmamba data list`; packed photographs; a JSON file of conversations; for a recipe with a "
            "task, the folder of all sets.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the checkpoint, the log, and the state to resume.")
    ],
    start: StartOptions,
    run: RunOptions,
    paper: PaperOptions,
    processes: Annotated[int, typer.Option(min=1, help="Processes that share each batch, on the CPU.")] = 1,
    listing: Annotated[
        bool, typer.Option("--list", callback=_list, is_eager=True, help="List the shipped recipes and exit.")
    ] = False,
) -> None:
    """Train a model from a recipe; docs/training.md describes recipes and manifests.

    The fold `train` is learnt, the fold `val` is validated on, and the fold `test` is not used. The same
    command resumes a run that was interrupted.
    """
    from qmamba.train import HeadRecipe, WordsRecipe, load_recipe
    from qmamba.train.paper import PaperRecipe

    plan = load_recipe(recipe)
    if isinstance(plan, PaperRecipe):
        if processes > 1 or start.teacher is not None:
            raise RecipeError(
                "--processes and --teacher are not for recipes with a task: start more processes by "
                "`accelerate launch`"
            )
        train_paper(plan, recipe, Path(data), out, run, paper, init=start.init, arch=start.arch)
        return
    if isinstance(plan, HeadRecipe):
        typer.echo(str(_fit_head(plan, data, out, start, run)))
        return
    if start.images is not None and not isinstance(plan, WordsRecipe):
        raise RecipeError("--images is for recipes that train on conversations")
    if paper != PaperOptions():
        raise RecipeError("--log, --workers, --cache are for recipes with a task, see docs/reproducing.md")
    if isinstance(plan, WordsRecipe):
        typer.echo(str(_train_words(plan, data, out, start, run, processes=processes)))
        return
    if (arch := start.arch) is not None:
        plan = replace(plan, arch=arch, overrides={}, name=plan.name.replace(plan.arch, arch))
    options = {"processes": processes, "device": run.prepare(), "resume": run.resume}
    typer.echo(str(_train_after_teacher(plan, data, out, start, run, **options)))


def _fit_head(plan: HeadRecipe, data: str, out: Path, start: StartOptions, run: RunOptions) -> Path:
    """Return the folder of a checkpoint whose head is fitted in closed form."""
    from qmamba.train import fit_head

    if start.init is None or start.teacher is not None or start.arch is not None:
        raise RecipeError("a recipe of a head must have --init, and takes no --teacher and no --arch")
    ratings, device = read_ratings(data), run.prepare()
    with run.watch() as watch, watch.ends(run.resume):
        return fit_head(plan, ratings, out, init=start.init, device=device, resume=run.resume, report=watch)


def _train_words(
    plan: WordsRecipe, data: str, out: Path, start: StartOptions, run: RunOptions, *, processes: int
) -> Path:
    """Return the folder of a checkpoint that answers in words."""
    from qmamba.train import read_conversations, train_words

    if start.teacher is not None or start.arch is not None:
        raise RecipeError("a recipe with a stage takes no --teacher and no --arch")
    conversations = read_conversations(data, start.images)
    options = {"processes": processes, "device": run.prepare(), "resume": run.resume}
    with run.watch(plan.steps_for(len(conversations))) as watch, watch.ends(run.resume):
        return train_words(plan, conversations, out, init=start.init, report=watch, **options)


def _train_after_teacher(
    plan: Recipe | PretrainRecipe, data: str, out: Path, start: StartOptions, run: RunOptions, **options: Any
) -> Path:
    """Return the checkpoint's folder; a teacher is trained first if its data are given, not its weights."""
    from qmamba.train import PretrainRecipe, load_recipe, pretrain

    if isinstance(plan, PretrainRecipe):
        if start.teacher is not None:
            raise RecipeError(
                "--teacher is for recipes that train on ratings; pretraining has a teacher of its own, which "
                "is never tuned"
            )
        with run.watch(plan.steps) as watch, watch.ends(options["resume"]):
            return pretrain(plan, data, out, init=start.init, report=watch, **options)
    teacher = start.teacher
    if teacher is not None and "=" in teacher and not Path(teacher).exists():
        lessons = load_recipe("teacher")
        with run.watch(lessons.steps) as watch:
            teacher = str(_train(watch, lessons, teacher, out / "teacher", **options))
        note(f"the teacher that rates is {teacher}")
    with run.watch(plan.steps) as watch:
        return _train(watch, plan, data, out, init=start.init, teacher=teacher, **options)


def _ratings(recipe: Recipe, data: str) -> list[Rated]:
    source = source_of(data, recipe.data)
    rated = source.read()
    return rated if source.is_manifest else [r for r in rated if r.fold in ("train", "val")]


def _train(watch: Watch, recipe: Recipe, data: str, out: Path, **options: Any) -> Path:
    from qmamba.train import train as tune

    ratings = _ratings(recipe, data)
    with watch.ends(options["resume"]):
        return tune(recipe, ratings, out, report=watch, **options)
