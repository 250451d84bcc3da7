"""Pretraining: a network learns to see from a teacher's features, and to tell distortions and their strength.

Crops come packed, see :mod:`qmamba.data.photos`. Each step takes some of them as they are, and makes of a few
a mild and a strong copy with a distortion of one kind. Six losses:

    features   the teacher's features of the same crops, at four strides, damaged crops too
    scores     its scores of them, if it rates
    kind       which of the 25 distortions it was, or none
    level      how strong it was, 0 to 5
    ranking    clean above mild above strong, for distortions that only degrade
    mos        opinion scores, of crops that have one
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints import ModelConfig
from ..data.distortions import DISTORTIONS
from ..data.photos import Shards
from ..models.qmamba import QMamba
from ..scoring import Scorer
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
from .recipe import PretrainRecipe
from .teacher import Teacher

KINDS = tuple(DISTORTIONS)
CLEAN = len(KINDS)
CHECKPOINT_EVERY = 500  # steps


@dataclass(frozen=True)
class PretrainBatch:
    """What one process computes in one step.

    Attributes:
        crops: (n + 2t, 3, S, S) uint8: n crops as packed, then t mildly and t strongly distorted copies.
        mos: (n,) float32, NaN where there is no rating.
        originals: (t,) int64, which crop each distorted pair was made from.
        kinds: (t,) int64, places in :data:`KINDS`.
        levels: (2, t) float32, levels of the mild and the strong copy.
    """

    crops: Tensor
    mos: Tensor
    originals: Tensor
    kinds: Tensor
    levels: Tensor


def make_pretrain_batch(
    shards: Shards, recipe: PretrainRecipe, step: int, rank: int = 0, ranks: int = 1
) -> PretrainBatch:
    """Every ``ranks``-th crop of a step, cut to the phase's size, flipped, and some of them distorted."""
    rng = np.random.default_rng((recipe.seed, step, rank))
    indices = _indices(len(shards), recipe, step)[rank::ranks]
    size = recipe.phase_at(step).crop
    crops = [_cut(shards[i], size, rng) for i in indices]
    originals = rng.permutation(len(crops))[: recipe.damaged // ranks]
    kinds, levels = np.empty(len(originals), np.int64), np.empty((2, len(originals)), np.float32)
    copies: list[list[np.ndarray]] = [[], []]
    for t, i in enumerate(originals):
        kinds[t] = rng.integers(len(KINDS))
        mild, strong = sorted(rng.permutation(5)[:2] + 1)
        levels[:, t] = mild, strong
        seed = int(rng.integers(2**31))
        for row, level in zip(copies, (mild, strong), strict=True):
            row.append(DISTORTIONS[KINDS[kinds[t]]](crops[i], level=int(level), seed=seed))
    pixels = np.stack([*crops, *copies[0], *copies[1]])
    return PretrainBatch(
        torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        torch.from_numpy(shards.mos[indices]),
        torch.from_numpy(originals.astype(np.int64)),
        torch.from_numpy(kinds),
        torch.from_numpy(levels),
    )


def _indices(count: int, recipe: PretrainRecipe, step: int) -> np.ndarray:
    """The crops of a step: epochs are shuffled wholes, one after the other."""
    places = np.arange(step * recipe.crops, (step + 1) * recipe.crops)
    orders = {epoch: _order(count, recipe.seed, epoch) for epoch in np.unique(places // count).tolist()}
    return np.array([orders[p // count][p % count] for p in places.tolist()])


_orders: dict[tuple[int, int, int], np.ndarray] = {}


def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    key = (count, seed, epoch)
    if key not in _orders:
        _orders.clear()
        _orders[key] = np.random.default_rng((seed, epoch, count)).permutation(count)
    return _orders[key]


def _cut(crop: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    top, left = rng.integers(crop.shape[0] - size + 1), rng.integers(crop.shape[1] - size + 1)
    cut = crop[top : top + size, left : left + size]
    return np.ascontiguousarray(cut[:, ::-1] if rng.integers(2) else cut)


class Heads(nn.Module):
    """What is asked of the features while pretraining: the teacher's, the kind of a distortion, its level."""

    def __init__(self, network: QMamba) -> None:
        super().__init__()
        widths = [info["num_chs"] for info in network.feature_info]
        self.teacher_features = Distiller(network)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.kind = nn.Linear(sum(widths), CLEAN + 1)
        self.level = nn.Linear(sum(widths), 1)

    def damage(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Features per stage (B, C, H, W) → logits of kinds (B, 26) and levels (B,)."""
        pooled = [
            norm(feature.permute(0, 2, 3, 1)).mean((1, 2))
            for norm, feature in zip(self.norms, features, strict=True)
        ]
        whole = torch.cat(pooled, -1)
        return self.kind(whole), self.level(whole)[:, 0]


class _Pupil(Learner[PretrainBatch]):
    plan: PretrainRecipe
    heads: Heads

    def __init__(
        self, recipe: PretrainRecipe, device: torch.device, init: str | None, teacher: str | None
    ) -> None:
        self.config = ModelConfig(
            name=recipe.name, arch=recipe.arch, overrides=recipe.overrides, licence=recipe.licence,
            trained_on=("photographs",), limits=recipe.limits, dtype="float16",
        )  # fmt: skip
        super().__init__(recipe, device, None if init is None else start_from(init, recipe))
        self.teacher = Teacher(teacher).to(device)

    def make_heads(self) -> nn.Module:
        assert isinstance(self.network, QMamba)
        return Heads(self.network)

    def losses(self, batch: PretrainBatch) -> dict[str, Tensor]:
        r, seen = self.plan, self.look_at(batch.crops, self.teacher)
        losses = {"features": self.heads.teacher_features(seen.features, seen.targets)}
        if seen.scores is not None:
            losses["scores"] = score_loss(seen.raw, seen.scores)
        losses |= _damage_losses(*self.heads.damage(seen.features), batch)
        losses |= _score_losses(seen.raw, batch, r.margin)
        weights = {
            "features": r.features, "scores": r.scores, "kind": r.kind, "level": r.level,
            "ranking": r.ranking, "mos": r.mos,
        }  # fmt: skip
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        return {"loss": total, **losses}

    def scorer(self) -> Scorer:
        """The running mean as a scorer that is not calibrated."""
        training = {"recipe": asdict(self.plan), "steps": self.step}
        return Scorer(copy.deepcopy(self.mean_network), self.config.replace(training=training))


def _damage_losses(logits: Tensor, level: Tensor, batch: PretrainBatch) -> dict[str, Tensor]:
    """Kind and level of every crop; rated ones, whose damage nobody knows, count only when distorted here."""
    device, count = logits.device, batch.mos.numel()
    known = torch.cat([batch.mos.isnan(), torch.ones(2 * len(batch.kinds), dtype=torch.bool)]).to(device)
    kinds = torch.cat([torch.full((count,), CLEAN), batch.kinds, batch.kinds]).to(device)
    levels = torch.cat([torch.zeros(count), *batch.levels]).to(device)
    if not known.any():
        return {}
    return {
        "kind": F.cross_entropy(logits[known], kinds[known]),
        "level": smooth_l1(level[known], levels[known] / 5),
    }


def _score_losses(raw: Tensor, batch: PretrainBatch, margin: float) -> dict[str, Tensor]:
    """Opinion scores where there are some; the order of clean, mild and strong where it is known."""
    losses: dict[str, Tensor] = {}
    count, mos = batch.mos.numel(), batch.mos.to(raw.device)
    rated = ~mos.isnan()
    if rated.sum() > 1:
        pred, wanted = raw[:count][rated], mos[rated]
        losses["mos"] = smooth_l1(pred, wanted) + 0.2 * plcc_loss(pred, wanted)
    degrades = torch.tensor([DISTORTIONS[KINDS[k]].degrades for k in batch.kinds.tolist()], dtype=torch.bool)
    if degrades.any():
        chosen = degrades.to(raw.device)
        mild, strong = (part[chosen] for part in raw[count:].view(2, -1))
        original = raw[batch.originals.to(raw.device)][chosen]
        low, high = batch.levels.to(raw.device)[:, chosen]
        losses["ranking"] = ranking_loss(original, mild, margin * low) + ranking_loss(
            mild, strong, margin * (high - low)
        )
    return losses


def pretrain(
    recipe: PretrainRecipe,
    shards: str | Path,
    out: str | Path,
    *,
    processes: int = 1,
    device: str | torch.device = "cpu",
    init: str | Path | None = None,
    teacher: str | Path | None = None,
    resume: bool = True,
    report: Report | None = None,
) -> Path:
    """Pretrain on packed crops, and write a checkpoint to fine-tune from.

    Args:
        recipe: the plan.
        shards: folder made by :func:`qmamba.data.photos.pack`.
        out: folder for ``state.pt`` (to go on from), ``log.jsonl`` and ``checkpoint/``, which is written
            anew every 500 steps.
        processes, device, init, teacher, resume, report: as for :func:`qmamba.train.train`.

    Returns:
        The folder of the checkpoint. Its scores are not calibrated.

    Raises:
        RecipeError: no shards, ``out`` belongs to another recipe, the teacher is not installed, or the
            training has diverged.
        UnknownModelError: the recipe's architecture.
        BackendError: a device that cannot be used here, or a process that could not be started.
    """
    out = Path(out)
    check_processes(processes, recipe, "crops", "damaged")
    Shards(shards)
    check_device(device)
    check_folder(out, resume)
    check_teacher(recipe.scores > 0, teacher)
    start, rater = (None if name is None else str(name) for name in (init, teacher))
    args = (recipe, str(shards), out, str(device), start, rater)
    with torch.random.fork_rng(), team_of(processes, _run, args) as team:
        return _run(team, *args, report=report)


def _run(
    team: Team,
    recipe: PretrainRecipe,
    shards: str,
    out: Path,
    device: str,
    init: str | None,
    teacher: str | None,
    report: Report | None = None,
) -> Path:
    pupil, checkpoint = _Pupil(recipe, torch.device(device), init, teacher), out / "checkpoint"
    pupil.restore(out)

    def look() -> dict[str, Any] | None:
        if team.rank == 0 and (pupil.step % CHECKPOINT_EVERY == 0 or pupil.step == recipe.steps):
            pupil.scorer().save_pretrained(checkpoint)
        return None

    crops = Shards(shards)

    def batch(step: int) -> PretrainBatch:
        return make_pretrain_batch(crops, recipe, step, team.rank, team.size)

    batches = made_ahead(batch, pupil.step, recipe.steps, batch_workers(pupil.device))
    run_steps(pupil, batches, out, team, report, look)
    return checkpoint
