"""Pretraining: a network learns general features from a frozen teacher, and how damage looks to people.

Crops come packed, see :mod:`qmamba.data.photos`. Each step takes some of them as they are, and adds a
distorted copy of a few that are unrated, and so clean. Six losses, each with a weight in the recipe; one
with weight zero is not computed:

    maps         the teacher's features at seven of its stages, from the network's nearest stage
    statistics   their means and deviations, from those of all the network's stages
    kind         which of the distortions a crop has, or none
    quality      how people rate it on KADID-10k's scale, 1 to 5
    orders       that a copy that can only be worse has less quality than its original
    ratings      opinion scores of several sets, each with its own scale and zero to the same quality

A share of the crops is varied beyond what photographs cover, see :mod:`qmamba.train.variations`; from these
only the teacher's features are learned.

Without ``ratings`` no opinion scores of photographs are used; the teacher is never tuned on any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.photos import Shards, rated_sets
from ..errors import RecipeError
from ..models.capabilities import StageFeatures, require
from ..models.statistics import channel_statistics
from .checkpoint_task import CheckpointTask
from .distil import Distiller
from .engine import Report, Run, fit
from .general_features import ENDS, PARTS, STATISTICS, GeneralTeacher, measure
from .losses import ranking_loss, smooth_l1
from .pretrain_batch import CLEAN, PretrainBatch, make_pretrain_batch, random_cut
from .processes import Processes
from .recipe import PretrainRecipe

MIDDLE, SPREAD = 3.0, 1.2  # of ratings of 1 to 5: brings them to about -1.4 to 1.4
BETA = 0.3  # of the smooth-L1 loss on quality, in these units
MARGIN = 0.1  # of quality, by which a copy must lie below its original
SMALLEST_DEVIATION, LARGEST = 1e-3, 6.0  # of the teacher's statistics; and once standardised
MEASURED_AT_ONCE = 50  # crops
# Of the errors of PARTS. Ridge regressions on the first two hold as well in domains that they were not fitted
# to as those on all, and the last, which say what an image shows, add least.
PART_WEIGHTS = (0.35, 0.4, 0.2, 0.05)
CHECKPOINT_EVERY = 500  # steps


class PretrainHeads(nn.Module):
    """What is read linearly from a network's features: the teacher's, and the damage.

    Statistics of the network are standardised over the batch, so that all of them weigh the same.

    Args:
        stages: ``feature_info`` of the network; ΣC are its channels.
        sets: sets of ratings.

    Attributes:
        maps: projections to the teacher's maps, from each position.
        statistics: Linear, 2 · ΣC to the teacher's 2848.
        kind: Linear, 2 · ΣC to the logits of 26 kinds.
        quality: Linear, 2 · ΣC to quality, which is (rating - 3) / 1.2 on KADID-10k's scale.
        log_scale, zero: (sets,) what quality is multiplied with, as a logarithm, and what is added, to give
            the opinion scores of each set, standardised.
        mean, deviation: (2848,) buffers, what the teacher's statistics are standardised with.
    """

    def __init__(self, stages: Sequence[Mapping[str, Any]], sets: int = 0) -> None:
        super().__init__()
        count = 2 * sum(stage["num_chs"] for stage in stages)
        self.maps = Distiller(stages, ENDS)
        self.statistics = nn.Linear(count, STATISTICS)
        self.kind = nn.Linear(count, CLEAN + 1)
        self.quality = nn.Linear(count, 1)
        self.log_scale = nn.Parameter(torch.zeros(sets))
        self.zero = nn.Parameter(torch.zeros(sets))
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.zeros(STATISTICS))
        self.register_buffer("deviation", torch.ones(STATISTICS))

    def statistics_loss(self, found: Tensor, targets: Tensor) -> Tensor:
        """Return the squared error of the teacher's statistics, a mean over four parts.

        Early, middle and late maps and the last features have the weights :data:`PART_WEIGHTS`.

        Args:
            found: standardised statistics of the network, (B, 2 · ΣC).
            targets: of the teacher, (B, 2848).
        """
        deviation = self.deviation.clamp(min=SMALLEST_DEVIATION)
        wanted = ((targets - self.mean) / deviation).clamp(-LARGEST, LARGEST)
        errors = (self.statistics(found) - wanted).square()
        parts = torch.stack([part.mean() for part in errors.split(PARTS, dim=1)])
        return (parts * parts.new_tensor(PART_WEIGHTS)).sum()

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

    def orders_loss(self, found: Tensor, worse: Tensor, better: Tensor) -> Tensor:
        """Return the ranking loss of copies (w,) and originals (w,), 0 where there is no pair."""
        if not len(worse):
            return found.sum() * 0.0
        quality = self.quality(found)[:, 0]
        return ranking_loss(quality[better], quality[worse], MARGIN)

    def ratings_loss(self, found: Tensor, mos: Tensor, sets: Tensor) -> Tensor:
        """Return the smooth-L1 loss of opinion scores, through the scale and zero of each set.

        Args:
            found: standardised statistics of the network, (r, 2 · ΣC).
            mos: (r,) with mean 0 and variance 1 in each set.
            sets: (r,) int64, indices of their sets.
        """
        quality = self.quality(found)[:, 0]
        return smooth_l1(quality * self.log_scale[sets].exp() + self.zero[sets], mos, BETA)


def standardised(statistics: Tensor) -> Tensor:
    """Return statistics (B, n) with mean 0 and variance 1 over the batch; zeros where all are the same."""
    variance, mean = torch.var_mean(statistics, dim=0, correction=0)
    return (statistics - mean) / (variance + 1e-5).sqrt()


def units_of(shards: Shards) -> Tensor:
    """Return mean and deviation of the opinion scores of each set, (2, sets) float32.

    Raises:
        RecipeError: nothing is rated, or all ratings of a set are the same.
    """
    members = [shards.mos[shards.sets == index] for index in range(int(shards.sets.max()) + 1)]
    if not members:
        raise RecipeError("this recipe learns ratings, and no packed crop is rated; pack them with --data")
    if any(each.std() == 0 for each in members):
        raise RecipeError("the ratings of a set must differ, got the same for all its images")
    return torch.tensor([[each.mean() for each in members], [each.std() for each in members]])


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
        self.shared = {"crops": recipe.crops, "damaged": recipe.damaged, "rated": recipe.rated}
        named = rated_sets(shards) if recipe.rated else []
        super().__init__(recipe, ["photographs", *named], init=init)

    def setup(self, processes: Processes) -> None:
        self.shards = Shards(self.folder)
        self.units = units_of(self.shards) if self.recipe.rated else torch.zeros(2, 0)
        self.teacher = GeneralTeacher().to(processes.device)
        super().setup(processes)

    def make_heads(self) -> nn.Module:
        network = require(self.network, StageFeatures, "features to learn from")
        return PretrainHeads(network.feature_info, self.units.shape[1])

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
            crops = [random_cut(self.shards[int(i)], size, rng) for i in rng.integers(self.count, size=count)]
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
        if recipe.orders > 0:
            pairs = (batch.worse.to(found.device), batch.better.to(found.device))
            losses["orders"] = heads.orders_loss(found, *pairs)
        if recipe.ratings > 0:
            mean, deviation = self.units[:, batch.sets]
            mos = ((batch.mos - mean) / deviation).to(found.device)
            rated = found[len(found) - len(mos) :]
            losses["ratings"] = heads.ratings_loss(rated, mos, batch.sets.to(found.device))
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
