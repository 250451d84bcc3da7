"""From a recipe to its runs, and each run from data to a results file, unless it exists."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...adapters import Adapter, AdapterConfig, save_adapter
from ...calibration import Calibration
from ...checkpoints import ModelConfig
from ...checkpoints.safetensors_file import replace_file
from ...data import Rated
from ...errors import RecipeError
from ...models import get_architecture
from ...scoring import Scorer
from ...version import __version__
from ..calibrating import fit_calibration
from ..engine import Report, fit
from ..engine import Run as Training
from ..processes import is_first
from ..start import no_start
from ..state import forget_state
from ..tracking import Tracker
from .curve import draw_curve
from .recipe import NO_TUNING, PaperRecipe
from .sets import RatedSet, read_set, split_set
from .task import PaperTask, measure, protocol_of

Finish = Callable[[PaperTask, Training], Path]
RESULTS, CURVE = "results.json", "curve.png"
CALIBRATION_IMAGES = 200  # of each training set
# Keys of a recipe that do not matter to a single run, or not to its numbers.
_OF_THE_ROW = (
    "task", "name", "title", "paper", "licence", "data", "transfers", "splits", "save_every", "weights",
    "sizes",
)  # fmt: skip
_OF_ADAPTERS = ("adapter", "adapter_options", "adapter_lr")


@dataclass(frozen=True)
class Run:
    """One training, or one evaluation where nothing is tuned, in one split.

    Attributes:
        train: sets whose training folds are learnt, together.
        test: sets whose test folds are measured.
        split: zero-based index of the split.
        base: for a transfer, the run whose network is the base.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    split: int
    base: Run | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """Sets that the network itself has learnt."""
        return self.train if self.base is None else self.base.train

    @property
    def sets(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.sources, *self.train, *self.test)))

    @property
    def title(self) -> str:
        """A short description for people."""
        to = "" if self.base is None else f" to {'+'.join(self.test)}"
        return f"{'+'.join(self.sources)}{to}, split {self.split}"


def runs_of(recipe: PaperRecipe, split: int) -> list[Run]:
    """Return the runs of a split, a base before those that need it."""
    if recipe.task == "single":
        return [Run((name,), (name,), split) for name in recipe.data]
    if recipe.task == "universal":
        return [Run(recipe.data, recipe.data, split)]
    found = []
    for transfer in recipe.transfers:
        base = Run(transfer.sources, transfer.sources, split)
        found.append(base)
        found += [
            Run(() if recipe.adapter == NO_TUNING else (name,), (name,), split, base)
            for name in transfer.targets
        ]
    return found


def folder_of(run: Run, recipe: PaperRecipe) -> Path:
    """Return the folder of a run: rows of tables that share a run share its folder."""
    digest = hashlib.sha256(json.dumps(identity(run, recipe), sort_keys=True).encode()).hexdigest()[:8]
    to = "" if run.base is None else f"-to-{'+'.join(run.test)}-{recipe.adapter}"
    return Path(f"{recipe.arch}-{'+'.join(run.sources)}{to}-{digest}") / f"split-{run.split:02d}"


def identity(run: Run, recipe: PaperRecipe) -> dict[str, Any]:
    """Return what a run's numbers depend on, except for the data."""
    left_out = {*_OF_THE_ROW, *(_OF_ADAPTERS if run.base is None else ())}
    values = {key: value for key, value in asdict(recipe).items() if key not in left_out}
    for key in ("weights", "sizes"):
        values[key] = {name: v for name, v in getattr(recipe, key).items() if name in run.sets}
    base = None if run.base is None else identity(run.base, recipe)
    return {**values, "train": list(run.train), "test": list(run.test), "base": base}


@dataclass(frozen=True)
class Workshop:
    """Where and with what runs are done.

    Attributes:
        root: folder with data sets and weights to start from.
        out: folder in which runs get folders.
        cpu: whether to use the CPU only.
        log: a tracker of :data:`qmamba.train.tracking.TRACKERS`.
        workers: processes that make crops, for each training process.
        dry: two images of each set, two steps, random weights where there is nothing to start from.
        cache: folder for images resized to their set's size; None for none.
        report: called as by :func:`qmamba.train.engine.fit`, with ``run`` added; with ``{"run", "image",
            "images"}`` while images are rated; and with ``{"run", "note"}`` where published weights were
            loaded.
    """

    root: Path
    out: Path
    cpu: bool = False
    log: str | None = None
    workers: int = 0
    dry: bool = False
    cache: Path | None = None
    report: Report | None = None

    def report_of(self, run: Run) -> Report:
        """Return a report that adds which run it is about."""

        def report(event: dict[str, Any]) -> None:
            if self.report is not None:
                self.report({"run": run.title, **event})

        return report


def do_run(
    run: Run, recipe: PaperRecipe, shop: Workshop, ratings: dict[str, list[Rated]] | None = None
) -> dict[str, Any]:
    """Do a run, or resume it, unless its results exist.

    Args:
        ratings: sets that have been read, by name; others are added.

    Returns:
        ``{"sets": {name: {"n", "srcc", "plcc", "plcc_fitted"}}, "split", "start", "steps", …}``, as in the
        results file of its folder.

    Raises:
        DataSetError: a set is absent, or not as expected.
        RecipeError, CheckpointError, ImageError: as its parts do.
    """
    folder = shop.out / folder_of(run, recipe)
    if not (folder / RESULTS).is_file():
        if run.base is not None:
            do_run(run.base, recipe, shop, ratings)
        ratings = {} if ratings is None else ratings
        for name in run.sets:
            if name not in ratings:
                ratings[name] = read_set(name, shop.root)
        sets = {
            name: split_set(name, ratings[name], recipe, run.split, dry=shop.dry, cache=shop.cache)
            for name in run.sets
        }
        _train(run, recipe, shop, folder, sets)
    if is_first():
        forget_state(folder)
    found: dict[str, Any] = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    return found


def _train(run: Run, recipe: PaperRecipe, shop: Workshop, folder: Path, sets: dict[str, RatedSet]) -> None:
    tuned = run.base is not None and recipe.adapter != NO_TUNING
    init: str | Path = recipe.init_from
    if run.base is not None:
        init = shop.out / folder_of(run.base, recipe) / "checkpoint"
    elif shop.dry and no_start(recipe.init_from, shop.root) is not None:
        init = ""

    def finish(task: PaperTask, training: Training) -> Path:
        return _finish(run, recipe, shop, sets, task, training)

    seeded = replace(recipe, seed=recipe.seed + run.split)
    task = PaperTask(
        seeded, [sets[name] for name in run.train], finish=finish, init=init,
        adapter=recipe.adapter if tuned else "", identity=identity(run, recipe), root=shop.root,
        workers=shop.workers, max_steps=2 if shop.dry else None,
    )  # fmt: skip
    tracker = None
    if shop.log is not None and run.train:
        tracker = Tracker(shop.log, str(folder_of(run, recipe)), run.title)
    device = "cpu" if shop.cpu else None
    fit(task, seeded, folder, device=device, tracker=tracker, report=shop.report_of(run))


def _finish(
    run: Run,
    recipe: PaperRecipe,
    shop: Workshop,
    sets: dict[str, RatedSet],
    task: PaperTask,
    training: Training,
) -> Path:
    """Measure what was learnt on the test folds, and write the weights and, last, the results."""
    report = shop.report_of(run) if training.is_first else None

    def rated(name: str, images: list[Rated]) -> Tensor:
        return task.rate_set(training, images, sets[name], report)

    if report is not None and task.began.dropped and run.split == 0:
        report({"note": task.began.report()})
    measured = {}
    for name in run.test:
        images = list(sets[name].folds["test"])
        measured[name] = measure(rated(name, images).mean(dim=1), [r.mos for r in images])
    results = {
        "run": identity(run, recipe), "split": sets[run.test[0]].split, "start": task.began.to_dict(),
        "steps": task.steps, "sets": measured, "dry_run": shop.dry, "qmamba": __version__,
        "torch": torch.__version__,
    }  # fmt: skip
    calibration = _calibration(task.sets, rated) if task.sets else None
    folder = training.out
    if training.is_first:
        if calibration is not None:
            _save_weights(run, recipe, calibration, results, task, training)
            draw_curve(folder, folder / CURVE, run.title)
        replace_file(folder / RESULTS, (json.dumps(results, indent=2) + "\n").encode())
    training.processes.accelerator.wait_for_everyone()
    return folder / RESULTS


def _calibration(sets: list[RatedSet], rated: Callable[[str, list[Rated]], Tensor]) -> Calibration:
    """Fit the calibration on some training images; the default where raw quality does not rise with MOS."""
    raws: list[Tensor] = []
    labels: list[float] = []
    for each in sets:
        images = list(each.folds["train"])
        chosen = images[:: -(-len(images) // CALIBRATION_IMAGES)]
        raws += rated(each.name, chosen).unbind()
        labels += [min(max(r.mos, 0.0), 1.0) for r in chosen]
    return fit_calibration(raws, labels) or Calibration()


def _save_weights(
    run: Run,
    recipe: PaperRecipe,
    calibration: Calibration,
    results: dict[str, Any],
    task: PaperTask,
    training: Training,
) -> None:
    """Save the checkpoint, or the adapter, with what it was trained on and how it was measured."""
    measured = {f"{name}, test": found for name, found in results["sets"].items()}
    about = {"run": results["run"], "steps": results["steps"], "start": results["start"]["source"]}
    trained, folder = training.averaged, training.out
    if not isinstance(trained, Adapter):
        config = ModelConfig(
            name=recipe.name, arch=recipe.arch, overrides=recipe.overrides, trained_on=run.train,
            licence=recipe.licence, calibration=calibration, protocol=protocol_of(task.recipe),
            preprocessing=get_architecture(recipe.arch).preprocessing, results=measured, training=about,
        )  # fmt: skip
        Scorer(trained, config).save_pretrained(folder / "checkpoint")
        return
    assert task.base is not None
    config_of_adapter = AdapterConfig(
        recipe.adapter, recipe.name, task.base.base_sha256(), options=recipe.adapter_options,
        calibration=calibration, trained_on=run.train, training=about, results=measured,
        licence=recipe.licence,
    )  # fmt: skip
    save_adapter(folder / "adapter", trained, config_of_adapter)


def each_run(
    recipe: PaperRecipe, shop: Workshop, absent: Callable[[Run], str | None]
) -> Iterator[tuple[Run, dict[str, Any] | str]]:
    """Do the runs of all splits in order; yield each with its results, or with what it lacks."""
    ratings: dict[str, list[Rated]] = {}
    for split in range(1 if shop.dry else recipe.splits):
        for run in runs_of(recipe, split):
            lack = absent(run)
            yield run, do_run(run, recipe, shop, ratings) if lack is None else lack


def dry_recipe(recipe: PaperRecipe) -> PaperRecipe:
    """Return the recipe for a dry run: few and small crops, one split."""
    return replace(
        recipe,
        splits=1,
        epochs=1,
        crops=4,
        crop=64,
        test_crops=2,
        batch=2,
        accumulate=1,
        precision="float32",
        weights={},
    )


def other_arch(recipe: PaperRecipe, arch: str) -> PaperRecipe:
    """Return the recipe for another architecture, without its overrides.

    Raises:
        RecipeError: it starts from weights of its own architecture.
    """
    if recipe.init_from:
        raise RecipeError(f"the recipe starts from {recipe.init_from}; give --init, too, for another --arch")
    return replace(recipe, arch=arch, overrides={}, name=recipe.name.replace(recipe.arch, arch))
