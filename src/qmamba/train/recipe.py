"""Recipes: everything that a training run depends on, in one TOML file."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from ..data.photos import CROP
from ..errors import RecipeError
from ..toml import parse_toml


@dataclass(frozen=True)
class Phase:
    """A stretch of training at one crop size, in optimiser steps.

    ``mos`` weighs the losses on opinion scores and ranks, ``distil`` the one on a teacher's features,
    ``scores`` the one on its scores, if it rates.
    """

    crop: int
    steps: int
    mos: float = 1.0
    distil: float = 0.0
    scores: float = 0.0

    def __post_init__(self) -> None:
        whole = type(self.crop) is int and type(self.steps) is int
        if not whole or self.crop < 32 or self.steps < 1:
            raise RecipeError(
                "a phase needs a crop of at least 32 and at least one step, both integers, "
                f"not crop = {self.crop!r}, steps = {self.steps!r}"
            )
        weights = (self.mos, self.distil, self.scores)
        if any(isinstance(w, bool) or not isinstance(w, (int, float)) for w in weights) or not (
            all(w >= 0 for w in weights) and 0 < sum(weights) < math.inf
        ):
            raise RecipeError(
                f"a phase's mos, distil and scores are weights of at least 0, not all 0: {weights}"
            )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every recipe has.

    Attributes:
        name: of the model that comes out.
        arch: architecture, as ``create_model`` takes it.
        overrides: keyword arguments of ``create_model``.
        phases: crop sizes and steps, one after the other.
        lr: peak learning rate, reached by a linear warm-up over ``warmup`` of all steps and left by a cosine
            to zero over the last ``cooldown`` of them; by default that is all the rest.
        optimiser: "adamw", or "muon" for the matrices within the network, with AdamW for the rest.
        weight_decay: none on norms, biases, A_log and D.
        clip: largest norm of the gradient.
        ema: decay of the running mean of the weights, which is what is evaluated and saved.
        precision: "float32", or "bfloat16" for the products in the network and the teacher while training:
            faster where the processor has instructions for it.
        seed: of everything random.
        licence, limits: for the model card.
    """

    name: str
    arch: str
    phases: tuple[Phase, ...]
    overrides: dict[str, Any] = field(default_factory=dict)
    lr: float = 1e-3
    warmup: float = 0.05
    cooldown: float | None = None
    optimiser: str = "adamw"
    weight_decay: float = 0.05
    clip: float = 1.0
    ema: float = 0.999
    precision: str = "float32"
    seed: int = 0
    licence: str = "unknown"
    limits: str = ""

    def __post_init__(self) -> None:
        if not self.phases:
            raise RecipeError("a recipe needs at least one phase, with crop and steps")
        self._at_least(weight_decay=0, seed=0)
        for key in ("lr", "clip"):
            if not 0 < getattr(self, key) < math.inf:
                raise RecipeError(f"a recipe's {key} is above 0, not {getattr(self, key)}")
        if not 0 <= self.warmup < 1 or not 0 <= self.ema < 1:
            raise RecipeError(
                f"warmup and ema are at least 0 and below 1, not warmup = {self.warmup}, ema = {self.ema}"
            )
        if self.precision not in ("float32", "bfloat16"):
            raise RecipeError(f"precision is 'float32' or 'bfloat16', not {self.precision!r}")
        if self.optimiser not in ("adamw", "muon"):
            raise RecipeError(f"optimiser is 'adamw' or 'muon', not {self.optimiser!r}")
        if self.cooldown is not None and not 0 <= self.cooldown <= 1 - self.warmup:
            raise RecipeError(f"cooldown is at least 0 and at most 1 - warmup, not {self.cooldown}")

    def _at_least(self, **least: float) -> None:
        for key, value in least.items():
            if not value <= getattr(self, key) < math.inf:  # written so that NaN fails
                raise RecipeError(f"a recipe's {key} is at least {value}, not {getattr(self, key)}")

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> Phase:
        """The phase of a step, counted from 0."""
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        return self.phases[-1]


@dataclass(frozen=True, kw_only=True)
class Recipe(Plan):
    """Learning opinion scores.

    Attributes:
        data: "biq2021", or "manifest" for a CSV with the columns image, mos, fold.
        images: rated photographs a step, one random crop each; at least 2.
        ranked: how many of them come with two damaged copies that must rank below, mild above strong.
        sides: of the protocol of scales that the checkpoint gets, and of crops, which are then cut at random
            scales up to the largest of them; without, it gets the default grid, and crops are of photographs
            as they are.
        max_crops: of the grid at the first of ``sides``; 0, and it is seen whole like the others.
        beta: of the smooth-L1 loss on MOS.
        plcc, ranking: weights of the two other losses.
        margin: by which a score should fall with each level of damage.
        calibration_images: training photographs that the calibration is fitted on.
        validate_every: steps between two looks at the val fold.
    """

    data: str = "biq2021"
    images: int = 24
    ranked: int = 4
    sides: tuple[int, ...] = ()
    max_crops: int = 4
    beta: float = 0.1
    plcc: float = 0.5
    ranking: float = 0.5
    margin: float = 0.03
    calibration_images: int = 600
    validate_every: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(images=2, beta=0, plcc=0, ranking=0, margin=0, calibration_images=2, validate_every=1)
        self._at_least(max_crops=0)
        object.__setattr__(self, "sides", tuple(self.sides))  # TOML knows lists only
        if not 0 <= self.ranked <= self.images:
            raise RecipeError(f"ranked ({self.ranked}) is at most images ({self.images}), and at least 0")
        if self.data not in ("biq2021", "manifest"):
            raise RecipeError(f"a recipe's data is 'biq2021', 'manifest' or 'photos', not {self.data!r}")

    @property
    def distils(self) -> bool:
        """Whether any phase needs a teacher."""
        return any(phase.distil > 0 or phase.scores > 0 for phase in self.phases)


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe(Plan):
    """Learning to see: a teacher's features, distortions, and what ratings there are among the crops.

    Attributes:
        data: "photos", packed by ``qmamba photos``.
        crops: crops a step, as packed.
        damaged: how many of them come with two distorted copies, a mild one and a strong one of one kind.
        features, scores, mos, kind, level, ranking: weights of the losses, see :mod:`qmamba.train.pretrain`.
        margin: by which a score should fall with each level of a distortion that only degrades.
    """

    data: str = "photos"
    crops: int = 24
    damaged: int = 6
    features: float = 1.0
    scores: float = 0.0
    mos: float = 0.3
    kind: float = 0.1
    level: float = 0.5
    ranking: float = 0.5
    margin: float = 0.03

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(crops=2, features=0, scores=0, mos=0, kind=0, level=0, ranking=0, margin=0)
        if not 0 <= self.damaged <= self.crops:
            raise RecipeError(f"damaged ({self.damaged}) is at most crops ({self.crops}), and at least 0")
        if any(phase.crop > CROP for phase in self.phases):
            raise RecipeError(f"a phase's crop is at most {CROP} pixels, the size of the packed ones")


def list_recipes() -> list[str]:
    """Names of the recipes that come with the library."""
    folder = resources.files("qmamba.train") / "recipes"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(name: str | Path) -> Any:
    """A recipe from a TOML file, or one of :func:`list_recipes` by name, or of
    :func:`qmamba.train.paper.list_paper_recipes`.

    Returns:
        A :class:`qmamba.train.paper.PaperRecipe` where there is a ``task``, a :class:`PretrainRecipe` where
        ``data`` is "photos", and otherwise a :class:`Recipe`.

    Raises:
        RecipeError: no such recipe, not TOML, a key that a recipe does not have, or a value it cannot have.
    """
    path = Path(name)
    if path.is_file():
        text = _read(path)
    elif str(name) in list_recipes():
        text = (resources.files("qmamba.train") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    elif shipped := _of_a_paper(str(name)):
        text = shipped
    else:
        known = ", ".join(list_recipes())
        raise RecipeError(f"no recipe {str(name)!r}: give a .toml file, or one of {known}")
    return parse_recipe(text, str(name))


def _of_a_paper(name: str) -> str | None:
    from .paper.recipe import shipped_text

    return shipped_text(name)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the recipe {path} cannot be read: {error}") from error


def parse_recipe(text: str, where: str = "recipe") -> Any:
    """A recipe from TOML text; unknown keys and wrong types are refused."""
    try:
        values = parse_toml(text)
    except ValueError as error:
        raise RecipeError(f"{where} is not valid TOML: {error}") from error
    if "task" in values:
        from .paper.recipe import parse_paper_recipe

        return parse_paper_recipe(values, where)
    kind = PretrainRecipe if values.get("data") == "photos" else Recipe
    known = {f.name for f in dataclasses.fields(kind)}
    unknown, missing = sorted(values.keys() - known), {"name", "arch", "phases"} - values.keys()
    if unknown or missing:
        what = f"has the unknown key {unknown[0]!r}" if unknown else f"lacks {sorted(missing)[0]!r}"
        raise RecipeError(f"{where} {what}; a recipe's keys are {', '.join(sorted(known))}")
    try:
        phases = tuple(Phase(**phase) for phase in values.pop("phases"))
    except TypeError as error:
        raise RecipeError(f"{where}: each of [[phases]] has crop and steps, two integers: {error}") from error
    hints = get_type_hints(kind)
    for key, value in values.items():
        wanted = get_origin(hints[key]) or hints[key]
        wanted = {"cooldown": float, "sides": list}.get(key, wanted)
        fits = isinstance(value, wanted) or (wanted is float and type(value) is int)
        if not fits or (isinstance(value, bool) and wanted is not bool):
            raise RecipeError(f"{where}: {key} should be of type {wanted.__name__}, not {value!r}")
    return kind(phases=phases, **values)
