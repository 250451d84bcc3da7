"""Pretraining: a network learns general features from a frozen teacher, and how damage looks to people.

Crops come packed, see :mod:`qmamba.data.photos`. Each step takes some of them as they are, and adds a
distorted copy of a few that are unrated, and so clean. Four losses, each with a weight in the recipe; one
with weight zero is not computed:

    maps         the teacher's features at seven of its stages, from the network's nearest stage
    statistics   their means and deviations, from those of all the network's stages
    kind         which of the distortions a crop has, or none
    quality      how people rate it on KADID-10k's scale, 1 to 5

No opinion scores of photographs are used, and no network that was tuned on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.distortions import DISTORTIONS, KADID_KINDS, KadidScale, kadid_quality
from ..data.photos import Shards
from ..models.capabilities import StageFeatures, require
from .checkpoint_task import CheckpointTask
from .distil import Distiller
from .engine import Report, Run, fit
from .general_features import ENDS, PARTS, STATISTICS, GeneralTeacher, channel_statistics, measure
from .losses import smooth_l1
from .processes import Processes
from .recipe import PretrainRecipe
from .sampling import epoch_indices

KINDS = tuple(DISTORTIONS)
CLEAN = len(KINDS)
CLEAN_QUALITY = 4.6  # what KADID-10k's undistorted photographs get, of 1 to 5
MIDDLE, SPREAD = 3.0, 1.2  # of ratings of 1 to 5: brings them to about -1.4 to 1.4
BETA = 0.3  # of the smooth-L1 loss on quality, in these units
SCALE = KadidScale(stretch=False)  # crops span only a part of a photograph's values
SMALLEST_DEVIATION, LARGEST = 1e-3, 6.0  # of the teacher's statistics; and once standardised
MEASURED_AT_ONCE = 50  # crops
CHECKPOINT_EVERY = 500  # steps


@dataclass(frozen=True)
class PretrainBatch:
    """The part of a step that one process computes.

    Attributes:
        crops: (n + t, 3, S, S) uint8: n crops as packed, then t distorted copies.
        kinds: (n + t,) int64, indices in :data:`KINDS`, :data:`CLEAN` for none, -1 for rated crops: theirs
            are unknown.
        quality: (n + t,) float32 from 1 to 5, NaN where it is unknown.
    """

    crops: Tensor
    kinds: Tensor
    quality: Tensor


def make_pretrain_batch(
    shards: Shards, recipe: PretrainRecipe, step: int, rank: int = 0, ranks: int = 1
) -> PretrainBatch:
    """Return every ``ranks``-th crop of a step, cut to the phase's size, flipped, and distorted copies."""
    rng = np.random.default_rng((recipe.seed, step, rank))
    indices = epoch_indices(len(shards), recipe.seed, step * recipe.crops, recipe.crops)[rank::ranks]
    size = recipe.phase_at(step).crop
    crops = [_cut(shards[i], size, rng) for i in indices]
    clean = np.isnan(shards.mos[indices])
    kinds = np.where(clean, CLEAN, -1).tolist()
    quality = np.where(clean, CLEAN_QUALITY, np.nan).tolist()
    for i in rng.permutation(np.flatnonzero(clean))[: recipe.damaged // ranks]:
        copy, kind, rated = _damaged(crops[i], recipe.kadid, rng)
        crops.append(copy)
        kinds.append(kind)
        quality.append(rated)
    return PretrainBatch(
        torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous(),
        torch.tensor(kinds),
        torch.tensor(quality, dtype=torch.float32),
    )


def _damaged(crop: np.ndarray, share: float, rng: np.random.Generator) -> tuple[np.ndarray, int, float]:
    """A copy of a crop, distorted, its kind, and its quality of 1 to 5, NaN on the library's own levels.

    Of the kinds that KADID-10k has, ``share`` are on its levels; the others look different at ours.
    """
    kind, seed = int(rng.integers(len(KINDS))), int(rng.integers(2**31))
    name = KINDS[kind]
    if name in KADID_KINDS and rng.random() < share:
        level = float(rng.uniform(1, 5))
        return DISTORTIONS[name](crop, level, seed=seed, scale=SCALE), kind, kadid_quality(name, level).mean
    return DISTORTIONS[name](crop, int(rng.integers(1, 6)), seed=seed), kind, float("nan")


def _cut(crop: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    top, left = rng.integers(crop.shape[0] - size + 1), rng.integers(crop.shape[1] - size + 1)
    cut = crop[top : top + size, left : left + size]
    return np.ascontiguousarray(cut[:, ::-1] if rng.integers(2) else cut)


class PretrainHeads(nn.Module):
    """What is read linearly from a network's features: the teacher's, and the damage.

    Statistics of the network are standardised over the batch, so that all of them weigh the same.

    Args:
        stages: ``feature_info`` of the network; ΣC are its channels.

    Attributes:
        maps: projections to the teacher's maps, from each position.
        statistics: Linear, 2 · ΣC to the teacher's 2848.
        kind: Linear, 2 · ΣC to the logits of 26 kinds.
        quality: Linear, 2 · ΣC to (rating - 3) / 1.2.
        mean, deviation: (2848,) buffers, what the teacher's statistics are standardised with.
    """

    def __init__(self, stages: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        count = 2 * sum(stage["num_chs"] for stage in stages)
        self.maps = Distiller(stages, ENDS)
        self.statistics = nn.Linear(count, STATISTICS)
        self.kind = nn.Linear(count, CLEAN + 1)
        self.quality = nn.Linear(count, 1)
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.zeros(STATISTICS))
        self.register_buffer("deviation", torch.ones(STATISTICS))

    def statistics_loss(self, found: Tensor, targets: Tensor) -> Tensor:
        """Return the squared error of the teacher's statistics, mean over four parts.

        Early, middle and late maps and the last features count the same, whatever their channels.

        Args:
            found: standardised statistics of the network, (B, 2 · ΣC).
            targets: of the teacher, (B, 2848).
        """
        deviation = self.deviation.clamp(min=SMALLEST_DEVIATION)
        wanted = ((targets - self.mean) / deviation).clamp(-LARGEST, LARGEST)
        errors = (self.statistics(found) - wanted).square()
        return torch.stack([part.mean() for part in errors.split(PARTS, dim=1)]).mean()

    def kind_loss(self, found: Tensor, kinds: Tensor) -> Tensor:
        """Return the cross-entropy of kinds (B,) where they are known, 0 where none is."""
        known = kinds >= 0
        total = F.cross_entropy(self.kind(found[known]), kinds[known], reduction="sum")
        return total / known.sum().clamp(min=1)

    def quality_loss(self, found: Tensor, quality: Tensor) -> Tensor:
        """Return the smooth-L1 loss of quality (B,) from 1 to 5 where it is known, 0 where it never is."""
        known = ~quality.isnan()
        if not known.any():
            return found.sum() * 0.0
        return smooth_l1(self.quality(found[known])[:, 0], (quality[known] - MIDDLE) / SPREAD, BETA)


def standardised(statistics: Tensor) -> Tensor:
    """Return statistics (B, n) with mean 0 and variance 1 over the batch; zeros where all are the same."""
    variance, mean = torch.var_mean(statistics, dim=0, correction=0)
    return (statistics - mean) / (variance + 1e-5).sqrt()


class Pretraining(CheckpointTask[PretrainBatch]):
    """A frozen teacher's maps and statistics, kinds of distortions and their quality.

    Args:
        recipe, shards, init: as for :func:`pretrain`.

    Raises:
        RecipeError, UnknownModelError, CheckpointError: as for :func:`pretrain`.
    """

    heads: PretrainHeads

    def __init__(self, recipe: PretrainRecipe, shards: str | Path, *, init: str | Path | None = None) -> None:
        self.recipe, self.folder, self.count = recipe, shards, len(Shards(shards))
        self.shared = {"crops": recipe.crops, "damaged": recipe.damaged}
        super().__init__(recipe, "photographs", init=init)

    def setup(self, processes: Processes) -> None:
        self.shards = Shards(self.folder)
        self.teacher = GeneralTeacher().to(processes.device)
        super().setup(processes)

    def make_heads(self) -> nn.Module:
        network = require(self.network, StageFeatures, "features to learn from")
        return PretrainHeads(network.feature_info)

    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint(), "crops": self.count}

    def make_batch(self, step: int, rank: int, ranks: int) -> PretrainBatch:
        return make_pretrain_batch(self.shards, self.recipe, step, rank, ranks)

    def batches(self, run: Run) -> Iterator[PretrainBatch]:
        """Yield batches; before the first step, measure the teacher. Later the state has what was found."""
        if run.step == 0 and self.recipe.statistics > 0:
            mean, deviation = measure(self.teacher, self._measured(run.processes), run.processes)
            self.heads.mean.copy_(mean)
            self.heads.deviation.copy_(deviation)
        return super().batches(run)

    def _measured(self, processes: Processes) -> Iterator[Tensor]:
        """This process's share of the crops that the teacher's statistics are measured on."""
        size = max(phase.crop for phase in self.recipe.phases)
        for part in range(0, self.recipe.measured, MEASURED_AT_ONCE):
            if part // MEASURED_AT_ONCE % processes.size != processes.rank:
                continue
            rng = np.random.default_rng((self.recipe.seed, part))
            count = min(MEASURED_AT_ONCE, self.recipe.measured - part)
            crops = [_cut(self.shards[int(i)], size, rng) for i in rng.integers(self.count, size=count)]
            yield torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)

    def losses(self, batch: PretrainBatch, run: Run) -> dict[str, Tensor]:
        recipe, heads = self.recipe, self.heads
        losses: dict[str, Tensor] = {}
        with run.processes.autocast():
            features = self.interface.see(self.network, batch.crops, features=True).features
        found = standardised(channel_statistics(features))
        if recipe.maps > 0 or recipe.statistics > 0:
            with run.processes.autocast():
                general = self.teacher(batch.crops)
            if recipe.maps > 0:
                losses["maps"] = heads.maps(features, general.maps)
            if recipe.statistics > 0:
                losses["statistics"] = heads.statistics_loss(found, general.statistics)
        if recipe.kind > 0:
            losses["kind"] = heads.kind_loss(found, batch.kinds.to(found.device))
        if recipe.quality > 0:
            losses["quality"] = heads.quality_loss(found, batch.quality.to(found.device))
        weighted = [getattr(recipe, name) * loss for name, loss in losses.items()]
        return {"loss": torch.stack(weighted).sum(), **losses}

    def validate(self, run: Run) -> dict[str, Any] | None:
        """Write the checkpoint now and then: nothing is measured while pretraining."""
        if run.step and run.step % CHECKPOINT_EVERY == 0 and run.step != self.steps:
            self.finish(run)
        return None

    def finish(self, run: Run) -> Path:
        if run.is_first:
            self.scorer(run).save_pretrained(run.out / "checkpoint")
        return run.out / "checkpoint"


def pretrain(
    recipe: PretrainRecipe,
    shards: str | Path,
    out: str | Path,
    *,
    processes: int = 1,
    device: str | torch.device = "cpu",
    init: str | Path | None = None,
    resume: bool = True,
    report: Report | None = None,
) -> Path:
    """Pretrain on packed crops, and write a checkpoint to fine-tune from.

    Args:
        recipe: the plan.
        shards: folder made by :func:`qmamba.data.photos.pack`.
        out: folder for ``state.pt`` (to resume from), ``log.jsonl`` and ``checkpoint/``, which is replaced
            every 500 steps.
        processes, device, init, resume, report: as for :func:`qmamba.train.train`.

    Returns:
        The folder of the checkpoint. Its head is untrained and its scores mean nothing yet.

    Raises:
        RecipeError: no shards, ``out`` belongs to another run, the teacher's packages or accelerate are not
            installed, or the training has diverged.
        UnknownModelError: the recipe's architecture.
        CapabilityError: the network does not give features of its stages.
        BackendError: a device that cannot be used here, or a process that could not be started.
    """
    task = Pretraining(recipe, shards, init=init)
    return fit(task, recipe, out, processes=processes, device=device, resume=resume, report=report)
