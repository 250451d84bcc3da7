"""Training on opinion scores: from a recipe and rated photographs to a checkpoint folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..calibration import Calibration
from ..data import Rated
from ..errors import RecipeError
from ..metrics import plcc, srcc
from ..models.capabilities import StageFeatures, require
from ..protocol import Protocol
from ..scoring import Scorer
from .batches import Batch, make_batch
from .calibrating import fit_calibration
from .checkpoint_task import CheckpointTask
from .distil import Distiller
from .engine import Report, Run, fit
from .folds import by_fold, check_folds, digest_of
from .losses import plcc_loss, ranking_loss, score_loss, smooth_l1
from .processes import Processes
from .rated_sets import on_one_scale
from .recipe import Recipe
from .sampling import drawn
from .teacher import load_teacher


def train(
    recipe: Recipe,
    ratings: Sequence[Rated],
    out: str | Path,
    *,
    processes: int = 1,
    device: str | torch.device = "cpu",
    init: str | Path | None = None,
    teacher: str | Path | None = None,
    resume: bool = True,
    report: Report | None = None,
) -> Path:
    """Train on the fold "train", validate on the fold "val", and write a checkpoint.

    Args:
        recipe: the plan.
        ratings: photographs with folds; MOS in [0, 1], or of any scale where the recipe maps sets to one.
            The fold "test" is not used.
        out: folder for ``state.pt`` (to resume from), ``log.jsonl`` and ``checkpoint/``.
        processes: how many share the work on a CPU; batches are split, gradients averaged. Their number
            changes the crops that are drawn and the batches that PLCC is measured on, so it is part of what
            makes a run repeatable. More than one need the caller's file to be importable: call from under
            ``if __name__ == "__main__":``.
        device: of the network.
        init: weights to start from, of the same architecture: a pretrained checkpoint (a folder, or any name
            that ``qmamba.load`` takes), or published weights that the architecture can convert.
        teacher: checkpoint of a teacher that rates, by any name that ``qmamba.load`` takes; the recipe
            ``teacher`` makes one. Without it, a recipe that distils uses EfficientNet-Lite0, which knows
            features only.
        resume: resume from ``out/state.pt`` if there is one; otherwise such a folder is refused. A run that
            has ended is left as it is.
        report: called with ``{"step", "steps", "lr", "loss", …}`` after every step and with ``{"step",
            "val_srcc", "val_plcc"}`` after a validation. An exception that it raises ends the run, which can
            be resumed from that very step.

    Returns:
        The folder of the checkpoint, calibrated on the fold "train".

    Raises:
        RecipeError: the ratings lack a fold or leave [0, 1], ``out`` belongs to another run, accelerate is
            not installed, or the training has diverged.
        UnknownModelError: the recipe's architecture.
        CapabilityError: the recipe has a teacher, and the network or the teacher gives no features.
        CheckpointError, HubError: there is no such ``init`` or ``teacher``, or it does not fit.
        ImageError: a photograph that cannot be decoded.
        BackendError: a device that cannot be used here, or a process that could not be started.
    """
    task = Ratings(recipe, ratings, init=init, teacher=teacher)
    return fit(task, recipe, out, processes=processes, device=device, resume=resume, report=report)


class Ratings(CheckpointTask[Batch]):
    """Opinion scores, ranks of distorted copies, and in some phases a teacher's features and scores.

    Args:
        recipe, ratings, init, teacher: as for :func:`train`.

    Raises:
        RecipeError, UnknownModelError, CheckpointError: as for :func:`train`.
    """

    def __init__(
        self,
        recipe: Recipe,
        ratings: Sequence[Rated],
        *,
        init: str | Path | None = None,
        teacher: str | Path | None = None,
    ) -> None:
        if recipe.sets:
            ratings = on_one_scale(ratings, tuple(recipe.sets), recipe.scale, recipe.as_is)
        self.folds = by_fold(ratings, ("train", "val"))
        if recipe.sets:  # one set selects: orders between sets are not known
            self.folds["val"] = [r for r in self.folds["val"] if r.set == recipe.scale]
        check_folds(self.folds)
        self.recipe, self.shared = recipe, {"images": recipe.images, "ranked": recipe.ranked}
        self.teacher_name = teacher
        if teacher is None and any(phase.scores > 0 for phase in recipe.phases):
            raise RecipeError("this recipe learns a teacher's scores; give the checkpoint of one that rates")
        names = tuple(recipe.sets) or (recipe.data,)
        super().__init__(recipe, names, protocol=protocol_of(recipe), init=init)

    def setup(self, processes: Processes) -> None:
        distils = self.recipe.distils
        self.teacher = load_teacher(self.teacher_name).to(processes.device) if distils else None
        super().setup(processes)

    def make_heads(self) -> nn.Module:
        """Return what predicts the teacher's features, if there is a teacher.

        Raises:
            CapabilityError: the network does not give features.
        """
        if self.teacher is None:
            return nn.ModuleList()
        network = require(self.network, StageFeatures, "features to learn from")
        return Distiller(network.feature_info, self.teacher.feature_info)

    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint(), "data": digest_of(self.folds)}

    def make_batch(self, step: int, rank: int, ranks: int) -> Batch:
        return make_batch(self.folds["train"], self.recipe, step, rank, ranks)

    def losses(self, batch: Batch, run: Run) -> dict[str, Tensor]:
        phase = self.recipe.phase_at(run.step)
        taught = phase.distil > 0 or phase.scores > 0
        with run.processes.autocast():
            seen = self.interface.see(self.network, batch.crops, features=taught)
            lesson = self.teacher(batch.crops) if taught and self.teacher is not None else None
        losses = rating_losses(seen.raw, batch, self.recipe)
        losses["loss"] = phase.mos * losses["loss"]
        if lesson is not None:
            losses["distil"] = self.heads(seen.features, lesson.features)
            losses["loss"] = losses["loss"] + phase.distil * losses["distil"]
            if lesson.scores is not None:
                losses["scores"] = score_loss(seen.raw, lesson.scores)
                losses["loss"] = losses["loss"] + phase.scores * losses["scores"]
        return losses

    def validate(self, run: Run) -> dict[str, Any] | None:
        if run.step == 0 or (run.step % self.recipe.validate_every and run.step != self.steps):
            return None
        return validate(self.scorer(run), self.folds["val"], run.processes)

    def finish(self, run: Run) -> Path:
        scorer = self.scorer(run)
        rated = [r for r in self.folds["train"] if not self.recipe.sets or r.set == self.recipe.scale]
        calibration = calibrate(scorer, rated, self.recipe, run.processes)
        if run.is_first:
            config = scorer.config.replace(calibration=calibration)
            Scorer(scorer.network, config).save_pretrained(run.out / "checkpoint")
        return run.out / "checkpoint"


def protocol_of(recipe: Recipe) -> Protocol | None:
    """Return the protocol of scales that a recipe asks for, None for the architecture's own."""
    return Protocol("scales", max_crops=recipe.max_crops, sides=recipe.sides) if recipe.sides else None


def rating_losses(raw: Tensor, batch: Batch, recipe: Recipe) -> dict[str, Tensor]:
    """Return the losses on MOS and ranks of raw quality (n + 2t,), by name, and their sum as ``loss``."""
    count = batch.mos.numel()
    rated, mos = raw[:count], batch.mos.to(raw.device)
    losses = {"smooth_l1": smooth_l1(rated, mos, recipe.beta), "plcc": plcc_loss(rated, mos)}
    total = losses["smooth_l1"] + recipe.plcc * losses["plcc"]
    if len(batch.originals):
        mild, strong = raw[count:].view(2, -1)
        levels = batch.levels.to(raw.device)
        original = rated[batch.originals.to(raw.device)]
        losses["ranking"] = ranking_loss(original, mild, recipe.margin * levels[0]) + ranking_loss(
            mild, strong, recipe.margin * (levels[1] - levels[0])
        )
        total = total + recipe.ranking * losses["ranking"]
    return {"loss": total, **losses}


def validate(
    scorer: Scorer, ratings: Sequence[Rated], processes: Processes, max_crops: int = 4
) -> dict[str, float]:
    """Return SRCC and PLCC on a fold, with at most ``max_crops`` crops per image, shared by the processes."""
    protocol = replace(scorer.protocol, max_crops=min(max_crops, scorer.protocol.max_crops))
    quick = Scorer(scorer.network, scorer.config.replace(protocol=protocol))
    scores = processes.share(ratings, lambda mine: quick.score([r.path for r in mine]).tolist())
    mos = [r.mos for r in ratings]
    return {"val_srcc": round(srcc(scores, mos), 4), "val_plcc": round(plcc(scores, mos), 4)}


def calibrate(scorer: Scorer, ratings: Sequence[Rated], recipe: Recipe, processes: Processes) -> Calibration:
    """Return the calibration that maps raw quality of crops to the MOS of some training photographs.

    Raises:
        RecipeError: raw quality does not rise with MOS.
    """
    chosen = drawn(ratings, recipe.calibration_images, recipe.seed)
    raw = processes.share(chosen, lambda mine: [scorer.raw_parts(r.path).raw for r in mine])
    found = fit_calibration(raw, [r.mos for r in chosen])
    if found is None:
        raise RecipeError(
            "raw quality does not rise with MOS, so it cannot be calibrated; train for longer, or lower lr"
        )
    return found
