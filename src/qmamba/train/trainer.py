"""The training loop: from a recipe and rated photographs to a checkpoint folder."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..calibration import Calibration
from ..checkpoints import ModelConfig
from ..data import Rated
from ..errors import RecipeError
from ..metrics import plcc, srcc
from ..models.qmamba import QMamba
from ..protocol import Protocol
from ..scoring import Scorer
from .batches import Batch, make_batch
from .distil import Distiller
from .loop import (
    Learner,
    Report,
    batch_workers,
    check_device,
    check_folder,
    check_processes,
    check_teacher,
    made_ahead,
    run_steps,
    start_from,
)
from .losses import plcc_loss, ranking_loss, score_loss, smooth_l1
from .parallel import Team, team_of
from .recipe import Recipe
from .teacher import ARCH as TEACHER
from .teacher import Teacher, Trainee


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
    """Train on the ``train`` fold, watch the ``val`` fold, and write a checkpoint.

    Args:
        recipe: the plan.
        ratings: photographs with folds; MOS in [0, 1]. The ``test`` fold is not looked at.
        out: folder for ``state.pt`` (to go on from), ``log.jsonl`` and ``checkpoint/``.
        processes: on a processor, how many share the work; batches are split, gradients averaged. Their
            number changes the crops that are drawn and the batches that PLCC is measured on, so it is part of
            what makes a run repeatable. More than one need the caller's file to be importable: call from
            under ``if __name__ == "__main__":``.
        device: of the network.
        init: checkpoint of the same architecture to start from, one that was pretrained, say: a folder, or
            any name that ``qmamba.load`` takes.
        teacher: weights of a teacher that rates, which a recipe for the teacher made; without, a recipe that
            distils has one that knows features only.
        resume: go on from ``out/state.pt`` if it is there; otherwise such a folder is refused. A run that has
            ended already is left as it is.
        report: called with ``{"step", "steps", "lr", "loss", …}`` at every step and ``{"step", "val_srcc",
            "val_plcc"}`` at times. What it raises ends the run, which can go on from that very step.

    Returns:
        The folder of the checkpoint, calibrated on the train fold; for the teacher the file of its weights.

    Raises:
        RecipeError: the ratings lack a fold or leave [0, 1], ``out`` belongs to another recipe, or the
            training has diverged.
        UnknownModelError: the recipe's architecture.
        ImageError: a photograph that cannot be decoded.
        BackendError: a device that cannot be used here, or a process that could not be started.
    """
    out = Path(out)
    folds = {fold: [r for r in ratings if r.fold == fold] for fold in ("train", "val")}
    _check(recipe, folds, processes)
    check_device(device)
    check_folder(out, resume)
    check_teacher(any(phase.scores > 0 for phase in recipe.phases), teacher)
    start, rater = (None if name is None else str(name) for name in (init, teacher))
    args = (recipe, folds, out, str(device), start, rater)
    with torch.random.fork_rng(), team_of(processes, _run, args) as team:
        return _run(team, *args, report=report)


def _check(recipe: Recipe, folds: dict[str, list[Rated]], processes: int) -> None:
    for fold, rated in folds.items():
        if len(rated) < 2:
            number = "one was" if rated else "none were"
            raise RecipeError(f"training needs photographs of the fold {fold!r}, and {number} given")
        if not all(0.0 <= r.mos <= 1.0 for r in rated):
            raise RecipeError("training needs MOS in [0, 1], higher is better: rescale the ratings first")
    check_processes(processes, recipe, "images", "ranked")


def _run(
    team: Team,
    recipe: Recipe,
    folds: dict[str, list[Rated]],
    out: Path,
    device: str,
    init: str | None,
    teacher: str | None,
    report: Report | None = None,
) -> Path:
    weights = None if init is None else start_from(init, recipe)
    learner, checkpoint = _Tuner(recipe, torch.device(device), weights, teacher), out / "checkpoint"
    learner.restore(out)
    rates = out / "teacher.safetensors"
    for result in (checkpoint / "config.json", rates):
        if learner.step == recipe.steps and result.exists():
            return result if result == rates else checkpoint

    def look() -> dict[str, Any] | None:
        if learner.step % recipe.validate_every and learner.step != recipe.steps:
            return None
        return validate(learner.scorer(), folds["val"], team)

    def batch(step: int) -> Batch:
        return make_batch(folds["train"], recipe, step, team.rank, team.size)

    batches = made_ahead(batch, learner.step, recipe.steps, batch_workers(learner.device))
    run_steps(learner, batches, out, team, report, look)
    if recipe.arch == TEACHER:
        if team.rank == 0:
            assert isinstance(learner.mean_network, Trainee)
            tuned = learner.mean_network.teacher.state_dict()
            save_file({name: value.contiguous() for name, value in tuned.items()}, rates)
        return rates
    scorer = calibrated(learner.scorer(), folds["train"], recipe, team)
    if team.rank == 0:
        scorer.save_pretrained(checkpoint)
    return checkpoint


class _Tuner(Learner[Batch]):
    """Opinion scores, ranks of degraded copies, and in some phases a teacher's features."""

    plan: Recipe

    def __init__(
        self,
        recipe: Recipe,
        device: torch.device,
        init: Mapping[str, Tensor] | None,
        teacher: str | None,
    ) -> None:
        # The config now, so that a name it refuses is known before hours are spent.
        self.config = ModelConfig(
            name=recipe.name, arch=recipe.arch, overrides=recipe.overrides, trained_on=(recipe.data,),
            licence=recipe.licence, limits=recipe.limits, dtype="float16", protocol=protocol_of(recipe),
        )  # fmt: skip
        super().__init__(recipe, device, init)
        self.teacher = Teacher(teacher).to(device) if recipe.distils else None

    def make_heads(self) -> nn.Module:
        if not self.plan.distils:
            return super().make_heads()
        assert isinstance(self.network, QMamba)
        return Distiller(self.network)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        phase = self.plan.phase_at(self.step)
        learns = phase.distil > 0 or phase.scores > 0
        seen = self.look_at(batch.crops, self.teacher if learns else None)
        losses = _losses(seen.raw, batch, self.plan)
        losses["loss"] = phase.mos * losses["loss"]
        if seen.targets:
            losses["distil"] = self.heads(seen.features, seen.targets)
            losses["loss"] = losses["loss"] + phase.distil * losses["distil"]
        if seen.scores is not None:
            losses["scores"] = score_loss(seen.raw, seen.scores)
            losses["loss"] = losses["loss"] + phase.scores * losses["scores"]
        return losses

    def scorer(self) -> Scorer:
        """The running mean as a scorer that is not calibrated yet."""
        training = {"recipe": asdict(self.plan), "steps": self.step}
        return Scorer(copy.deepcopy(self.mean_network), self.config.replace(training=training))


def protocol_of(recipe: Recipe) -> Protocol:
    """The protocol of the checkpoint that a recipe makes."""
    return Protocol("scales", max_crops=recipe.max_crops, sides=recipe.sides) if recipe.sides else Protocol()


def _losses(raw: Tensor, batch: Batch, recipe: Recipe) -> dict[str, Tensor]:
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


def validate(scorer: Scorer, ratings: Sequence[Rated], team: Team, max_crops: int = 4) -> dict[str, float]:
    """SRCC and PLCC on a fold with at most four crops an image, shared among the processes."""
    protocol = replace(scorer.protocol, max_crops=min(max_crops, scorer.protocol.max_crops))
    quick = Scorer(scorer.network, scorer.config.replace(protocol=protocol))
    mine = list(ratings[team.rank :: team.size])
    scores = quick.score([r.path for r in mine])
    parts = team.collect((scores.tolist(), [r.mos for r in mine]))
    pred, mos = ([v for part in parts for v in part[i]] for i in (0, 1))
    return {"val_srcc": round(srcc(pred, mos), 4), "val_plcc": round(plcc(pred, mos), 4)}


def calibrated(scorer: Scorer, ratings: Sequence[Rated], recipe: Recipe, team: Team) -> Scorer:
    """The scorer with a calibration that maps its raw crops to the MOS of training photographs."""
    g = torch.Generator().manual_seed(recipe.seed)
    chosen = torch.randperm(len(ratings), generator=g)[: recipe.calibration_images].tolist()
    mine = [ratings[i] for i in chosen[team.rank :: team.size]]
    pairs = [(value, r.mos) for r in mine for value in raw_parts(scorer, r.path)[0].tolist()]
    raw, mos = torch.tensor([pair for part in team.collect(pairs) for pair in part]).T
    return Scorer(scorer.network, scorer.config.replace(calibration=Calibration.fit(raw, mos)))


def raw_parts(scorer: Scorer, image: Path) -> tuple[Tensor, Tensor]:
    """What a photograph's score is made of, before the calibration: raw quality (n,), and weights (n,), both
    float64."""
    parts, used = scorer.crop_scores(image), scorer.calibration
    return (torch.logit(parts.scores.double()) - used.offset) / used.slope, parts.weights.double()
