"""What tasks whose result is a checkpoint have in common: network, batches, config."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from ..checkpoints import default_config
from ..errors import RecipeError
from ..models import get_architecture
from ..protocol import Protocol
from ..scoring import Scorer
from .engine import Run
from .networks import Interface, make_network
from .prefetch import batch_workers, made_ahead
from .processes import Processes
from .recipe import Plan
from .task import Task

B = TypeVar("B")


class CheckpointTask(Task[B]):
    """A network of a recipe, and a checkpoint folder as the result.

    Args:
        recipe: the plan.
        trained_on: names of the data, for the checkpoint.
        protocol: of the checkpoint; by default the architecture's.
        init: weights to start from, see :func:`make_network`.

    Raises:
        UnknownModelError: the recipe's architecture.
        RecipeError: it is one that answers in words.
    """

    def __init__(
        self,
        recipe: Plan,
        trained_on: Sequence[str],
        *,
        protocol: Protocol | None = None,
        init: str | Path | None = None,
    ) -> None:
        if get_architecture(recipe.arch).output == "words":  # refused before anything is written
            raise RecipeError(f"{recipe.arch!r} learns words, no ratings; use a recipe with a stage")
        self.plan, self.steps, self.init = recipe, recipe.steps, init
        self.about: dict[str, Any] = {
            "trained_on": tuple(trained_on), "licence": recipe.licence, "limits": recipe.limits,
            "dtype": "float16", **({} if protocol is None else {"protocol": protocol}),
        }  # fmt: skip

    @abstractmethod
    def make_batch(self, step: int, rank: int, ranks: int) -> B:
        """Return the part of a step's batch that one of the processes computes."""

    def make_heads(self) -> nn.Module:
        """Return what is trained along with the network, once the network is there."""
        return nn.ModuleList()

    def setup(self, processes: Processes) -> None:
        self.network, began = make_network(self.plan, processes.device, self.init)
        self.config = default_config(self.network, self.plan.name, bases=began.bases, **self.about)
        self.interface = Interface.of(self.config)
        self.heads = self.make_heads().to(processes.device)

    def fingerprint(self) -> dict[str, Any]:
        return {"recipe": self.plan.identity()}

    def lr_at(self, step: int) -> float:
        return self.plan.lr_at(step)

    def batches(self, run: Run) -> Iterator[B]:
        def make(step: int) -> B:
            return self.make_batch(step, run.processes.rank, run.processes.size)

        return made_ahead(make, run.step, self.steps, batch_workers(run.processes.device))

    def scorer(self, run: Run) -> Scorer:
        """Return the running mean of the weights as a scorer that is not calibrated."""
        training = {"recipe": asdict(self.plan), "steps": run.step}
        return Scorer(copy.deepcopy(run.averaged), self.config.replace(training=training))

    def finished(self, run: Run) -> Path | None:
        checkpoint = run.out / "checkpoint"
        return checkpoint if (checkpoint / "config.json").exists() else None
