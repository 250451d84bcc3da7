"""What tasks whose result is a checkpoint have in common: network, teacher, batches, config."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from ..checkpoints import ModelConfig
from ..errors import RecipeError
from ..models import get_architecture
from ..models.capabilities import StageFeatures, require
from ..protocol import Protocol
from ..scoring import Scorer
from .distil import Distiller
from .engine import Run
from .networks import Seen, interface_of, make_network
from .prefetch import batch_workers, made_ahead
from .processes import Processes
from .recipe import Plan
from .task import Task
from .teacher import Lesson, Teacher, load_teacher

B = TypeVar("B")


class CheckpointTask(Task[B]):
    """A network of a recipe, a teacher if it has one, and a checkpoint folder as the result.

    Args:
        recipe: the plan.
        trained_on: name of the data, for the checkpoint.
        protocol: of the checkpoint; by default the architecture's.
        init: weights to start from, see :func:`qmamba.train.start.start`; None for a training from nothing.
        distils: whether there is a teacher.
        teacher: of :func:`qmamba.train.teacher.load_teacher`.
        learns_scores: whether the teacher must rate.

    Raises:
        UnknownModelError: the recipe's architecture.
        CheckpointError: a name that a checkpoint cannot have.
        RecipeError: a teacher that rates is needed, and none is given.
    """

    teacher: Teacher | None

    def __init__(
        self,
        recipe: Plan,
        trained_on: str,
        *,
        protocol: Protocol | None = None,
        init: str | Path | None = None,
        distils: bool,
        teacher: str | Path | None = None,
        learns_scores: bool,
    ) -> None:
        self.plan, self.steps, self.init = recipe, recipe.steps, init
        self.distils, self.teacher_name = distils, teacher
        architecture, self.interface = get_architecture(recipe.arch), interface_of(recipe.arch)
        self.config = ModelConfig(
            name=recipe.name, arch=recipe.arch, overrides=recipe.overrides, trained_on=(trained_on,),
            licence=recipe.licence, limits=recipe.limits, dtype="float16",
            preprocessing=architecture.preprocessing,
            protocol=architecture.protocol if protocol is None else protocol,
        )  # fmt: skip
        if learns_scores and teacher is None:
            raise RecipeError("this recipe learns a teacher's scores; give the checkpoint of one that rates")

    @abstractmethod
    def make_batch(self, step: int, rank: int, ranks: int) -> B:
        """Return the part of a step's batch that one of the processes computes."""

    def make_heads(self) -> nn.Module:
        """Return what is trained along with the network, once network and teacher are there."""
        return nn.ModuleList()

    def setup(self, processes: Processes) -> None:
        self.network = make_network(self.plan, processes.device, self.init)
        self.teacher = load_teacher(self.teacher_name).to(processes.device) if self.distils else None
        self.heads = self.make_heads().to(processes.device)

    def distiller(self) -> Distiller:
        """Return the heads with which the network learns the teacher's features.

        Raises:
            CapabilityError: the network does not give features.
        """
        assert self.teacher is not None
        network = require(self.network, StageFeatures, "features to learn from")
        return Distiller(network.feature_info, self.teacher.feature_info)

    def fingerprint(self) -> dict[str, Any]:
        values = asdict(self.plan)
        del values["save_every"]  # does not matter to the result
        return {"recipe": values}

    def lr_at(self, step: int) -> float:
        return self.plan.lr_at(step)

    def batches(self, run: Run) -> Iterator[B]:
        def make(step: int) -> B:
            return self.make_batch(step, run.processes.rank, run.processes.size)

        return made_ahead(make, run.step, self.steps, batch_workers(run.processes.device))

    def see(self, pixels: Tensor, run: Run, *, taught: bool) -> tuple[Seen, Lesson | None]:
        """Return what network and teacher make of pixels (B, 3, S, S) uint8, in the recipe's precision."""
        with run.processes.autocast():
            seen = self.interface.see(self.network, pixels, features=taught)
            lesson = self.teacher(pixels) if taught and self.teacher is not None else None
        return seen, lesson

    def scorer(self, run: Run) -> Scorer:
        """Return the running mean of the weights as a scorer that is not calibrated."""
        training = {"recipe": asdict(self.plan), "steps": run.step}
        return Scorer(copy.deepcopy(run.averaged), self.config.replace(training=training))

    def finished(self, run: Run) -> Path | None:
        checkpoint = run.out / "checkpoint"
        return checkpoint if (checkpoint / "config.json").exists() else None
