"""Pretraining: a network learns to see from a teacher's features, and to tell distortions and their strength.

Crops come packed, see :mod:`qmamba.data.photos`. Each step takes some of them as they are, and makes a mild
and a strong copy of a few with a distortion of one kind. Six losses:

    features   the teacher's features of the same crops, of distorted ones too
    scores     its scores of them, if it rates
    kind       which of the 25 distortions it was, or none
    level      how strong it was, 0 to 5
    ranking    clean above mild above strong, for distortions that only degrade
    mos        opinion scores, of crops that have one
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.distortions import DISTORTIONS
from ..data.photos import Shards
from ..models.capabilities import StageFeatures, require
from .checkpoint_task import CheckpointTask
from .engine import Report, Run, fit
from .losses import plcc_loss, ranking_loss, score_loss, smooth_l1
from .processes import Processes
from .recipe import PretrainRecipe
from .sampling import epoch_indices

KINDS = tuple(DISTORTIONS)
CLEAN = len(KINDS)
CHECKPOINT_EVERY = 500  # steps


@dataclass(frozen=True)
class PretrainBatch:
    """The part of a step that one process computes.

    Attributes:
        crops: (n + 2t, 3, S, S) uint8: n crops as packed, then t mildly and t strongly distorted copies.
        mos: (n,) float32, NaN where there is no rating.
        originals: (t,) int64, which crop each distorted pair was made from.
        kinds: (t,) int64, indices in :data:`KINDS`.
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
    """Return every ``ranks``-th crop of a step, cut to the phase's size, flipped, some of them distorted."""
    rng = np.random.default_rng((recipe.seed, step, rank))
    drawn = epoch_indices(len(shards), recipe.seed, step * recipe.crops, recipe.crops)
    indices = np.array(drawn[rank::ranks])
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


def _cut(crop: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    top, left = rng.integers(crop.shape[0] - size + 1), rng.integers(crop.shape[1] - size + 1)
    cut = crop[top : top + size, left : left + size]
    return np.ascontiguousarray(cut[:, ::-1] if rng.integers(2) else cut)


class DamageHead(nn.Module):
    """Kind and level of a distortion, from the features of all stages.

    Args:
        widths: channels of each stage.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.kind = nn.Linear(sum(widths), CLEAN + 1)
        self.level = nn.Linear(sum(widths), 1)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Features (B, C, H, W) per stage → logits of kinds (B, 26) and levels (B,)."""
        pooled = [
            norm(feature.permute(0, 2, 3, 1)).mean((1, 2))
            for norm, feature in zip(self.norms, features, strict=True)
        ]
        whole = torch.cat(pooled, -1)
        return self.kind(whole), self.level(whole)[:, 0]


class Pretraining(CheckpointTask[PretrainBatch]):
    """A teacher's features and scores, distortions, and the ratings that there are.

    Args:
        recipe, shards, init, teacher: as for :func:`pretrain`.

    Raises:
        RecipeError, UnknownModelError, CheckpointError: as for :func:`pretrain`.
    """

    def __init__(
        self,
        recipe: PretrainRecipe,
        shards: str | Path,
        *,
        init: str | Path | None = None,
        teacher: str | Path | None = None,
    ) -> None:
        self.recipe, self.folder, self.count = recipe, shards, len(Shards(shards))
        self.shared = {"crops": recipe.crops, "damaged": recipe.damaged}
        super().__init__(
            recipe, "photographs", init=init, distils=True, teacher=teacher,
            learns_scores=recipe.scores > 0,
        )  # fmt: skip

    def setup(self, processes: Processes) -> None:
        self.shards = Shards(self.folder)
        super().setup(processes)

    def make_heads(self) -> nn.Module:
        network = require(self.network, StageFeatures, "features to learn from")
        self.features = self.distiller()
        self.damage = DamageHead([stage["num_chs"] for stage in network.feature_info])
        return nn.ModuleList([self.features, self.damage])

    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint(), "crops": self.count}

    def make_batch(self, step: int, rank: int, ranks: int) -> PretrainBatch:
        return make_pretrain_batch(self.shards, self.recipe, step, rank, ranks)

    def losses(self, batch: PretrainBatch, run: Run) -> dict[str, Tensor]:
        seen, lesson = self.see(batch.crops, run, taught=True)
        assert lesson is not None
        losses = {"features": self.features(seen.features, lesson.features)}
        if lesson.scores is not None:
            losses["scores"] = score_loss(seen.raw, lesson.scores)
        logits, level = self.damage(seen.features)
        losses |= _damage_losses(logits, level, batch)
        losses |= _score_losses(seen.raw, batch, self.recipe.margin)
        weights = [getattr(self.recipe, name) for name in losses]  # the recipe names them as they are here
        total = torch.stack([w * loss for w, loss in zip(weights, losses.values(), strict=True)]).sum()
        return {"loss": total, **losses}

    def validate(self, run: Run) -> dict[str, Any] | None:
        """Write the checkpoint now and then: nothing is measured while pretraining."""
        if run.step and run.step % CHECKPOINT_EVERY == 0 and run.step != self.steps:
            self.finish(run)
        return None

    def finish(self, run: Run) -> Path:
        if run.is_first:
            self.scorer(run).save_pretrained(run.out / "checkpoint")
        return run.out / "checkpoint"


def _damage_losses(logits: Tensor, level: Tensor, batch: PretrainBatch) -> dict[str, Tensor]:
    """Kind and level of every crop. Rated crops have unknown distortions: only their copies count."""
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
    """Opinion scores where there are any; the order of clean, mild and strong where it is known."""
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
        out: folder for ``state.pt`` (to resume from), ``log.jsonl`` and ``checkpoint/``, which is replaced
            every 500 steps.
        processes, device, init, teacher, resume, report: as for :func:`qmamba.train.train`.

    Returns:
        The folder of the checkpoint. Its scores are not calibrated.

    Raises:
        RecipeError: no shards, ``out`` belongs to another run, the teacher's packages or accelerate are not
            installed, or the training has diverged.
        UnknownModelError: the recipe's architecture.
        CapabilityError: the network or the teacher does not give features of its stages.
        BackendError: a device that cannot be used here, or a process that could not be started.
    """
    task = Pretraining(recipe, shards, init=init, teacher=teacher)
    return fit(task, recipe, out, processes=processes, device=device, resume=resume, report=report)
