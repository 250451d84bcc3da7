"""How long an adaptation will take, from a few photographs and one step that changes nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from ..data import Rated
from .bank import Bank
from .held_out import HeldOut

if TYPE_CHECKING:
    from .adaptation import Adaptation
    from .engine import Run

T = TypeVar("T")


def seconds_left(task: Adaptation, run: Run) -> float:
    """Return the seconds that the rest of a run takes at most; its weights stay as they are."""
    train, val, tested = (task.folds[fold] for fold in ("train", "val", task.reported))

    def bank(ratings: Sequence[Rated]) -> Bank:
        return Bank(ratings, task.scorer, task.network, crops=task.recipe.crops, seed=0)

    # The first time is longer than all others: kernels are loaded, threads started, memory allocated.
    kept, _ = _timed(lambda: bank(train[:1]))
    _, read = _timed(lambda: bank(train[1:2]))
    task.try_step(kept, run)
    _, step = _timed(lambda: task.try_step(kept, run))
    held, _ = _timed(lambda: HeldOut(task.scorer, val[:1], task.network))
    _, look = _timed(lambda: HeldOut(task.scorer, val[1:2], task.network))
    held.rate(task.network)
    _, validate = _timed(lambda: held.rate(task.network))

    steps = task.steps - run.step
    training = len(train) * read + steps * step
    selection = len(val) * (look + math.ceil(steps / task.epoch_steps) * validate)
    # In the end the held-out part is scored again, and what is reported on twice.
    return training + selection + (len(val) + 2 * len(tested)) * (look + validate)


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """Return what a function returns, and the seconds that it took."""
    began = time.monotonic()
    found = work()
    return found, time.monotonic() - began


def in_words(seconds: float) -> str:
    """Return a duration in words.

    >>> in_words(20), in_words(100), in_words(1000), in_words(9000)
    ('less than a minute', '2 minutes', '17 minutes', '2.5 hours')
    """
    if seconds < 45:
        return "less than a minute"
    if seconds < 90 * 60:
        minutes = max(1, round(seconds / 60))
        return f"{minutes} minute{'s' * (minutes > 1)}"
    return f"{seconds / 3600:.1f} hours"
