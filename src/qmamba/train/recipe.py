"""Recipes: everything that a training run depends on. ``recipe_files.py`` reads them from TOML."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from ..data.photos import CROP
from ..errors import RecipeError
from ..protocol import Protocol
from .schedule import warmup_cosine

PRECISIONS = ("float32", "bfloat16", "float16")
OPTIMISERS = ("adamw", "muon")
MOST_BYTES = 4 << 30  # of crops that an adaptation keeps in memory


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """What the training loop needs to know, whatever the task.

    Attributes:
        optimiser: "adamw", or "muon" for the matrices inside the network, with AdamW for the rest.
        weight_decay: of weights; none on norms, biases and other parameters that the network names.
        clip: maximum norm of the gradient of the network; 0 for no limit.
        ema: decay of the running mean of the weights, which is what is evaluated and saved; 0 for none.
        precision: of matrix products in training: "float32", "bfloat16", or "float16" on a GPU.
        accumulate: parts that a batch is computed in, one after the other, to need less memory.
        seed: random seed.
        save_every: steps between two states that a run can be resumed from.
    """

    optimiser: str = "adamw"
    weight_decay: float = 0.05
    clip: float = 1.0
    ema: float = 0.0
    precision: str = "float32"
    accumulate: int = 1
    seed: int = 0
    save_every: int = 100

    def __post_init__(self) -> None:
        one_of(self.optimiser, OPTIMISERS, "optimiser")
        one_of(self.precision, PRECISIONS, "precision")
        self.at_least(weight_decay=0, clip=0, seed=0, accumulate=1, save_every=1)
        if not 0 <= self.ema < 1:
            raise RecipeError(f"ema must be at least 0 and below 1, got {self.ema}")
        if self.optimiser == "muon" and self.precision == "float16":
            raise RecipeError("optimiser 'muon' must not be used in float16; use 'bfloat16'")

    def identity(self) -> dict[str, Any]:
        """Return the fields that a result depends on."""
        return {name: value for name, value in asdict(self).items() if name != "save_every"}

    def at_least(self, **least: float) -> None:
        """Check finite lower bounds by name."""
        for key, low in least.items():
            if not low <= getattr(self, key) < math.inf:  # written so that NaN fails
                raise RecipeError(f"{key} must be at least {low}, got {getattr(self, key)}")

    def above_zero(self, *keys: str) -> None:
        """Check that numbers are positive and finite."""
        for key in keys:
            if not 0 < getattr(self, key) < math.inf:
                raise RecipeError(f"{key} must be above 0, got {getattr(self, key)}")


def one_of(value: str, known: tuple[str, ...], what: str) -> None:
    """Check a choice."""
    if value not in known:
        raise RecipeError(f"{what} must be one of {', '.join(known)}, got {value!r}")


@dataclass(frozen=True)
class Phase:
    """A stretch of training at one crop size, in optimiser steps.

    ``mos`` weights the losses on opinion scores and ranks, ``distil`` the one on a teacher's features,
    ``scores`` the one on a teacher's scores.
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
                "a phase must have a crop of at least 32 and at least one step, both integers, "
                f"got crop = {self.crop!r}, steps = {self.steps!r}"
            )
        weights = (self.mos, self.distil, self.scores)
        if any(isinstance(w, bool) or not isinstance(w, (int, float)) for w in weights) or not (
            all(w >= 0 for w in weights) and 0 < sum(weights) < math.inf
        ):
            raise RecipeError(
                f"mos, distil and scores of a phase must be weights of at least 0, not all 0, got {weights}"
            )


@dataclass(frozen=True, kw_only=True)
class Plan(Optimisation):
    """What the recipes of checkpoints have in common.

    Attributes:
        name: of the model that comes out.
        arch: architecture, as ``create_model`` takes it.
        overrides: keyword arguments of ``create_model``.
        phases: crop sizes and steps, in order.
        lr: peak learning rate, reached by a linear warm-up over ``warmup`` of all steps and left by a cosine
            to zero over the last ``cooldown`` of them, by default all the rest.
        licence, limits: for the model card.
    """

    name: str
    arch: str
    phases: tuple[Phase, ...]
    overrides: dict[str, Any] = field(default_factory=dict)
    lr: float = 1e-3
    warmup: float = 0.05
    cooldown: float | None = None
    ema: float = 0.999
    licence: str = "unknown"
    limits: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.phases:
            raise RecipeError("a recipe must have at least one phase, with crop and steps")
        self.above_zero("lr")
        if not 0 <= self.warmup < 1:
            raise RecipeError(f"warmup must be at least 0 and below 1, got {self.warmup}")
        if self.cooldown is not None and not 0 <= self.cooldown <= 1 - self.warmup:
            raise RecipeError(f"cooldown must be at least 0 and at most 1 - warmup, got {self.cooldown}")
        if self.accumulate != 1:
            raise RecipeError("accumulate must be 1 in this kind of recipe: choose smaller batches instead")

    @property
    def steps(self) -> int:
        """Optimiser steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> Phase:
        """Return the phase of a zero-based step."""
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        return self.phases[-1]

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a zero-based step."""
        return warmup_cosine(step, self.steps, self.lr, self.warmup, self.cooldown)


@dataclass(frozen=True, kw_only=True)
class Recipe(Plan):
    """Training on opinion scores.

    Attributes:
        data: "biq2021", or "manifest" for a CSV with the columns image, mos, fold.
        images: rated photographs per step, one random crop each; at least 2.
        sets: how many of them come from each set of a manifest with a column ``set``, see
            :mod:`qmamba.train.rated_sets`; by default sets are not told apart.
        scale: the one of ``sets`` whose opinion scores, in [0, 1], are the scale of all; its fold "val"
            selects, and its training photographs calibrate.
        as_is: those of ``sets`` whose scores are on that scale already; the others are mapped to it.
        ranked: how many of them come with two distorted copies that must rank below, mild above strong.
        sides: of the protocol of scales that the checkpoint gets. Crops are then cut at random scales up to
            the largest of them; without, the checkpoint gets the default grid, and crops are cut from
            photographs at their own size.
        max_crops: of the grid at the first of ``sides``; with 0 the photograph is seen whole there, too.
        beta: of the smooth-L1 loss on MOS.
        plcc, ranking: weights of the two other losses.
        margin: by which a score should fall with each level of a distortion.
        noisy: share of the distorted pairs that have a camera's noise instead.
        calibration_images: training photographs that the calibration is fitted on.
        validate_every: steps between two validations on the fold "val".
    """

    data: str = "biq2021"
    images: int = 24
    sets: dict[str, int] = field(default_factory=dict)
    scale: str = ""
    as_is: tuple[str, ...] = ()
    ranked: int = 4
    sides: tuple[int, ...] = ()
    max_crops: int = 4
    beta: float = 0.1
    plcc: float = 0.5
    ranking: float = 0.5
    margin: float = 0.03
    noisy: float = 0.0
    calibration_images: int = 600
    validate_every: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(images=2, beta=0, plcc=0, ranking=0, margin=0, calibration_images=2, validate_every=1)
        self.at_least(max_crops=0, noisy=0)
        if self.noisy > 1:
            raise RecipeError(f"noisy must be a share from 0 to 1, got {self.noisy}")
        self._check_sets()
        object.__setattr__(self, "sides", tuple(self.sides))  # TOML has lists only
        if not 0 <= self.ranked <= self.images:
            raise RecipeError(f"ranked must be 0 to images ({self.images}), got {self.ranked}")
        one_of(self.data, ("biq2021", "manifest"), "data, unless it is 'photos',")

    def _check_sets(self) -> None:
        object.__setattr__(self, "as_is", tuple(self.as_is))
        if not self.sets:
            if self.scale or self.as_is:
                raise RecipeError("scale and as_is must come with sets; add sets, or leave them out")
            return
        if min(self.sets.values()) < 1 or sum(self.sets.values()) != self.images:
            raise RecipeError(
                f"sets must have at least 1 image each and {self.images} in all, got {self.sets}"
            )
        for name in (self.scale, *self.as_is):
            one_of(name, tuple(self.sets), "scale and as_is")

    @property
    def distils(self) -> bool:
        """Whether any phase needs a teacher."""
        return any(phase.distil > 0 or phase.scores > 0 for phase in self.phases)


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe(Plan):
    """Pretraining: a frozen teacher's general features, and distortions as people rate them.

    Attributes:
        data: "photos", packed by ``qmamba photos``.
        crops: crops per step, as packed.
        damaged: how many of them come with a distorted copy, as far as there are enough unrated ones.
        kadid: share of these copies on the levels of KADID-10k, whose ratings are known, where it has the
            kind; the others are on the library's own levels.
        noisy: share of these copies that have a camera's noise instead, whose rating is unknown.
        varied: share of the crops, distorted copies aside, that are varied beyond what photographs cover, see
            :mod:`qmamba.train.variations`. Kind and quality of these are unknown.
        measured: crops that mean and deviation of the teacher's statistics are measured on at the start.
        rated: further crops per step of each set of ratings that is packed.
        maps, statistics, kind, quality, orders, ratings: weights of the losses, see
            :mod:`qmamba.train.pretraining`. One with weight 0 is not computed.
    """

    data: str = "photos"
    crops: int = 28
    damaged: int = 8
    kadid: float = 0.8
    noisy: float = 0.0
    varied: float = 0.0
    measured: int = 2000
    rated: int = 0
    maps: float = 1.0
    statistics: float = 1.0
    kind: float = 0.1
    quality: float = 0.5
    orders: float = 0.0
    ratings: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(crops=2, kadid=0, noisy=0, varied=0, measured=2, rated=0)
        self.at_least(maps=0, statistics=0, kind=0, quality=0, orders=0, ratings=0)
        if not 0 <= self.damaged <= self.crops:
            raise RecipeError(f"damaged must be 0 to crops ({self.crops}), got {self.damaged}")
        for key in ("kadid", "noisy", "varied"):
            if getattr(self, key) > 1:
                raise RecipeError(f"{key} must be a share from 0 to 1, got {getattr(self, key)}")
        if self.maps + self.statistics + self.kind + self.quality == 0:
            raise RecipeError("maps, statistics, kind and quality must not all be 0; give one a weight")
        if (self.rated > 0) != (self.ratings > 0):
            raise RecipeError(
                f"rated and ratings must both be above 0 or both be 0, got {self.rated} and {self.ratings}"
            )
        if any(phase.crop > CROP for phase in self.phases):
            raise RecipeError(f"crop of a phase must be at most {CROP}, the side of the packed crops")


@dataclass(frozen=True, kw_only=True)
class HeadRecipe:
    """A head fitted in closed form.

    Attributes:
        name: of the model that comes out.
        arch, overrides: of ``create_model``; the head must read statistics.
        sides, max_crops: of the protocol of scales that the checkpoint gets.
        images: maximum number of images of a set; they are drawn at random from its fold "train".
        strength: of the ridge regression, over statistics of variance 1.
        pairs: sets whose images are compared within a ``reference`` only: "b is better than a".
        calibrated_on: set whose opinion scores, in [0, 1], the calibration maps raw quality to; "" where
            there is one set.
        calibration_images: how many of its images that is fitted on.
        seed: random seed.
        licence, limits: for the model card.
    """

    name: str
    arch: str
    overrides: dict[str, Any] = field(default_factory=dict)
    head: str = "ridge"
    sides: tuple[int, ...] = (448, 480)
    max_crops: int = 0
    images: int = 4000
    strength: float = 1.0
    pairs: tuple[str, ...] = ()
    calibrated_on: str = ""
    calibration_images: int = 600
    seed: int = 0
    licence: str = ""
    limits: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "sides", tuple(self.sides))  # TOML has lists only
        object.__setattr__(self, "pairs", tuple(self.pairs))
        if self.head != "ridge":
            raise RecipeError(f"head must be 'ridge', got {self.head!r}")
        if not self.strength > 0 or self.images < 2 or self.calibration_images < 2:
            raise RecipeError(
                "strength must be above 0, images and calibration_images at least 2, "
                f"got {self.strength}, {self.images} and {self.calibration_images}"
            )

    @property
    def protocol(self) -> Protocol:
        """The protocol of the checkpoint."""
        return Protocol("scales", max_crops=self.max_crops, sides=self.sides)


@dataclass(frozen=True, kw_only=True)
class AdaptRecipe(Optimisation):
    """How an adapter is trained.

    Attributes:
        epochs: maximum number of epochs; the learning rate falls to zero over them.
        crops: random crops of each photograph, the same ones in every epoch.
        batch: crops per step.
        lr: peak learning rate; by default the method's own.
        patience: epochs without a better SRCC on the held-out part after which training stops.
        held_out: share of the references, or of photographs without one, that is held out where there is no
            fold "val".
        beta, plcc: of the smooth-L1 loss on MOS, and the weight of the loss on PLCC.
        dtype: floating type that the adapter is stored in.
        most_bytes: maximum size of the bank of crops in memory.
    """

    epochs: int = 30
    crops: int = 5
    batch: int = 32
    lr: float | None = None
    patience: int = 6
    held_out: float = 0.2
    clip: float = 5.0
    beta: float = 0.1
    plcc: float = 0.5
    ema: float = 0.98
    dtype: str = "float16"
    most_bytes: int = MOST_BYTES

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(epochs=1, crops=1, patience=1, batch=2)
        if self.lr is not None:
            self.above_zero("lr")
        if not 0 < self.held_out < 1:
            raise RecipeError(f"held_out must be above 0 and below 1, got {self.held_out}")


QUICK = AdaptRecipe(epochs=8, crops=3, patience=3)
"""A recipe of fewer steps on fewer crops, for a first result."""
