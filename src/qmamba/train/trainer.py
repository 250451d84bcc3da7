"""The training loop: from a recipe and rated photographs to a checkpoint folder."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Rated
from ..errors import RecipeError
from ..metrics import plcc, srcc
from ..model_config import ModelConfig, Preprocessing
from ..models import QMamba, create_model
from ..protocol import Protocol
from ..scorer import Scorer
from .batches import Batch, prefetch
from .losses import plcc_loss, ranking_loss, smooth_l1
from .parallel import Team, team_of
from .recipe import Recipe

Report = Callable[[dict[str, Any]], None]
SAVE_EVERY = 100  # steps between two states that a run can go on from


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
        processes: on a processor, how many share the work; batches are split, gradients averaged.
        device: of the network.
        resume: go on from ``out/state.pt`` if it is there; otherwise such a folder is refused.
        report: called with ``{"step", "steps", "loss", …}`` at every step and ``{"val_srcc", …}`` at times.

    Returns:
        The folder of the checkpoint, calibrated on the train fold.

    Raises:
        RecipeError: the ratings lack a fold or leave [0, 1], or ``out`` belongs to another recipe.
    """
    out = Path(out)
    folds = {fold: [r for r in ratings if r.fold == fold] for fold in ("train", "val")}
    _check(recipe, folds, processes, out, resume)
    out.mkdir(parents=True, exist_ok=True)
    args = (recipe, folds, out, str(device))
    with torch.random.fork_rng(), team_of(processes, _run, args) as team:
        return _run(team, *args, report=report)


def _check(recipe: Recipe, folds: dict[str, list[Rated]], processes: int, out: Path, resume: bool) -> None:
    for fold, rated in folds.items():
        if not rated:
            raise RecipeError(f"training needs photographs of the fold {fold!r}, and none were given")
        if not all(0.0 <= r.mos <= 1.0 for r in rated):
            raise RecipeError("training needs MOS in [0, 1], higher is better: rescale the ratings first")
    if recipe.images % processes or recipe.ranked % processes:
        raise RecipeError(
            f"images ({recipe.images}) and ranked ({recipe.ranked}) must divide by processes ({processes})"
        )
    if (out / "state.pt").exists() and not resume:
        raise RecipeError(f"{out} holds an unfinished run: resume it, or choose another folder")


def _run(
    team: Team,
    recipe: Recipe,
    folds: dict[str, list[Rated]],
    out: Path,
    device: str,
    report: Report | None = None,
) -> Path:
    run = _Run(recipe, torch.device(device))
    run.restore(out)
    batches = prefetch(folds["train"], recipe, run.step, team.rank, team.size)
    for batch in batches:
        began = time.monotonic()
        losses = run.learn(batch, team)
        if team.rank == 0:
            losses["seconds"] = round(time.monotonic() - began, 3)
            _tell(out, report, {"step": run.step, "steps": recipe.steps, "lr": run.lr(), **losses})
        done = run.step == recipe.steps
        if run.step % recipe.validate_every == 0 or done:
            found = validate(run.scorer(), folds["val"], team)
            if team.rank == 0:
                _tell(out, report, {"step": run.step, **found})
        if team.rank == 0 and (run.step % SAVE_EVERY == 0 or done):
            run.save(out)
    checkpoint = out / "checkpoint"
    scorer = calibrated(run.scorer(), folds["train"], recipe, team)
    if team.rank == 0:
        scorer.save_pretrained(checkpoint)
    return checkpoint


class _Run:
    """What changes while training: weights, their running mean, the optimiser, the step."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.device, self.step = recipe, device, 0
        self.network = create_model(recipe.arch, **recipe.overrides).to(device).train()
        nn.init.constant_(self.network.head.fc.bias, 0.5)  # the middle of the MOS scale
        self.mean_network = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.optimiser = torch.optim.AdamW(_groups(self.network, recipe.weight_decay), lr=recipe.lr)
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
        crops = (batch.crops.to(self.device).float() - self.mean) / self.std
        losses = _losses(self.network(crops)[:, 0], batch, self.recipe)
        self.optimiser.zero_grad(set_to_none=True)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        team.average_(gradients)
        nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr()
        self.optimiser.step()
        self._follow()
        self.step += 1
        return {name: round(loss.item(), 5) for name, loss in losses.items()}

    @torch.no_grad()
    def _follow(self) -> None:
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        means, weights = self.mean_network.parameters(), self.network.parameters()
        torch._foreach_lerp_(list(means), list(weights), 1 - decay)

    def scorer(self) -> Scorer:
        """The running mean as a scorer that is not calibrated yet."""
        r = self.recipe
        training = {"recipe": asdict(r), "steps": self.step}
        config = ModelConfig(
            name=r.name, arch=r.arch, overrides=r.overrides, trained_on=(r.data,), training=training,
            licence=r.licence, limits=r.limits, dtype="float16",
        )  # fmt: skip
        return Scorer(copy.deepcopy(self.mean_network), config)

    def save(self, out: Path) -> None:
        state = {
            "recipe": json.dumps(asdict(self.recipe), sort_keys=True), "step": self.step,
            "network": self.network.state_dict(), "mean": self.mean_network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }  # fmt: skip
        torch.save(state, out / "state.tmp")
        (out / "state.tmp").replace(out / "state.pt")  # never a half-written state

    def restore(self, out: Path) -> None:
        if not (out / "state.pt").exists():
            return
        state = torch.load(out / "state.pt", map_location=self.device, weights_only=True)
        if state["recipe"] != json.dumps(asdict(self.recipe), sort_keys=True):
            raise RecipeError(f"{out} holds a run of another recipe: choose another folder")
        self.step = state["step"]
        self.network.load_state_dict(state["network"])
        self.mean_network.load_state_dict(state["mean"])
        self.optimiser.load_state_dict(state["optimiser"])


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
    from ..calibration import Calibration

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


def _tell(out: Path, report: Report | None, event: dict[str, Any]) -> None:
    with (out / "log.jsonl").open("a") as log:
        log.write(json.dumps(event) + "\n")
    if report is not None:
        report(event)
