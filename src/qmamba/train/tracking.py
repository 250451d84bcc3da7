"""Logging to TensorBoard and trackio, through accelerate."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec

from ..errors import RecipeError
from .processes import Processes

TRACKERS = ("tensorboard", "trackio")


@dataclass(frozen=True)
class Tracker:
    """Where losses are logged to, besides the run's own log.

    Attributes:
        kind: one of :data:`TRACKERS`.
        name: of the run there; one that was interrupted keeps it.
        title: of the run, for people.

    Raises:
        RecipeError: the tracker's package is not installed.
    """

    kind: str
    name: str
    title: str = ""

    def __post_init__(self) -> None:
        if self.kind not in TRACKERS:
            raise RecipeError(f"tracker must be one of {', '.join(TRACKERS)}, got {self.kind!r}")
        if not (has_trackio() if self.kind == "trackio" else has_tensorboard()):
            raise RecipeError(
                f"logging to {self.kind} needs its package: pip install 'qmamba[train,{self.kind}]'"
            )


def has_tensorboard() -> bool:
    """Return whether accelerate can log to TensorBoard."""
    if find_spec("accelerate") is None:
        return False
    from accelerate.utils import is_tensorboard_available

    return bool(is_tensorboard_available())


def has_trackio() -> bool:
    """Return whether accelerate can log to trackio."""
    if find_spec("accelerate") is None or find_spec("trackio") is None:
        return False
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    return "trackio" in LOGGER_TYPE_TO_CLASS


@contextmanager
def tracked(processes: Processes, tracker: Tracker, *, resumed: bool) -> Iterator[None]:
    """Log to a tracker within the context. What trackio prints goes to stderr: stdout is for results."""
    accelerator = processes.accelerator
    options = {"trackio": {"name": tracker.name, "resume": "allow" if resumed else "never"}}
    with redirect_stdout(sys.stderr):
        accelerator.init_trackers("qmamba", config={"run": tracker.title}, init_kwargs=options)
    try:
        yield
    finally:
        with redirect_stdout(sys.stderr):
            for each in accelerator.trackers:
                each.finish()
                if each.name == "trackio" and accelerator.is_main_process:
                    import trackio

                    trackio.finish()  # otherwise it prints when the process ends
