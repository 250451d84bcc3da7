"""From a recipe to its runs, and each of them from data to a results file, unless that is there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ...adapters import AdapterConfig, create, save_adapter
from ...calibration import Calibration
from ...checkpoints import ModelConfig
from ...checkpoints.safetensors_file import replace_file
from ...data import Rated
from ...errors import RecipeError
from ...metrics import plcc
from ...models import create_model
from ...models.qmamba import QMamba
from ...scoring import Scorer, load
from ...version import __version__
from ..loop import Report
from .curve import draw_curve
from .rater import Rater, measure, protocol_of, rate_images
from .recipe import NO_TUNING, PaperRecipe
from .sets import RatedSet, read_set, split_set
from .start import Start, no_start, start
from .trainer import fit, forget_states, is_first, make_accelerator, random_state_kept, tracked

RESULTS, RUN, CURVE = "results.json", "run.json", "curve.png"
CALIBRATION_IMAGES = 200  # of each training set
# Keys of a recipe that say nothing of a single run, or nothing of its numbers.
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
        split: its number.
        base: for a transfer, the run whose network is the base.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    split: int
    base: Run | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """The sets that the network itself has learnt."""
        return self.train if self.base is None else self.base.train

    @property
    def sets(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.sources, *self.train, *self.test)))

    @property
    def title(self) -> str:
        """What is being done, in a few words."""
        to = "" if self.base is None else f" to {'+'.join(self.test)}"
        return f"{'+'.join(self.sources)}{to}, split {self.split}"


def runs_of(recipe: PaperRecipe, split: int) -> list[Run]:
    """The runs of a split, a base before those that need it."""
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
    """Where a run lies: rows of tables that share a run share its folder."""
    digest = hashlib.sha256(json.dumps(identity(run, recipe), sort_keys=True).encode()).hexdigest()[:8]
    to = "" if run.base is None else f"-to-{'+'.join(run.test)}-{recipe.adapter}"
    return Path(f"{recipe.arch}-{'+'.join(run.sources)}{to}-{digest}") / f"split-{run.split:02d}"


def identity(run: Run, recipe: PaperRecipe) -> dict[str, Any]:
    """All that a run's numbers depend on, but for the data."""
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
        root: the folder that data sets lie in, and files to start from.
        out: the folder that runs get folders in.
        cpu: whether to leave accelerators alone.
        log: a tracker of :data:`qmamba.train.paper.trainer.TRACKERS`.
        workers: processes that make crops, for each training process.
        dry: two images of each set, two steps, random weights where there is nothing to start from.
        cache: a folder for images that have been brought to their set's size; None for none.
        report: called with what :func:`qmamba.train.paper.trainer.fit` tells, with ``run`` added; and with
            ``{"run", "image", "images"}`` while images are rated, ``{"run", "note"}`` where published weights
            were loaded.
    """

    root: Path
    out: Path
    cpu: bool = False
    log: str | None = None
    workers: int = 0
    dry: bool = False
    cache: Path | None = None
    report: Report | None = None

    def told(self, run: Run) -> Report:
        def tell(event: dict[str, Any]) -> None:
            if self.report is not None:
                self.report({"run": run.title, **event})

        return tell


def do_run(
    run: Run, recipe: PaperRecipe, shop: Workshop, ratings: dict[str, list[Rated]] | None = None
) -> dict[str, Any]:
    """Do a run, or go on with it, unless its results are there.

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
    if (folder / RESULTS).is_file():
        if is_first():
            forget_states(folder)  # it may have been ended just before
        found: dict[str, Any] = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        return found
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
    with random_state_kept():
        return _do(run, recipe, shop, folder, sets)


def _do(
    run: Run, recipe: PaperRecipe, shop: Workshop, folder: Path, sets: dict[str, RatedSet]
) -> dict[str, Any]:
    seed = recipe.seed + run.split
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = make_accelerator(recipe, folder, cpu=shop.cpu, log=shop.log)
    rater, began, base = _rater(run, recipe, shop)
    steps, tell = 0, shop.told(run)
    if began.dropped and run.split == 0 and accelerator.is_main_process:
        tell({"note": began.report()})
    learnt = [sets[name] for name in run.train]
    if learnt:
        lr = recipe.lr if run.base is None else recipe.adapter_lr or _adapter_lr(rater)
        with tracked(accelerator, str(folder_of(run, recipe)), run.title, folder):
            steps = fit(
                rater, learnt, recipe, seed, lr, accelerator, folder,
                workers=shop.workers, most_steps=2 if shop.dry else None, report=tell,
            )  # fmt: skip
    rater.to(accelerator.device)

    def rated(name: str, images: list[Rated]) -> Tensor:
        def done(place: int, of: int) -> None:
            if accelerator.is_main_process:
                tell({"image": place, "images": of})

        return rate_images(rater, images, sets[name], protocol_of(recipe), accelerator, done)

    measured = {}
    for name in run.test:
        images = list(sets[name].folds["test"])
        measured[name] = measure(rated(name, images).mean(dim=1), [r.mos for r in images])
    results = {
        "run": identity(run, recipe), "split": sets[run.test[0]].split, "start": began.to_dict(),
        "steps": steps, "sets": measured, "dry_run": shop.dry, "qmamba": __version__,
        "torch": torch.__version__,
    }  # fmt: skip
    calibration = _calibration(learnt, rated) if learnt else None
    if accelerator.is_main_process:
        if calibration is not None:
            _save_weights(rater, run, recipe, calibration, results, folder, base)
            draw_curve(folder, folder / CURVE, run.title)
        text = json.dumps(results, indent=2) + "\n"
        replace_file(folder / RESULTS, text.encode())
        forget_states(folder)
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    return results


def _rater(run: Run, recipe: PaperRecipe, shop: Workshop) -> tuple[Rater, Start, Scorer | None]:
    """What is trained, how it began, and for a transfer the base."""
    if run.base is None:
        network = cast(QMamba, create_model(recipe.arch, **recipe.overrides))
        name = recipe.init_from
        if shop.dry and no_start(name, shop.root) is not None:
            name = ""
        return Rater(network), start(network, name, shop.root), None
    folder = shop.out / folder_of(run.base, recipe) / "checkpoint"
    base = load(folder)
    began = Start("the base", tuple(base.base().state_dict()))
    if recipe.adapter == NO_TUNING:
        return Rater(base.base()), began, base
    return Rater(base.base(), create(recipe.adapter, base.base(), **recipe.adapter_options)), began, base


def _adapter_lr(rater: Rater) -> float:
    assert rater.adapter is not None
    return rater.adapter.lr


def _calibration(sets: list[RatedSet], rated: Callable[[str, list[Rated]], Tensor]) -> Calibration:
    """A curve from raw crops to the MOS of some training images; none where they do not rise together."""
    raws, labels = [], []
    for each in sets:
        images = list(each.folds["train"])
        chosen = images[:: -(-len(images) // CALIBRATION_IMAGES)]
        raw = rated(each.name, chosen)
        raws.append(raw.flatten())
        labels.append(torch.tensor([r.mos for r in chosen]).clamp(0, 1).repeat_interleave(raw.shape[1]))
    raw, mos = torch.cat(raws), torch.cat(labels)
    return Calibration.fit(raw, mos) if plcc(raw, mos) > 0 else Calibration()


def _save_weights(
    rater: Rater,
    run: Run,
    recipe: PaperRecipe,
    calibration: Calibration,
    results: dict[str, Any],
    folder: Path,
    base: Scorer | None,
) -> None:
    """The checkpoint, or the adapter, with what it was trained on and how it was measured."""
    measured = {f"{name}, test": found for name, found in results["sets"].items()}
    training = {"run": results["run"], "steps": results["steps"], "start": results["start"]["source"]}
    if rater.adapter is None:
        config = ModelConfig(
            name=recipe.name, arch=recipe.arch, overrides=recipe.overrides, trained_on=run.train,
            licence=recipe.licence, calibration=calibration, protocol=protocol_of(recipe),
            results=measured, training=training,
        )  # fmt: skip
        Scorer(rater.network, config).save_pretrained(folder / "checkpoint")
        return
    assert base is not None
    about = AdapterConfig(
        recipe.adapter, recipe.name, base.base_sha256(), options=recipe.adapter_options,
        calibration=calibration, trained_on=run.train, training=training, results=measured,
        licence=recipe.licence,
    )  # fmt: skip
    save_adapter(folder / "adapter", rater.adapter, about)


def each_run(
    recipe: PaperRecipe, shop: Workshop, absent: Callable[[Run], str | None]
) -> Iterator[tuple[Run, dict[str, Any] | str]]:
    """The runs of all splits, one after the other, with their results, or with what they lack."""
    ratings: dict[str, list[Rated]] = {}
    for split in range(1 if shop.dry else recipe.splits):
        for run in runs_of(recipe, split):
            lack = absent(run)
            yield run, do_run(run, recipe, shop, ratings) if lack is None else lack


def dry_recipe(recipe: PaperRecipe) -> PaperRecipe:
    """The recipe for a dry run: small crops and few of them, one split."""
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
    """The recipe for another architecture, without its overrides.

    Raises:
        RecipeError: it starts from weights of the one that it is for.
    """
    if recipe.init_from:
        raise RecipeError(f"the recipe starts from {recipe.init_from}: give --init, too, for another --arch")
    return replace(recipe, arch=arch, overrides={}, name=recipe.name.replace(recipe.arch, arch))
