"""The paper's trainings as a task: a network, or an adapter beside one, on one or several rated sets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ...adapters import Adapter, create
from ...data import Rated
from ...images import as_bytes
from ...metrics import MetricError, plcc, plcc_fitted, srcc
from ...models import create_model, get_architecture
from ...protocol import Protocol, fit_side, windows
from ...scoring import Scorer, load
from ..engine import Report, Run
from ..losses import pairwise_ranking, plcc_loss, smooth_l1
from ..networks import Normaliser
from ..prefetch import batch_workers, made_ahead
from ..processes import Processes
from ..start import Start, start
from ..task import Task
from .recipe import PaperRecipe
from .sets import Crops, RatedSet

if TYPE_CHECKING:
    from .runs import Finish

VAL_IMAGES = 100  # of each set that a learning curve's SRCC is measured on, spread over its fold
Batch = tuple[Tensor, Tensor]


class PaperTask(Task[Batch]):
    """Opinion scores of sets on one scale, by the losses of a recipe.

    Args:
        recipe: with the seed of this run.
        sets: to learn, in one split; none to measure only.
        init: name of the weights to start from, or the folder of the base.
        adapter: method of the adapter; "" to train the network itself.
        finish: measures and saves what was learnt.
        root: folder that data sets and weights lie in.
        workers: processes that make crops, for each training process.
        max_steps: stop after this many steps.

    Attributes:
        began: what the network started from, after :meth:`setup`.
        base: the base of an adapter, after :meth:`setup`.
    """

    def __init__(
        self,
        recipe: PaperRecipe,
        sets: Sequence[RatedSet],
        *,
        finish: Finish,
        init: str | Path = "",
        adapter: str = "",
        identity: Mapping[str, Any] | None = None,
        root: Path | None = None,
        workers: int = 0,
        max_steps: int | None = None,
    ) -> None:
        self.recipe, self.sets, self.adapter_method = recipe, list(sets), adapter
        self.init, self.root, self.workers = init, root, workers
        self.identity, self._finish = dict(identity or {}), finish
        self.began, self.steps = Start(""), 0
        self.base: Scorer | None = None
        self.crops: Crops | None = None
        self.rated: Any = None
        self.shared = {}
        if self.sets:
            self.crops = Crops(self.sets, recipe, recipe.seed)
            self.steps = self.crops.steps if max_steps is None else min(max_steps, self.crops.steps)
            self.shared["batch"] = self.crops.batch // recipe.accumulate
        self.peak = recipe.lr

    def setup(self, processes: Processes) -> None:
        recipe, self.heads = self.recipe, nn.ModuleList()
        if isinstance(self.init, Path):
            self.base = load(self.init, device=processes.device)
            self.rated, preprocessing = self.base.base(), self.base.config.preprocessing
            self.began = Start("the base", tuple(self.rated.state_dict()))
        else:
            self.rated = create_model(recipe.arch, **recipe.overrides)
            self.began = start(self.rated, self.init, self.root)
            self.rated.to(processes.device)
            preprocessing = get_architecture(recipe.arch).preprocessing
        self.normalise, self.network = Normaliser(preprocessing, processes.device), self.rated
        if self.adapter_method:
            adapter = create(self.adapter_method, self.rated, **recipe.adapter_options)
            self.network, self.peak = adapter.to(processes.device), recipe.adapter_lr or adapter.lr

    def fingerprint(self) -> dict[str, Any]:
        return self.identity

    def lr_at(self, step: int) -> float:
        return self.recipe.lr_at(step, self._crops.epoch_steps, self.peak)

    @property
    def _crops(self) -> Crops:
        assert self.crops is not None
        return self.crops

    def batches(self, run: Run) -> Iterator[Batch]:
        """Yield this process's part of each accumulated part of each batch."""
        parts, processes = self.recipe.accumulate, run.processes
        part = self._crops.batch // parts
        share = part // processes.size
        starts = range(run.step * self._crops.batch, self.steps * self._crops.batch, part)
        mine = [list(range(s + processes.rank * share, s + (processes.rank + 1) * share)) for s in starts]
        return iter(
            DataLoader(
                self._crops,
                batch_sampler=mine,
                num_workers=self.workers,
                pin_memory=processes.device.type == "cuda",
                generator=torch.Generator(),  # none of the process's own
            )
        )

    def rate(self, trained: nn.Module, pixels: Tensor) -> Tensor:
        """Return raw quality (B,) of pixels (B, 3, S, S) by a network, or by an adapter of the base."""
        images = self.normalise(pixels)
        raw = trained(self.rated, images) if isinstance(trained, Adapter) else trained(images)
        return raw[:, 0]  # type: ignore[no-any-return]

    def losses(self, batch: Batch, run: Run) -> dict[str, Tensor]:
        pixels, mos = batch
        with run.processes.autocast():
            raw = self.rate(self.network, pixels)
        return losses_of(raw.float(), mos.to(raw.device).float(), self.recipe)

    def rate_set(self, run: Run, images: Sequence[Rated], of: RatedSet, done: Report | None = None) -> Tensor:
        """Return raw quality (n, crops) of images of a set by the weights to keep."""
        trained = run.averaged
        return rate_images(
            lambda pixels: self.rate(trained, pixels),
            images,
            of,
            protocol_of(self.recipe),
            run.processes,
            done,
        )

    def validate(self, run: Run) -> dict[str, Any] | None:
        """Return mean SRCC and PLCC on some images of the folds "val", after each epoch."""
        if run.step == 0 or run.step % self._crops.epoch_steps:
            return None
        found = []
        for each in self.sets:
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
        return self._finish(self, run)


def losses_of(raw: Tensor, mos: Tensor, recipe: PaperRecipe) -> dict[str, Tensor]:
    """Return the recipe's losses of raw quality (n,) by name, and their weighted sum as ``loss``."""
    kinds: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "smooth-l1": lambda p, m: smooth_l1(p, m, recipe.beta),
        "plcc": plcc_loss,
        "ranking": pairwise_ranking,
    }
    parts = {name: kinds[name](raw, mos) for name in recipe.losses}
    total = torch.stack([recipe.losses[name] * loss for name, loss in parts.items()]).sum()
    return {"loss": total, **parts}


def protocol_of(recipe: PaperRecipe) -> Protocol:
    """Return how images are cropped in testing."""
    return Protocol("random", crop=recipe.crop, n_crops=recipe.test_crops, seed=recipe.seed)


def rate_images(
    rate: Callable[[Tensor], Tensor],
    images: Sequence[Rated],
    of: RatedSet,
    protocol: Protocol,
    processes: Processes,
    done: Report | None = None,
) -> Tensor:
    """Return raw quality (n, crops) of images, float64; the processes share them, in float32.

    Args:
        rate: crops (B, 3, S, S) uint8 to raw quality (B,). All crops of an image go together.
        of: the set that the images are from.
        done: called with ``{"image", "images"}`` after each image of this process.

    Raises:
        ImageError: an image cannot be decoded.
    """
    mine = list(range(processes.rank, len(images), processes.size))

    def crops(i: int) -> Tensor:
        pixels = as_bytes(fit_side(of.pixels(images[mine[i]]), protocol.crop))
        boxes = windows(pixels.shape[1], pixels.shape[2], protocol)
        return torch.stack([pixels[:, t : t + h, left : left + w] for t, left, h, w in boxes])

    rows = []
    with torch.inference_mode(), torch.autocast(processes.device.type, enabled=False):
        ahead = made_ahead(crops, 0, len(mine), batch_workers(processes.device))
        for i, pixels in enumerate(ahead):
            rows.append((mine[i], rate(pixels).float().tolist()))
            if done is not None:
                done({"image": i + 1, "images": len(mine)})
    together = [row for part in processes.collect(rows) for row in part]
    return torch.tensor([raw for _, raw in sorted(together)], dtype=torch.float64)


def measure(scores: Tensor, mos: Sequence[float]) -> dict[str, Any]:
    """Return SRCC, PLCC, PLCC after the four-parameter logistic fit, and n; None where one is undefined."""
    found: dict[str, Any] = {"n": len(mos)}
    for name, metric in (("srcc", srcc), ("plcc", plcc), ("plcc_fitted", plcc_fitted)):
        try:
            value = metric(scores, mos)
        except MetricError:  # no fit: too few images, or no scipy
            value = math.nan
        found[name] = None if math.isnan(value) else round(value, 6)
    return found
