"""How long rows take, from a few of their steps and images; nothing is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ...adapters import create
from ...checkpoints import default_config
from ...data import Rated
from ...models import create_model
from ...scoring import Scorer
from ...scoring.pipeline import quality
from ..networks import Interface
from ..optimisers import make_optimisers
from ..processes import Processes
from .recipe import NO_TUNING, PaperRecipe
from .runs import Run, Workshop, folder_of, runs_of
from .sets import Crops, RatedSet, missing, read_set, split_set
from .task import RESULTS, VAL_IMAGES, losses_of
from .testing import protocol_of, rate_images

MEASURED = 3  # steps, and images; the first of each is not counted


@dataclass(frozen=True)
class Seconds:
    """Elapsed time, and the time of all CPU cores in this process, which other programs hardly change."""

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall + other.wall, self.cpu + other.cpu)

    def __mul__(self, count: float) -> Seconds:
        return Seconds(self.wall * count, self.cpu * count)


@dataclass(frozen=True)
class Cost:
    """What a row takes.

    Attributes:
        row: its name.
        runs: number of trainings and evaluations that are not finished, and that no earlier row shares.
        steps: of all of them.
        step_seconds: mean elapsed time of a step.
        seconds: elapsed, of all runs, with validation and testing.
        cpu_hours: of all runs, summed over cores.
        absent: what the row lacks, "" if its data are complete; nothing is measured then.
    """

    row: str
    runs: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    seconds: float = 0.0
    cpu_hours: float = 0.0
    absent: str = ""


def estimate_rows(recipes: Mapping[str, PaperRecipe], shop: Workshop) -> list[Cost]:
    """Return what rows take on this machine; a run that several rows share counts for the first.

    A run's networks start from random weights, on which times do not depend, so that the weights to start
    from need not exist yet. Each architecture, adapter and crop size is measured once.

    Raises:
        DataSetError, ImageError: existing sets that cannot be read.
    """
    meter, counted = _Meter(shop), set[Path]()
    return [meter.row(name, recipe, counted) for name, recipe in recipes.items()]


@dataclass
class _Meter:
    shop: Workshop
    ratings: dict[str, list[Rated]] = field(default_factory=dict)
    steps: dict[str, Seconds] = field(default_factory=dict)
    tests: dict[str, Seconds] = field(default_factory=dict)

    def row(self, name: str, recipe: PaperRecipe, counted: set[Path]) -> Cost:
        lacks = [lack for each in recipe.sets if (lack := missing(each, self.shop.root))]
        if lacks:
            return Cost(name, absent=lacks[0])
        runs, steps, stepping, total = 0, 0, 0.0, Seconds()
        for split in range(recipe.splits):
            for run in runs_of(recipe, split):
                folder = self.shop.out / folder_of(run, recipe)
                if folder in counted or (folder / RESULTS).is_file():
                    continue
                counted.add(folder)
                taken, per_step, other = self.run(run, recipe)
                runs, steps = runs + 1, steps + taken
                stepping, total = stepping + taken * per_step.wall, total + per_step * taken + other
        return Cost(name, runs, steps, stepping / max(steps, 1), total.wall, total.cpu / 3600)

    def run(self, run: Run, recipe: PaperRecipe) -> tuple[int, Seconds, Seconds]:
        """Return the number of steps, the seconds of each, and those of validation and testing."""
        sets = {name: self._split(name, run, recipe) for name in run.sets}
        tested = sum(len(sets[name].folds["test"]) for name in run.test)
        if run.rate is not None:
            tested += sum(len(sets[name].folds.get("val", ())) for name in run.test)
        image = self._image(sets[run.test[0]], run, recipe)
        if not run.train:
            return 0, Seconds(), image * tested
        crops = Crops([sets[name] for name in run.train], recipe, recipe.seed + run.split)
        looks = sum(min(VAL_IMAGES, len(sets[name].folds.get("val", ()))) for name in run.train)
        return crops.steps, self._step(crops, run, recipe), image * (tested + recipe.epochs * looks)

    def _split(self, name: str, run: Run, recipe: PaperRecipe) -> RatedSet:
        if name not in self.ratings:
            self.ratings[name] = read_set(name, self.shop.root)
        held_out = recipe.held_out if run.base is not None and name in run.test else 0.0
        return split_set(
            name, self.ratings[name], recipe, run.split, held_out=held_out, cache=self.shop.cache
        )

    def _step(self, crops: Crops, run: Run, recipe: PaperRecipe) -> Seconds:
        key = f"{_key(run, recipe)} {run.train} {crops.batch}"
        if key not in self.steps:
            self.steps[key] = _step_seconds(crops, run, recipe, self._device)
        return self.steps[key]

    def _image(self, each: RatedSet, run: Run, recipe: PaperRecipe) -> Seconds:
        key = f"{_key(run, recipe)} {run.test} {recipe.test_crops}"
        if key not in self.tests:
            self.tests[key] = _image_seconds(each, run, recipe, self._device)
        return self.tests[key]

    @property
    def _device(self) -> torch.device:
        return torch.device("cpu" if self.shop.cpu or not torch.cuda.is_available() else "cuda")


def _key(run: Run, recipe: PaperRecipe) -> str:
    adapter = "" if run.base is None else f"{recipe.adapter} {recipe.adapter_options}"
    return f"{recipe.arch} {recipe.overrides} {adapter} {recipe.crop} {recipe.precision}"


class _Rater:
    """A network with random weights, or an adapter of one, as a run trains it."""

    def __init__(self, run: Run, recipe: PaperRecipe, device: torch.device) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.base = create_model(recipe.arch, **recipe.overrides).to(device)
            is_adapted = run.base is not None and recipe.adapter != NO_TUNING
            self.trained: nn.Module = (
                create(recipe.adapter, self.base, **recipe.adapter_options) if is_adapted else self.base
            )
        self.config = default_config(self.base, recipe.name, protocol=protocol_of(recipe))
        self.interface, self.device = Interface.of(self.config), device

    def __call__(self, images: Tensor) -> Tensor:
        """Return raw quality (B,) of normalised images (B, 3, S, S)."""
        outputs = self.trained(images) if self.trained is self.base else self.trained(self.base, images)
        return quality(outputs, self.config.output)


def _step_seconds(crops: Crops, run: Run, recipe: PaperRecipe, device: torch.device) -> Seconds:
    """Return the time of a step: crops, losses, gradients, the optimiser."""
    rater = _Rater(run, recipe, device)
    if rater.trained is not rater.base:  # what an architecture freezes stays frozen in either case
        rater.base.requires_grad_(False)
    optimisers = make_optimisers(rater.trained.train(), nn.ModuleList(), recipe)
    part = crops.batch // recipe.accumulate

    def step(place: int) -> None:
        for start in range(place * crops.batch, (place + 1) * crops.batch, part):
            pixels, mos = zip(*(crops[i] for i in range(start, start + part)), strict=True)
            half = getattr(torch, recipe.precision)
            with torch.autocast(device.type, dtype=half, enabled=recipe.precision != "float32"):
                raw = rater(rater.interface.images(torch.stack(list(pixels)), device))
            torch.autograd.backward(losses_of(raw, torch.tensor(mos, device=device), recipe)["loss"])
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()

    return _mean_time(step, min(MEASURED, crops.steps), device)


def _image_seconds(each: RatedSet, run: Run, recipe: PaperRecipe, device: torch.device) -> Seconds:
    """Return the time of an image in testing."""
    rater, images = _Rater(run, recipe, device), list(each.folds["test"])
    rater.trained.eval()
    scorer = Scorer(rater.base, rater.config)

    def rate(place: int) -> None:
        with torch.inference_mode():
            rate_images(scorer, rater, [images[place % len(images)]], each, Processes(device))

    return _mean_time(rate, MEASURED, device)


def _mean_time(work: Callable[[int], None], count: int, device: torch.device) -> Seconds:
    """Return the mean time of some work, without the first, which allocates memory and starts threads."""
    times = []
    for place in range(count):
        began = Seconds(time.monotonic(), time.process_time())
        work(place)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(Seconds(time.monotonic(), time.process_time()) + began * -1)
    kept = times[1:] or times
    return sum(kept, Seconds()) * (1 / len(kept))
