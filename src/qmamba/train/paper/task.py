"""The paper's runs as a task: a network, or an adapter beside one, on one or several rated sets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ...adapters import Adapter, AdapterConfig, create, save_adapter
from ...calibration import Calibration
from ...checkpoints import default_config
from ...checkpoints.safetensors_file import replace_file, serialise
from ...checkpoints.start import BASES, Start, no_start
from ...data import Rated
from ...errors import DataSetError
from ...metrics import plcc, srcc
from ...scoring import Scorer, load
from ...scoring.pipeline import quality
from ...version import __version__
from ..calibrating import fit_calibration
from ..engine import Report, Run, fit
from ..losses import (
    correlation_loss,
    pairwise_ranking,
    plcc_loss,
    smooth_l1,
    squared_correlation_loss,
)
from ..networks import Interface, make_network
from ..processes import Processes, is_first
from ..state import forget_state
from ..task import Task
from ..tracking import Tracker
from .curve import draw_curve
from .names import name_of
from .recipe import NO_TUNING, PaperRecipe
from .runs import Run as PaperRun
from .runs import Workshop, folder_of, identity, runs_of
from .sets import Crops, RatedSet, read_set, split_set
from .testing import measure, protocol_of, rate_images

RESULTS, CURVE = "results.json", "curve.png"
CALIBRATION_IMAGES = 200  # of each training set
VAL_IMAGES = 100  # of each set that a learning curve's SRCC is measured on, spread over its fold
Batch = tuple[Tensor, Tensor]


def do_run(
    run: PaperRun, recipe: PaperRecipe, shop: Workshop, ratings: dict[str, list[Rated]] | None = None
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
        held_out = 0.0 if run.base is None else recipe.held_out
        sets = {
            name: split_set(
                name, ratings[name], recipe, run.split, held_out=held_out if name in run.test else 0.0,
                dry=shop.dry, cache=shop.cache,
            )
            for name in run.sets
        }  # fmt: skip
        _check_selection(run, sets)
        task, device = PaperTask(run, recipe, shop, sets), "cpu" if shop.cpu else None
        tracker = None
        if shop.log is not None and run.train:
            tracker = Tracker(shop.log, str(folder_of(run, recipe)), run.title)
        seeded = replace(recipe, seed=recipe.seed + run.split)
        fit(task, seeded, folder, device=device, tracker=tracker, report=shop.report_of(run))
    if is_first():
        forget_state(folder)
    found: dict[str, Any] = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    return found


def _check_selection(run: PaperRun, sets: Mapping[str, RatedSet]) -> None:
    for name in run.test if run.rate is not None else ():
        if len(sets[name].folds.get("val", ())) < 2:
            raise DataSetError(f"{name}: rates are chosen on a fold 'val', which it lacks; set held_out")


def each_run(
    recipe: PaperRecipe, shop: Workshop, absent: Callable[[PaperRun], str | None]
) -> Iterator[tuple[PaperRun, dict[str, Any] | str]]:
    """Do the runs of all splits in order; yield each with its results, or with what it lacks."""
    ratings: dict[str, list[Rated]] = {}
    for split in range(1 if shop.dry else recipe.splits):
        for run in runs_of(recipe, split):
            lack = absent(run)
            yield run, do_run(run, recipe, shop, ratings) if lack is None else lack


class PaperTask(Task[Batch]):
    """A run: learn opinion scores of sets on one scale, measure, and save weights and results.

    Args:
        run: what is learnt and measured.
        recipe: how; split i adds i to its seed.
        shop: where and with what.
        sets: all sets of the run, in its split.

    Attributes:
        began, began_sha256: what the network started from and its digest, after :meth:`setup`.
        config: of the checkpoint, after :meth:`setup`; for an adapter that of its base.
        base, base_sha256: the base of an adapter and its digest, after :meth:`setup`.
    """

    base: nn.Module

    def __init__(self, run: PaperRun, recipe: PaperRecipe, shop: Workshop, sets: dict[str, RatedSet]) -> None:
        self.run, self.recipe, self.shop, self.sets = run, recipe, shop, sets
        self.steps, self.shared, self.resumable = 0, {}, not shop.dry
        if run.train:
            self.crops = Crops(self._learnt, recipe, recipe.seed + run.split)
            self.steps = min(2, self.crops.steps) if shop.dry else self.crops.steps
            self.shared = {"batch": self.crops.batch // recipe.accumulate}
        self.peak = recipe.lr

    def setup(self, processes: Processes) -> None:
        recipe, run, shop, self.heads = self.recipe, self.run, self.shop, nn.ModuleList()
        if run.base is None:
            self.network, self.began = make_network(recipe, processes.device, self._init(), shop.root)
            self.config = default_config(
                self.network, recipe.name, trained_on=run.train, licence=recipe.licence,
                protocol=protocol_of(recipe), bases=self.began.bases,
            )  # fmt: skip
        else:
            base = load(shop.out / folder_of(run.base, recipe) / "checkpoint", device=processes.device)
            self.network, self.config = base.base(), base.config.replace(protocol=protocol_of(recipe))
            self.base, self.base_sha256 = self.network, base.base_sha256()
            self.began = Start("the base", tuple(self.network.state_dict()))
        self.began_sha256 = hashlib.sha256(serialise(self.network.state_dict(), torch.float32)).hexdigest()
        if run.base is not None and recipe.adapter != NO_TUNING:
            adapter = create(recipe.adapter, self.network, **recipe.adapter_options)
            self.network = adapter.to(processes.device)
            self.peak = run.rate or recipe.adapter_lr or adapter.lr
        self.device, self.interface = processes.device, Interface.of(self.config)

    def _init(self) -> str:
        """Return what the network starts from; a dry run downloads no base weights."""
        init = self.recipe.init_from
        if self.shop.dry and (init == BASES or no_start(init, self.shop.root) is not None):
            return ""
        return init

    def fingerprint(self) -> dict[str, Any]:
        return identity(self.run, self.recipe)

    @property
    def _learnt(self) -> list[RatedSet]:
        return [self.sets[name] for name in self.run.train]

    def lr_at(self, step: int) -> float:
        return self.recipe.lr_at(step, self.crops.epoch_steps, self.peak)

    def batches(self, run: Run) -> Iterator[Batch]:
        """Yield this process's part of each accumulated part of each batch."""
        parts, processes = self.recipe.accumulate, run.processes
        part = self.crops.batch // parts
        share = part // processes.size
        starts = range(run.step * self.crops.batch, self.steps * self.crops.batch, part)
        mine = [list(range(s + processes.rank * share, s + (processes.rank + 1) * share)) for s in starts]
        return iter(
            DataLoader(
                self.crops,
                batch_sampler=mine,
                num_workers=self.shop.workers,
                pin_memory=processes.device.type == "cuda",
                generator=torch.Generator(),  # none of the process's own
            )
        )

    def rate(self, trained: nn.Module, images: Tensor) -> Tensor:
        """Return raw quality (B,) of normalised images (B, 3, S, S), by a network or by an adapter."""
        outputs = trained(self.base, images) if isinstance(trained, Adapter) else trained(images)
        return quality(outputs, self.config.output)

    def losses(self, batch: Batch, run: Run) -> dict[str, Tensor]:
        pixels, mos = batch
        images = self.interface.images(pixels, self.device)
        with run.processes.autocast():
            raw = self.rate(self.network, images)
        return losses_of(raw, mos.to(raw.device).float(), self.recipe)

    def rate_set(
        self, run: Run, images: Sequence[Rated], of: RatedSet, report: Report | None = None
    ) -> Tensor:
        """Return raw quality (n, crops) of images of a set by the weights to keep."""
        trained = run.averaged
        scorer = Scorer(self.base if isinstance(trained, Adapter) else trained, self.config)
        return rate_images(scorer, partial(self.rate, trained), images, of, run.processes, report)

    def validate(self, run: Run) -> dict[str, Any] | None:
        """Return mean SRCC and PLCC on some images of the folds "val", after each epoch."""
        if run.step == 0 or run.step % self.crops.epoch_steps:
            return None
        found = []
        for each in self._learnt:
            images = list(each.folds.get("val", ()))
            images = images[:: -(-len(images) // VAL_IMAGES) or 1]
            if len(images) > 1:
                raw, mos = self.rate_set(run, images, each).mean(dim=1), [r.mos for r in images]
                found.append((srcc(raw, mos), plcc(raw, mos)))
        if not found:
            return None
        means = [round(sum(column) / len(found), 4) for column in zip(*found, strict=True)]
        return {"val_srcc": means[0], "val_plcc": means[1]}

    def finish(self, run: Run) -> Path:
        """Measure what was learnt on the test folds, and write the weights and, last, the results."""
        report = self.shop.report_of(self.run) if run.is_first else None

        def rated(name: str, images: list[Rated]) -> Tensor:
            return self.rate_set(run, images, self.sets[name], report)

        if report is not None and self.began.dropped and self.run.split == 0:
            report({"note": self.began.report()})

        def measured_on(fold: str) -> dict[str, Any]:
            folds = {name: list(self.sets[name].folds.get(fold, ())) for name in self.run.test}
            return {
                name: measure(rated(name, images).mean(dim=1), [r.mos for r in images])
                for name, images in folds.items()
            }

        measured = measured_on("test")
        results = {
            "run": self.fingerprint(), "split": self.sets[self.run.test[0]].split,
            "start": self.began.to_dict(), "steps": self.steps, "sets": measured, "dry_run": self.shop.dry,
            "name": name_of(self.run, self.recipe), "start_sha256": self.began_sha256,
            "hashes": {name: each.hashes() for name, each in self.sets.items()},
            "qmamba": __version__, "torch": torch.__version__,
        }  # fmt: skip
        if self.run.rate is not None:
            results["val"] = measured_on("val")
        calibration = self._calibration(rated) if self.run.train else None
        if run.is_first:
            if calibration is not None:
                self._save_weights(run, calibration, results)
                draw_curve(run.out, run.out / CURVE, self.run.title)
            replace_file(run.out / RESULTS, (json.dumps(results, indent=2) + "\n").encode())
        run.processes.accelerator.wait_for_everyone()
        return run.out / RESULTS

    def _calibration(self, rated: Callable[[str, list[Rated]], Tensor]) -> Calibration:
        """Fit on some training images; the default one where raw quality does not rise with MOS."""
        raws: list[Tensor] = []
        labels: list[float] = []
        for each in self._learnt:
            images = list(each.folds["train"])
            chosen = images[:: -(-len(images) // CALIBRATION_IMAGES)]
            raws += rated(each.name, chosen).unbind()
            labels += [min(max(r.mos, 0.0), 1.0) for r in chosen]
        return fit_calibration(raws, labels) or Calibration()

    def _save_weights(self, run: Run, calibration: Calibration, results: dict[str, Any]) -> None:
        """Save the checkpoint, or the adapter, with what it was trained on and how it was measured."""
        recipe, trained = self.recipe, run.averaged
        about: dict[str, Any] = {
            "calibration": calibration,
            "results": {f"{name}, test": found for name, found in results["sets"].items()},
            "training": {key: results[key] for key in ("name", "run", "steps", "hashes")}
            | {"start": self.began.source},
        }
        if not isinstance(trained, Adapter):
            checkpoint = self.config.replace(name=results["name"], **about)
            Scorer(trained, checkpoint).save_pretrained(run.out / "checkpoint")
            return
        config = AdapterConfig(
            recipe.adapter, self.config.name, self.base_sha256, options=recipe.adapter_options,
            trained_on=self.run.train, licence=recipe.licence, **about,
        )  # fmt: skip
        save_adapter(run.out / "adapter", trained, config)


def losses_of(raw: Tensor, mos: Tensor, recipe: PaperRecipe) -> dict[str, Tensor]:
    """Return the recipe's losses of raw quality (n,) by name, and their weighted sum as ``loss``."""
    kinds: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "smooth-l1": lambda p, m: smooth_l1(p, m, recipe.beta),
        "plcc": plcc_loss,
        "ranking": pairwise_ranking,
        "correlation": correlation_loss,
        "squared-correlation": squared_correlation_loss,
    }
    parts = {name: kinds[name](raw, mos) for name in recipe.losses}
    total = torch.stack([recipe.losses[name] * loss for name, loss in parts.items()]).sum()
    return {"loss": total, **parts}
