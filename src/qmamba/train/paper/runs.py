"""Which runs a recipe has, where each lies, and what its numbers depend on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import RecipeError
from ..engine import Report
from .recipe import NO_TUNING, PaperRecipe

# Keys of a recipe that do not matter to a single run, or not to its numbers.
_OF_THE_ROW = (
    "task", "name", "title", "paper", "licence", "data", "transfers", "splits", "save_every", "weights",
    "sizes", "interpolation", "split_by", "rates",
)  # fmt: skip
_BY_SET = ("weights", "sizes", "interpolation", "split_by")
# Keys that came after results were published: left out where they are not used, so that digests stay.
_LATER = ("interpolation", "vertical_flip")
_OF_ADAPTERS = ("adapter", "adapter_options", "adapter_lr", "held_out")


@dataclass(frozen=True)
class Run:
    """One training, or one evaluation where nothing is tuned, in one split.

    Attributes:
        train: sets whose training folds are learnt, together.
        test: sets whose test folds are measured.
        split: zero-based index of the split.
        base: for a transfer, the run whose network is the base.
        rate: one of the recipe's `rates`, at which this run trains an adapter; None without them.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    split: int
    base: Run | None = None
    rate: float | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """Sets that the network itself has learnt."""
        return self.train if self.base is None else self.base.train

    @property
    def sets(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.sources, *self.train, *self.test)))

    @property
    def title(self) -> str:
        """A short description for people."""
        to = "" if self.base is None else f" to {'+'.join(self.test)}"
        at = "" if self.rate is None else f" at {self.rate:g}"
        return f"{'+'.join(self.sources)}{to}{at}, split {self.split}"


def runs_of(recipe: PaperRecipe, split: int) -> list[Run]:
    """Return the runs of a split, a base before those that need it."""
    if recipe.task == "single":
        return [Run((name,), (name,), split) for name in recipe.data]
    if recipe.task == "universal":
        return [Run(recipe.data, recipe.data, split)]
    found = []
    for transfer in recipe.transfers:
        base = Run(transfer.sources, transfer.sources, split)
        found.append(base)
        found += [
            Run(() if recipe.adapter == NO_TUNING else (name,), (name,), split, base, rate)
            for name in transfer.targets
            for rate in recipe.rates or (None,)
        ]
    return found


def folder_of(run: Run, recipe: PaperRecipe) -> Path:
    """Return the folder of a run: rows of tables that share a run share its folder."""
    digest = hashlib.sha256(json.dumps(identity(run, recipe), sort_keys=True).encode()).hexdigest()[:8]
    to = "" if run.base is None else f"-to-{'+'.join(run.test)}-{recipe.adapter}"
    return Path(f"{recipe.arch}-{'+'.join(run.sources)}{to}-{digest}") / f"split-{run.split:02d}"


def identity(run: Run, recipe: PaperRecipe) -> dict[str, Any]:
    """Return what a run's numbers depend on, except for the data."""
    left_out = {*_OF_THE_ROW, *(_OF_ADAPTERS if run.base is None else ())}
    values = {key: value for key, value in asdict(recipe).items() if key not in left_out}
    if run.rate is not None:
        values["adapter_lr"] = run.rate
    for key in _BY_SET:
        values[key] = {name: v for name, v in getattr(recipe, key).items() if name in run.sets}
    values = {key: value for key, value in values.items() if value or key not in _LATER}
    base = None if run.base is None else identity(run.base, recipe)
    return {**values, "train": list(run.train), "test": list(run.test), "base": base}


@dataclass(frozen=True)
class Workshop:
    """Where and with what runs are done.

    Attributes:
        root: folder with data sets and weights to start from.
        out: folder in which runs get folders.
        cpu: whether to use the CPU only.
        log: a tracker of :data:`qmamba.train.tracking.TRACKERS`.
        workers: processes that make crops, for each training process.
        dry: two images of each set, two steps, random weights where there is nothing to start from.
        cache: folder for images resized to their set's size; None for none.
        report: called as by :func:`qmamba.train.engine.fit`, with ``run`` added; with ``{"run", "image",
            "images"}`` while images are rated; and with ``{"run", "note"}`` where published weights were
            loaded.
    """

    root: Path
    out: Path
    cpu: bool = False
    log: str | None = None
    workers: int = 0
    dry: bool = False
    cache: Path | None = None
    report: Report | None = None

    def report_of(self, run: Run) -> Report:
        """Return a report that adds which run it is about."""

        def report(event: dict[str, Any]) -> None:
            if self.report is not None:
                self.report({"run": run.title, **event})

        return report


def dry_recipe(recipe: PaperRecipe) -> PaperRecipe:
    """Return the recipe for a dry run: few and small crops, one split."""
    return replace(
        recipe,
        splits=1,
        epochs=1,
        crops=4,
        crop=64,
        test_crops=2,
        batch=2,
        accumulate=1,
        precision="float32",
        weights={},
    )


def other_arch(recipe: PaperRecipe, arch: str) -> PaperRecipe:
    """Return the recipe for another architecture, without its overrides.

    Raises:
        RecipeError: it starts from weights of its own architecture.
    """
    if recipe.init_from:
        raise RecipeError(f"the recipe starts from {recipe.init_from}; give --init, too, for another --arch")
    return replace(recipe, arch=arch, overrides={}, name=recipe.name.replace(recipe.arch, arch))
