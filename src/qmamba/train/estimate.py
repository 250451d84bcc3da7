"""How long an adaptation will take, from a few photographs and one step that changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from ..data import Rated
from .bank import Bank
from .held_out import HeldOut

if TYPE_CHECKING:
    from .adaptation import Adaptation
    from .engine import Run

T = TypeVar("T")


@dataclass(frozen=True)
class Rates:
    """Measured seconds.

    Attributes:
        read: to read a photograph for training.
        look: to read a photograph of the held-out part.
        step: of training.
        validate: to rate a photograph of the held-out part.
    """

    read: float
    look: float
    step: float
    validate: float

    def total(self, *, train: int, val: int, tested: int, steps: int, validations: int) -> float:
        """Return the seconds of a run with these numbers of photographs, steps and validations.

        >>> Rates(read=1, look=2, step=0.5, validate=1).total(
        ...     train=10, val=5, tested=5, steps=20, validations=2
        ... )
        85.0
        """
        training = train * self.read + steps * self.step
        selection = val * (self.look + validations * self.validate)
        # In the end the held-out part is scored again, and what is reported on twice.
        return training + selection + (val + 2 * tested) * (self.look + self.validate)


def measure(task: Adaptation, run: Run) -> Rates:
    """Measure the rates of a run on a few of its photographs; its weights stay as they are."""
    recipe, config = task.recipe, task.scorer.config

    def bank(ratings: Sequence[Rated]) -> Bank:
        return Bank(
            ratings, task.base, task.network, config.protocol, preprocessing=config.preprocessing,
            crops=recipe.crops, seed=0,
        )  # fmt: skip

    train, val = task.folds["train"], task.folds["val"]
    # The first time is longer than all others: kernels are loaded, threads started, memory allocated.
    kept, _ = _timed(lambda: bank(train[:1]))
    _, read = _timed(lambda: bank(train[1:2]))
    task.try_step(kept, run)
    _, step = _timed(lambda: task.try_step(kept, run))
    held, _ = _timed(lambda: HeldOut(task.scorer, val[:1], task.network))
    _, look = _timed(lambda: HeldOut(task.scorer, val[1:2], task.network))
    held.rate(task.network)
    _, validate = _timed(lambda: held.rate(task.network))
    return Rates(read, look, step, validate)


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """Return what a function returns, and the seconds that it took."""
    began = time.monotonic()
    found = work()
    return found, time.monotonic() - began


def in_words(seconds: float) -> str:
    """Return a duration as people say it.

    >>> in_words(20), in_words(100), in_words(1000), in_words(9000)
    ('less than a minute', '2 minutes', '17 minutes', '2.5 hours')
    """
    if seconds < 45:
        return "less than a minute"
    if seconds < 90 * 60:
        minutes = max(1, round(seconds / 60))
        return f"{minutes} minute{'s' * (minutes > 1)}"
    return f"{seconds / 3600:.1f} hours"
