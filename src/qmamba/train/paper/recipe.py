"""Recipes of published experiments: which sets, which splits, which task, and how a network is trained."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from ...data.splitting import CONVENTIONS
from ...errors import RecipeError

TASKS = ("single", "universal", "transfer")
LOSSES = ("smooth-l1", "plcc", "ranking")
SCHEDULES = ("deiqt", "steps")
PRECISIONS = ("float32", "bfloat16", "float16")
OWN = "own"  # in place of a convention: the folds that come with the data
AVERAGE = "average"  # in place of a set: what a paper prints in that column
NO_TUNING = "none"  # in place of an adapter's method

_ORDER = (  # of rows, as the paper has them
    "qmamba-t", "qmamba-s", "qmamba-b", "lqmamba-t", "lqmamba-s", "lqmamba-b",
    "no-tuning", "linear-probe", "full", "style-prompt", "style-prompt-r",
)  # fmt: skip

Printed = dict[str, tuple[float, float]]
"""PLCC and SRCC of a set, as a paper prints them."""


@dataclass(frozen=True)
class Transfer:
    """From some sets to others: the base learns all ``sources``, an adapter each one of the ``targets``."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    paper: Printed = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PaperRecipe:
    """A row of a published table, or an experiment of the same kind on other data.

    Attributes:
        task: "single" trains on each set by itself; "universal" on all sets together, brought to one scale
            and direction; "transfer" on the sources, and then an adapter on each target.
        name: of the networks that come out: letters, digits, ``.``, ``_``, ``-``.
        arch: architecture, as ``create_model`` takes it; ``overrides`` are its keyword arguments.
        data: names of sets, see :func:`qmamba.train.paper.sets.read_set`. None for a transfer.
        transfers: for a transfer, from where to where.
        weights: how often a set's images are seen, 1 unless given: 2 is twice in each epoch.
        sizes: to which images of a set are brought before they are cut, in place of those that are common:
            the shorter side, or height and width; 0 for as they are.
        init_from: weights to start from, see :func:`qmamba.train.paper.start.start`; "" for random ones.
        convention: how splits are drawn: "deiqt", "loda", or "own" for the folds that come with a set, and
            as by "deiqt" for sets that have none.
        splits: how many; where folds come with a set they are the same in all, and the seed is another.
        epochs, crops: an epoch is so many random crops of every image of the training folds.
        crop: side of a crop, in training and in testing.
        test_crops: random crops of an image in testing, whose mean is its score.
        batch: crops a step; by default 32 for up to 5,000 training images and 128 for more.
        accumulate: parts that a batch is computed in, one after the other, to need less memory.
        lr: peak learning rate of AdamW; ``weight_decay`` is none on norms, biases, A_log and D.
        schedule: "deiqt" or "steps", see :meth:`lr_at`.
        decay_epochs: epochs after which the learning rate is divided by ten.
        warmup: for "steps", part of all steps that the learning rate rises in.
        clip: largest norm of the gradient.
        losses: weights of the losses by name: "smooth-l1", "plcc", "ranking". The last two look at the crops
            that one process computes at once.
        beta: of the smooth-L1 loss, on labels in [0, 1].
        precision: "float32", "bfloat16" or "float16" in training; testing is in float32.
        adapter: for a transfer, a method of :mod:`qmamba.adapters`, or "none" for no tuning;
            ``adapter_options`` are its own, ``adapter_lr`` is the method's own by default.
        seed: of everything random but the splits; split i adds i to it.
        save_every: steps between two states that a run can go on from.
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
    overrides: dict[str, Any] = field(default_factory=dict)
    init_from: str = ""
    convention: str = "deiqt"
    splits: int = 10
    epochs: int = 9
    crops: int = 10
    crop: int = 224
    test_crops: int = 10
    batch: int | None = None
    accumulate: int = 1
    lr: float = 2e-4
    weight_decay: float = 0.05
    schedule: str = "deiqt"
    decay_epochs: int = 3
    warmup: float = 0.05
    clip: float = 5.0
    losses: dict[str, float] = field(default_factory=lambda: {"smooth-l1": 1.0})
    beta: float = 0.1
    precision: str = "float32"
    adapter: str = ""
    adapter_options: dict[str, Any] = field(default_factory=dict)
    adapter_lr: float | None = None
    seed: int = 0
    save_every: int = 200
    title: str = ""
    paper: Printed = field(default_factory=dict)
    licence: str = "unknown"

    def __post_init__(self) -> None:
        _one_of(self.task, TASKS, "task")
        _one_of(self.schedule, SCHEDULES, "schedule")
        _one_of(self.precision, PRECISIONS, "precision")
        _one_of(self.convention, (*CONVENTIONS, OWN), "convention")
        whole = ("splits", "epochs", "crops", "test_crops", "accumulate", "decay_epochs", "save_every")
        least = {**dict.fromkeys(whole, 1), "crop": 32, "seed": 0}
        if self.batch is not None:
            least["batch"] = 2 * self.accumulate
        for key, low in least.items():
            if getattr(self, key) < low:
                raise RecipeError(f"a recipe's {key} is at least {low}, not {getattr(self, key)}")
        if self.batch is not None and self.batch % self.accumulate:
            raise RecipeError(f"batch ({self.batch}) must divide by accumulate ({self.accumulate})")
        for key in ("lr", "clip"):
            if not 0 < getattr(self, key) < math.inf:
                raise RecipeError(f"a recipe's {key} is above 0, not {getattr(self, key)}")
        if not 0 <= self.warmup < 1 or not 0 <= self.weight_decay < math.inf or not 0 <= self.beta < math.inf:
            raise RecipeError("warmup is below 1, and warmup, weight_decay and beta are at least 0")
        self._check_losses()
        self._check_sets()

    def _check_losses(self) -> None:
        for name, weight in self.losses.items():
            _one_of(name, LOSSES, "a loss")
            if not 0 <= weight < math.inf:
                raise RecipeError(f"the weight of the loss {name!r} is at least 0, not {weight}")
        if not sum(self.losses.values()) > 0:
            raise RecipeError("a recipe needs at least one loss with a weight above 0")

    def _check_sets(self) -> None:
        if self.task == "transfer":
            if not self.transfers or self.data or not self.adapter:
                raise RecipeError(
                    "a transfer has [[transfers]] with from and to, and an adapter ('none' for no tuning), "
                    "and no data"
                )
        elif not self.data or self.transfers or self.adapter:
            raise RecipeError(f"the task {self.task!r} has data, and neither [[transfers]] nor an adapter")
        known = set(self.sets)
        for key in ("weights", "sizes"):
            if strange := sorted(getattr(self, key).keys() - known):
                raise RecipeError(f"{key} has {strange[0]!r}, which is not among the recipe's sets")
        for paper, sets in ((self.paper, known), *((t.paper, set(t.targets)) for t in self.transfers)):
            if strange := sorted(paper.keys() - sets - {AVERAGE}):
                raise RecipeError(f"paper has {strange[0]!r}, which is not among the sets that are tested")
        if any(not 0 < weight < math.inf for weight in self.weights.values()):
            raise RecipeError(f"weights of sets are above 0: {self.weights}")

    @property
    def sets(self) -> tuple[str, ...]:
        """Names of all sets, each once."""
        moved = [name for t in self.transfers for name in (*t.sources, *t.targets)]
        return tuple(dict.fromkeys((*self.data, *moved)))

    def lr_at(self, step: int, epoch_steps: int, peak: float) -> float:
        """Learning rate of a step, counted from 0.

        * ``steps``: the peak, divided by ten after each ``decay_epochs`` epochs, with a linear warm-up over
          the first ``warmup`` of all steps. So the QMamba paper describes it.
        * ``deiqt``: as DEIQT's own scheduler: a linear warm-up over ``decay_epochs`` epochs, and after it the
          steps of ``steps``, which are by then at a tenth of the peak.

        >>> recipe = PaperRecipe(task="single", name="a", arch="lqmamba-n", data=("livec",), warmup=0.0)
        >>> [f"{recipe.lr_at(epoch, 1, 2e-4):.1e}" for epoch in range(9)]
        ['6.7e-05', '1.3e-04', '2.0e-04', '2.0e-05', '2.0e-05', '2.0e-05', '2.0e-06', '2.0e-06', '2.0e-06']
        """
        length = self.decay_epochs * epoch_steps
        if self.schedule == "deiqt":
            rising = float(min(length, self.epochs * epoch_steps))
        else:
            rising = self.warmup * self.epochs * epoch_steps
        if step < rising:
            return peak * min(1.0, (step + 1) / rising)
        return peak * 0.1 ** (step // length)


def _one_of(value: str, known: tuple[str, ...], what: str) -> None:
    if value not in known:
        raise RecipeError(f"{what} is one of {', '.join(known)}, not {value!r}")


def _folder() -> Path:
    return Path(str(resources.files("qmamba.train") / "recipes" / "paper"))


def list_paper_recipes() -> list[str]:
    """Names of the recipes that come with the library, ``table1/lqmamba-t`` say: a table and a row of it.

    >>> "table1/lqmamba-t" in list_paper_recipes()
    True
    """
    found = sorted((path.parent.name, _place(path.stem), path.stem) for path in _folder().glob("*/*.toml"))
    return [f"{table}/{row}" for table, _, row in found]


def _place(row: str) -> int:
    return _ORDER.index(row) if row in _ORDER else len(_ORDER)


def shipped_text(name: str) -> str | None:
    """The TOML of a recipe of :func:`list_paper_recipes`, None for another name."""
    if name not in list_paper_recipes():
        return None
    return (_folder() / f"{name}.toml").read_text(encoding="utf-8")


def parse_paper_recipe(values: Mapping[str, Any], where: str) -> PaperRecipe:
    """A recipe from the values of its TOML; unknown keys and wrong types are refused.

    Raises:
        RecipeError: one line that says what is wrong.
    """
    values = dict(values)
    known = {f.name for f in dataclasses.fields(PaperRecipe)}
    unknown, missing = sorted(values.keys() - known), sorted({"name", "arch"} - values.keys())
    if unknown or missing:
        what = f"has the unknown key {unknown[0]!r}" if unknown else f"lacks {missing[0]!r}"
        raise RecipeError(f"{where} {what}; the keys of such a recipe are {', '.join(sorted(known))}")
    hints = get_type_hints(PaperRecipe)
    for key, value in values.items():
        wanted = {"batch": int, "adapter_lr": float}.get(key, get_origin(hints[key]) or hints[key])
        wanted = list if wanted is tuple else wanted
        fits = isinstance(value, wanted) or (wanted is float and type(value) is int)
        if not fits or isinstance(value, bool):
            raise RecipeError(f"{where}: {key} should be of type {wanted.__name__}, not {value!r}")
    values["data"] = _names(values.get("data", []), f"{where}: data")
    values["paper"] = _printed(values.get("paper", {}), where)
    values["transfers"] = tuple(_transfer(entry, where) for entry in values.get("transfers", []))
    for key in ("weights", "losses"):
        if any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in values.get(key, {}).values()):
            raise RecipeError(f"{where}: {key} has numbers by name, not {values[key]!r}")
    return PaperRecipe(**values)


def _names(value: Any, what: str) -> tuple[str, ...]:
    if not isinstance(value, list) or any(not isinstance(name, str) or not name for name in value):
        raise RecipeError(f"{what} is a list of names of sets, not {value!r}")
    if len(set(value)) != len(value):
        raise RecipeError(f"{what} names a set twice: {value}")
    return tuple(value)


def _transfer(entry: Any, where: str) -> Transfer:
    if not isinstance(entry, dict) or not {"from", "to"} <= entry.keys() <= {"from", "to", "paper"}:
        raise RecipeError(f"{where}: each of [[transfers]] has from and to, and perhaps paper: {entry!r}")
    sources, targets = (_names(entry[key], f"{where}: {key} of a transfer") for key in ("from", "to"))
    if not sources or not targets:
        raise RecipeError(f"{where}: a transfer has a set at both ends: {entry!r}")
    return Transfer(sources, targets, _printed(entry.get("paper", {}), where))


def _printed(value: Any, where: str) -> Printed:
    pairs = value.items() if isinstance(value, dict) else [("", value)]
    for name, pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or any(not isinstance(v, float) for v in pair):
            raise RecipeError(f"{where}: paper has [PLCC, SRCC] by set, not {name!r} = {pair!r}")
    return {name: (pair[0], pair[1]) for name, pair in pairs}
