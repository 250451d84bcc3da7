"""Recipes of published experiments: which sets, which splits, which task, and how a network is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from ...data.splitting import CONVENTIONS
from ...errors import RecipeError
from ..recipe import Optimisation, one_of
from ..schedule import cosine, step_decay

TASKS = ("single", "universal", "transfer")
LOSSES = ("smooth-l1", "plcc", "ranking", "correlation", "squared-correlation")
SCHEDULES = ("deiqt", "steps", "cosine")
INTERPOLATIONS = ("bilinear", "bicubic")
SPLIT_BY = ("image", "reference")
OWN = "own"  # in place of a convention: the folds that come with the data
AVERAGE = "average"  # in place of a set: what a paper prints in that column
NO_TUNING = "none"  # in place of an adapter's method

_ORDER = (  # of rows, as the paper has them
    "qmamba-t", "qmamba-s", "qmamba-b", "lqmamba-t", "lqmamba-s", "lqmamba-b",
    "no-tuning", "linear-probe", "full", "style-prompt", "style-prompt-r",
    "ssf", "crossattn-prompt", "conv-prompt", "lora", "n1", "n2", "n4", "n6", "n8", "n10",
    "1x1", "7x7", "14x14", "28x28", "layer", "loda", "frozen-bn",
)  # fmt: skip

Printed = dict[str, tuple[float, float]]
"""PLCC and SRCC of a set, as a paper prints them."""


@dataclass(frozen=True)
class Transfer:
    """Transfer from some sets to others: the base learns all ``sources``, an adapter each of ``targets``."""

    sources: tuple[str, ...] = field(metadata={"key": "from"})
    targets: tuple[str, ...] = field(metadata={"key": "to"})
    paper: Printed = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_names(self.sources, "from")
        _check_names(self.targets, "to")
        if not self.sources or not self.targets:
            raise RecipeError(f"a transfer must have a set at both ends, got {self}")


@dataclass(frozen=True, kw_only=True)
class PaperRecipe(Optimisation):
    """A row of a published table, or an experiment of the same kind on other data.

    Attributes:
        task: "single" trains on each set by itself; "universal" on all sets together, brought to one scale
            and direction; "transfer" on the sources, and then an adapter on each target.
        name: of the networks that come out: letters, digits, ``.``, ``_``, ``-``. If they are of several
            sets, each has its set's name behind it; those of a transfer are named by architecture and sets.
        arch: architecture, as ``create_model`` takes it; ``overrides`` are its keyword arguments.
        data: names of sets, see :func:`qmamba.train.paper.sets.read_set`. None for a transfer.
        transfers: the sources and targets of a transfer.
        weights: how often a set's images are seen, 1 unless given: 2 is twice in each epoch.
        sizes: size that images of a set are resized to before they are cropped, in place of the common one:
            the shorter side, or height and width; 0 for their own size.
        interpolation: by set, "bilinear" or "bicubic", how images are resized; "bilinear" unless given.
        init_from: weights to start from, see :func:`qmamba.checkpoints.start.start`; "" for random ones,
            "bases" for the architecture's frozen base weights.
        convention: how splits are drawn: "deiqt", "loda", or "own" for the folds that come with a set, and
            as by "deiqt" for sets without folds.
        split_by: what is divided by set: "image", or "reference", such as the prompt of generated images; by
            default as the set's literature does.
        splits: number of splits; folds that come with a set are the same in all, with another seed.
        epochs, crops: an epoch has this many random crops of every image of the training folds.
        crop: side of a crop, in training and in testing.
        vertical_flip: whether half of the training crops are mirrored top to bottom as well; half of them are
            always mirrored left to right.
        test_crops: random crops of an image in testing, whose mean is its score.
        batch: crops per step; by default 32 for up to 5,000 training images and 128 for more.
        lr: peak learning rate.
        schedule: "deiqt", "steps" or "cosine", see :meth:`lr_at`.
        decay_epochs: epochs after which the learning rate is divided by ten.
        warmup: for "steps", the share of all steps in which the learning rate rises.
        losses: weights of the losses by name: "smooth-l1", "plcc", "ranking", and LoDa's "correlation" and
            "squared-correlation". All but the first compare the crops that one process computes at once.
        beta: of the smooth-L1 loss, on labels in [0, 1].
        adapter: for a transfer, a method of :mod:`qmamba.adapters`, or "none" for no tuning;
            ``adapter_options`` are its own, ``adapter_lr`` is the method's own by default.
        rates: for a transfer, peak learning rates that each adapter is trained at; the one with the highest
            SRCC on the fold "val" is reported.
        held_out: for a transfer, the share of a target's training fold that becomes its fold "val", unless
            it has one; by reference where the set is split by it.
        seed: random seed of everything but the splits; split i adds i to it.
        title: of the row; ``paper`` has the numbers that it is compared with.
        licence: of the weights, for the model card.
    """

    task: str
    name: str
    arch: str
    data: tuple[str, ...] = ()
    transfers: tuple[Transfer, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=dict)
    interpolation: dict[str, str] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)
    init_from: str = ""
    convention: str = "deiqt"
    split_by: dict[str, str] = field(default_factory=dict)
    splits: int = 10
    epochs: int = 9
    crops: int = 10
    crop: int = 224
    vertical_flip: bool = False
    test_crops: int = 10
    batch: int | None = None
    lr: float = 2e-4
    schedule: str = "deiqt"
    decay_epochs: int = 3
    warmup: float = 0.05
    clip: float = 5.0
    losses: dict[str, float] = field(default_factory=lambda: {"smooth-l1": 1.0})
    beta: float = 0.1
    adapter: str = ""
    adapter_options: dict[str, Any] = field(default_factory=dict)
    adapter_lr: float | None = None
    rates: tuple[float, ...] = ()
    held_out: float = 0.0
    save_every: int = 200
    title: str = ""
    paper: Printed = field(default_factory=dict)
    licence: str = "unknown"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.task, TASKS, "task")
        one_of(self.schedule, SCHEDULES, "schedule")
        one_of(self.convention, (*CONVENTIONS, OWN), "convention")
        self.at_least(splits=1, epochs=1, crops=1, test_crops=1, decay_epochs=1, crop=32, beta=0, warmup=0)
        self.above_zero("lr")
        if self.batch is not None:
            self.at_least(batch=2 * self.accumulate)
            if self.batch % self.accumulate:
                raise RecipeError(f"batch ({self.batch}) must divide by accumulate ({self.accumulate})")
        if not self.warmup < 1:
            raise RecipeError(f"warmup must be below 1, got {self.warmup}")
        self._check_losses()
        self._check_sets()
        self._check_rates()

    def _check_losses(self) -> None:
        for name, weight in self.losses.items():
            one_of(name, LOSSES, "a loss")
            if not 0 <= weight < math.inf:
                raise RecipeError(f"the weight of the loss {name!r} must be at least 0, got {weight}")
        if not sum(self.losses.values()) > 0:
            raise RecipeError("losses must have at least one with a weight above 0")

    def _check_sets(self) -> None:
        _check_names(self.data, "data")
        if self.task == "transfer":
            if not self.transfers or self.data or not self.adapter:
                raise RecipeError(
                    "a transfer must have [[transfers]] with from and to, an adapter ('none' for no tuning), "
                    "and no data"
                )
        elif not self.data or self.transfers or self.adapter:
            raise RecipeError(f"task {self.task!r} must have data, and neither [[transfers]] nor an adapter")
        known = set(self.sets)
        for key in ("weights", "sizes", "interpolation", "split_by"):
            if unknown := sorted(getattr(self, key).keys() - known):
                raise RecipeError(f"{key} has {unknown[0]!r}, which is not among the recipe's sets")
        for paper, sets in ((self.paper, known), *((t.paper, set(t.targets)) for t in self.transfers)):
            if unknown := sorted(paper.keys() - sets - {AVERAGE}):
                raise RecipeError(f"paper has {unknown[0]!r}, which is not among the sets that are tested")
        if any(not 0 < weight < math.inf for weight in self.weights.values()):
            raise RecipeError(f"weights of sets must be above 0, got {self.weights}")

    def _check_rates(self) -> None:
        for by in self.split_by.values():
            one_of(by, SPLIT_BY, "split_by of a set")
        for kind in self.interpolation.values():
            one_of(kind, INTERPOLATIONS, "interpolation of a set")
        if not 0 <= self.held_out < 1:
            raise RecipeError(f"held_out must be at least 0 and below 1, got {self.held_out}")
        if any(not 0 < rate < math.inf for rate in self.rates):
            raise RecipeError(f"rates must be above 0, got {list(self.rates)}")
        is_tuned = self.task == "transfer" and self.adapter != NO_TUNING
        if self.rates and (not is_tuned or self.adapter_lr is not None):
            raise RecipeError("rates are for a transfer with an adapter, in place of adapter_lr")

    @property
    def sets(self) -> tuple[str, ...]:
        """Names of all sets, each once."""
        moved = [name for t in self.transfers for name in (*t.sources, *t.targets)]
        return tuple(dict.fromkeys((*self.data, *moved)))

    def lr_at(self, step: int, epoch_steps: int, peak: float) -> float:
        """Return the learning rate of a zero-based step.

        * ``steps``: the peak, divided by ten after each ``decay_epochs`` epochs, with a linear warm-up over
          the first ``warmup`` of all steps, as the QMamba paper describes it.
        * ``deiqt``: the scheduler of DEIQT's code: a linear warm-up over ``decay_epochs`` epochs, and after
          it the steps of ``steps``, which are by then at a tenth of the peak.
        * ``cosine``: from the peak to zero along a cosine, without a warm-up, as LoDa's code has it.

        >>> recipe = PaperRecipe(task="single", name="a", arch="lqmamba-n", data=("livec",), warmup=0.0)
        >>> [f"{recipe.lr_at(epoch, 1, 2e-4):.1e}" for epoch in range(9)]
        ['6.7e-05', '1.3e-04', '2.0e-04', '2.0e-05', '2.0e-05', '2.0e-05', '2.0e-06', '2.0e-06', '2.0e-06']
        """
        steps, decay_steps = self.epochs * epoch_steps, self.decay_epochs * epoch_steps
        if self.schedule == "cosine":
            return cosine(step, steps, peak)
        warmup = self.warmup * steps if self.schedule == "steps" else float(min(decay_steps, steps))
        return step_decay(step, peak, warmup, decay_steps)


def _check_names(names: tuple[str, ...], key: str) -> None:
    if "" in names or len(set(names)) != len(names):
        raise RecipeError(f"{key} must have names of sets, each once, got {list(names)}")


def _folder() -> Path:
    return Path(str(resources.files("qmamba.train") / "recipes" / "paper"))


def list_paper_recipes() -> list[str]:
    """Return the names of the paper's recipes that come with the library: ``table1/lqmamba-t`` and so on.

    >>> "table1/lqmamba-t" in list_paper_recipes()
    True
    """
    found = sorted(
        (path.parent.name, _row_number(path.stem), path.stem) for path in _folder().glob("*/*.toml")
    )
    return [f"{table}/{row}" for table, _, row in found]


def _row_number(row: str) -> int:
    return _ORDER.index(row) if row in _ORDER else len(_ORDER)


def paper_recipe_text(name: str) -> str:
    """Return the TOML of a recipe of :func:`list_paper_recipes`."""
    return (_folder() / f"{name}.toml").read_text(encoding="utf-8")
