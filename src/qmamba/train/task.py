"""What a training consists of, except for its loop, which is in :mod:`qmamba.train.engine`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from torch import Tensor, nn

from .processes import Processes

if TYPE_CHECKING:
    from .engine import Run

B = TypeVar("B")


class Task(ABC, Generic[B]):
    """A training without its loop. Subclasses compose losses, teachers and data.

    Until :meth:`setup` a task holds plain values only: it is sent to every process that trains, and each
    makes its own modules. Everything random is a function of the recipe's seed, the step and the rank.

    Attributes:
        network: what is trained, averaged and kept.
        heads: what is trained along with it and not kept.
        steps: of the whole training; 0 where nothing is trained and :meth:`finish` is all there is.
        shared: numbers of the recipe by name that must divide by the number of processes.
        resumable: whether states are saved.
    """

    network: nn.Module
    heads: nn.Module
    steps: int
    shared: dict[str, int]
    resumable: bool = True

    @abstractmethod
    def setup(self, processes: Processes) -> None:
        """Make the modules on the device of this process, and everything else that is not a plain value."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Return what the result depends on, ready for JSON; a run is resumed only where it is equal."""

    @abstractmethod
    def lr_at(self, step: int) -> float:
        """Return the learning rate of a zero-based step."""

    @abstractmethod
    def batches(self, run: Run) -> Iterator[B]:
        """Yield this process's part of every batch, from step ``run.step`` on.

        A step takes as many items as the recipe's ``accumulate``.
        """

    @abstractmethod
    def losses(self, batch: B, run: Run) -> dict[str, Tensor]:
        """Return all losses of a batch by name, and what is minimised as ``loss``."""

    def validate(self, run: Run) -> dict[str, Any] | None:
        """Measure the weights to keep, if it is time; called by all processes at the start and every step."""
        return None

    def ended(self, run: Run) -> bool:
        """Return whether no more steps follow."""
        return run.step >= self.steps

    def state(self) -> dict[str, Any]:
        """Return what else changes in training, as tensors and plain values."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take what :meth:`state` gave."""

    def finished(self, run: Run) -> Path | None:
        """Return the result where it has been written already; a run that has ended is then left as it is."""
        return None

    @abstractmethod
    def finish(self, run: Run) -> Path:
        """Write the result, in the first process, and return its path; called by all processes."""
