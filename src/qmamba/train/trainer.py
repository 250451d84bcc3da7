"""The training loop: from a recipe and rated photographs to a checkpoint folder."""

from __future__ import annotations

import copy
import json
import math
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..calibration import Calibration
from ..data import Rated
from ..errors import BackendError, QMambaError, RecipeError
from ..metrics import plcc, srcc
from ..model_config import ModelConfig, Preprocessing
from ..models import QMamba, create_model
from ..protocol import Protocol
from ..scorer import Scorer
from .batches import Batch, prefetch
from .distil import Distiller, Teacher
from .losses import plcc_loss, ranking_loss, smooth_l1
from .parallel import Team, team_of
from .recipe import Recipe

Report = Callable[[dict[str, Any]], None]
SAVE_EVERY = 100  # steps between two states that a run can go on from
MAX_PROCESSES = 64  # seeds of batches leave room for so many


def train(
    recipe: Recipe,
    ratings: Sequence[Rated],
    out: str | Path,
    *,
    processes: int = 1,
    device: str | torch.device = "cpu",
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
        resume: go on from ``out/state.pt`` if it is there; otherwise such a folder is refused. A run that has
            ended already is left as it is.
        report: called with ``{"step", "steps", "lr", "loss", …}`` at every step and ``{"step", "val_srcc",
            "val_plcc"}`` at times. What it raises ends the run, which can go on from that very step.

    Returns:
        The folder of the checkpoint, calibrated on the train fold.

    Raises:
        RecipeError: the ratings lack a fold or leave [0, 1], ``out`` belongs to another recipe, or the
            training has diverged.
        UnknownModelError: the recipe's architecture.
        ImageError: a photograph that cannot be decoded.
        BackendError: a device that cannot be used here, or a process that could not be started.
    """
    out = Path(out)
    folds = {fold: [r for r in ratings if r.fold == fold] for fold in ("train", "val")}
    _check(recipe, folds, processes, out, resume)
    _check_device(device)
    out.mkdir(parents=True, exist_ok=True)
    args = (recipe, folds, out, str(device))
    with torch.random.fork_rng(), team_of(processes, _run, args) as team:
        return _run(team, *args, report=report)


def _check(recipe: Recipe, folds: dict[str, list[Rated]], processes: int, out: Path, resume: bool) -> None:
    for fold, rated in folds.items():
        if len(rated) < 2:
            number = "one was" if rated else "none were"
            raise RecipeError(f"training needs photographs of the fold {fold!r}, and {number} given")
        if not all(0.0 <= r.mos <= 1.0 for r in rated):
            raise RecipeError("training needs MOS in [0, 1], higher is better: rescale the ratings first")
    if not 1 <= processes <= MAX_PROCESSES:
        raise RecipeError(f"processes is 1 to {MAX_PROCESSES}, not {processes}")
    if recipe.images % processes or recipe.ranked % processes:
        raise RecipeError(
            f"images ({recipe.images}) and ranked ({recipe.ranked}) must divide by processes ({processes})"
        )
    if (out / "state.pt").exists() and not resume:
        raise RecipeError(f"{out} holds an unfinished run: resume it, or choose another folder")


def _check_device(device: str | torch.device) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BackendError(f"device {str(device)!r} cannot be used here ({reason}); try 'cpu'") from error


def _run(
    team: Team,
    recipe: Recipe,
    folds: dict[str, list[Rated]],
    out: Path,
    device: str,
    report: Report | None = None,
) -> Path:
    run, checkpoint = _Run(recipe, torch.device(device)), out / "checkpoint"
    run.restore(out)
    if run.step == recipe.steps and (checkpoint / "config.json").exists():
        return checkpoint
    if team.rank == 0:
        _shorten_log(out, run.step)
    batches = prefetch(folds["train"], recipe, run.step, team.rank, team.size)
    for batch in batches:
        began, lr = time.monotonic(), run.lr()
        losses = run.learn(batch, team)
        if team.rank == 0:
            losses["seconds"] = round(time.monotonic() - began, 3)
            _tell(run, out, report, {"step": run.step, "steps": recipe.steps, "lr": lr, **losses})
        done = run.step == recipe.steps
        if run.step % recipe.validate_every == 0 or done:
            found = validate(run.scorer(), folds["val"], team)
            if team.rank == 0:
                _tell(run, out, report, {"step": run.step, **found})
        if team.rank == 0 and (run.step % SAVE_EVERY == 0 or done):
            run.save(out)
    scorer = calibrated(run.scorer(), folds["train"], recipe, team)
    if team.rank == 0:
        scorer.save_pretrained(checkpoint)
    return checkpoint


class _Run:
    """What changes while training: weights, their running mean, the optimiser, the step."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.device, self.step = recipe, device, 0
        # The config now, so that a name it refuses is known before hours are spent.
        self.config = ModelConfig(
            name=recipe.name, arch=recipe.arch, overrides=recipe.overrides, trained_on=(recipe.data,),
            licence=recipe.licence, limits=recipe.limits, dtype="float16",
        )  # fmt: skip
        self.network = _create(recipe).to(device).train()
        _start(self.network)
        self.mean_network = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.teacher = Teacher().to(device) if recipe.distils else None
        self.distiller = Distiller(self.network).to(device) if recipe.distils else None
        groups = _groups(self.network, recipe.weight_decay)
        if self.distiller is not None:
            groups.append({"params": list(self.distiller.parameters()), "weight_decay": 0.0})
        self.optimiser = torch.optim.AdamW(groups, lr=recipe.lr)
        stats = Preprocessing()
        self.mean = torch.tensor(stats.mean, device=device).view(3, 1, 1) * 255
        self.std = torch.tensor(stats.std, device=device).view(3, 1, 1) * 255

    def lr(self) -> float:
        """Linear warm-up, then a cosine to zero."""
        r, progress = self.recipe, (self.step + 1) / self.recipe.steps
        if progress <= r.warmup:
            return r.lr * progress / r.warmup
        return r.lr * 0.5 * (1 + math.cos(math.pi * (progress - r.warmup) / (1 - r.warmup)))

    def learn(self, batch: Batch, team: Team) -> dict[str, float]:
        """One step of the optimiser; returns the losses of this process."""
        torch.manual_seed((self.recipe.seed * 1_000_003 + self.step) * 64 + team.rank)  # drop-path
        losses = self.losses(batch)
        self.optimiser.zero_grad(set_to_none=True)
        if not torch.isfinite(losses["loss"]):
            raise RecipeError(
                f"training has diverged at step {self.step + 1}: lower lr or clip in the recipe"
            )
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        trained = [p for group in self.optimiser.param_groups for p in group["params"]]
        gradients = [p.grad for p in trained if p.grad is not None]
        team.average_(gradients)
        nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr()
        self.optimiser.step()
        self._follow()
        self.step += 1
        return {name: round(loss.item(), 5) for name, loss in losses.items()}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """All losses of a batch by name, and their weighted sum as ``loss``."""
        phase = self.recipe.phase_at(self.step)
        crops = batch.crops.to(self.device).float()
        raw, features = self.network.forward_with_features((crops - self.mean) / self.std)
        losses = _losses(raw[:, 0], batch, self.recipe)
        losses["loss"] = phase.mos * losses["loss"]
        if phase.distil > 0 and self.teacher is not None and self.distiller is not None:
            losses["distil"] = self.distiller(features, self.teacher(crops / 255))
            losses["loss"] = losses["loss"] + phase.distil * losses["distil"]
        return losses

    @torch.no_grad()
    def _follow(self) -> None:
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        means, weights = self.mean_network.parameters(), self.network.parameters()
        torch._foreach_lerp_(list(means), list(weights), 1 - decay)

    def scorer(self) -> Scorer:
        """The running mean as a scorer that is not calibrated yet."""
        training = {"recipe": asdict(self.recipe), "steps": self.step}
        return Scorer(copy.deepcopy(self.mean_network), self.config.replace(training=training))

    def save(self, out: Path) -> None:
        """Write what :meth:`restore` reads."""
        state = {
            "recipe": json.dumps(asdict(self.recipe), sort_keys=True), "step": self.step,
            "network": self.network.state_dict(), "mean": self.mean_network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "distiller": self.distiller.state_dict() if self.distiller is not None else {},
        }  # fmt: skip
        torch.save(state, out / "state.tmp")
        (out / "state.tmp").replace(out / "state.pt")  # never a half-written state

    def restore(self, out: Path) -> None:
        """Go on from the state in ``out``, if there is one."""
        if not (out / "state.pt").exists():
            return
        try:
            state = torch.load(out / "state.pt", map_location=self.device, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise RecipeError(f"{out / 'state.pt'} is damaged: choose another folder") from error
        if state["recipe"] != json.dumps(asdict(self.recipe), sort_keys=True):
            raise RecipeError(f"{out} holds a run of another recipe: choose another folder")
        self.step = state["step"]
        self.network.load_state_dict(state["network"])
        self.mean_network.load_state_dict(state["mean"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.distiller is not None:
            self.distiller.load_state_dict(state["distiller"])


def _create(recipe: Recipe) -> QMamba:
    try:
        return create_model(recipe.arch, **recipe.overrides)
    except ValueError as error:
        if isinstance(error, QMambaError):
            raise
        raise RecipeError(f"the recipe's overrides do not fit: {error}") from error


def _start(network: QMamba) -> None:
    """A start for short trainings from nothing.

    Linears are drawn with a deviation of fan_in^-½: 0.02 leaves the branches of a narrow network almost
    silent. The head gives one answer for all: random differences are best lowered by features that do not
    differ, and the network collapses into that.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
    nn.init.zeros_(network.head.fc.weight)
    nn.init.constant_(network.head.fc.bias, 0.5)  # the middle of the MOS scale


def _groups(network: QMamba, weight_decay: float) -> list[dict[str, Any]]:
    still = network.no_weight_decay()
    named = list(network.named_parameters())
    return [
        {"params": [p for n, p in named if n not in still], "weight_decay": weight_decay},
        {"params": [p for n, p in named if n in still], "weight_decay": 0.0},
    ]


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
    quick = Scorer(scorer.network, scorer.config.replace(protocol=Protocol(max_crops=max_crops)))
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
    identity = scorer.config.calibration
    pairs = []
    for r in mine:
        _, scores = scorer.crop_scores(r.path)
        raw = (torch.logit(scores.double()) - identity.offset) / identity.slope
        pairs += [(value, r.mos) for value in raw.tolist()]
    raw, mos = torch.tensor([pair for part in team.collect(pairs) for pair in part]).T
    return Scorer(scorer.network, scorer.config.replace(calibration=Calibration.fit(raw, mos)))


def _tell(run: _Run, out: Path, report: Report | None, event: dict[str, Any]) -> None:
    with (out / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(event) + "\n")
    if report is not None:
        try:
            report(event)
        except BaseException:  # whoever watches may stop the run, with Ctrl-C say: then no step is lost
            run.save(out)
            raise


def _shorten_log(out: Path, steps: int) -> None:
    """Take the steps out of the log that will be done again."""
    log = out / "log.jsonl"
    if not log.exists():
        return
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            kept += [line] * (json.loads(line)["step"] <= steps)
        except ValueError:  # the last line, half-written
            break
    log.write_text("".join(kept), encoding="utf-8")
