"""What is seen of a training run on a terminal, and the ways to end it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any

import typer

from qmamba.cli._shared import bar_of, note

UNFINISHED = 3

# Options of all commands that train.
Minutes = Annotated[
    float | None,
    typer.Option(min=0, help="Stop after so long, with exit code 3; the same command goes on."),
]
Resume = Annotated[
    bool, typer.Option("--resume/--fresh", help="Go on from a run in --out, or refuse such a folder.")
]


class TimeIsUpError(Exception):
    """The time that a run was given is over."""


class Watch:
    """What is seen of a run: a bar with the loss and the last SRCC on the val fold; how Ctrl-C ends it."""

    def __init__(self, steps: int, progress: bool | None, until: float | None) -> None:
        self.step = 0
        self.run = ""  # a row of a table has many, one after the other
        self.until = until  # as time.monotonic() tells it
        self.stopping = 0
        self.shown: dict[str, str] = {}
        self.bar = bar_of(steps, progress, unit=" steps", smoothing=0.05)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.refresh()  # however fast the last steps were, they are seen
        self.bar.close()

    def __call__(self, event: dict[str, Any]) -> None:
        """A report of the trainer, which saves its state when this raises."""
        if (run := event.get("run", "")) != self.run:
            self.run, self.step, self.shown = run, 0, {}
        title = f"{run}: " if run else ""
        if "note" in event:
            self.bar.clear()
            note(event["note"])
            return
        if "step" not in event:  # before the first one, and after the last, photographs are read
            self.bar.set_description(f"{title}photograph {event['image']}/{event['images']}")
            self._end_if_told(run != "")
            return
        self.bar.set_description(title.rstrip(": "))
        if self.step == 0:  # a run that goes on does not begin at 0
            self.bar.initial = self.bar.n = self.bar.last_print_n = event["step"] - 1
            self.bar.total = event.get("steps", self.bar.total)
        for key, title in (("loss", "loss"), ("val_srcc", "val SRCC")):
            if key in event:
                self.shown[title] = f"{event[key]:.4f}"
        self.bar.set_postfix(self.shown, refresh=False)
        self.bar.update(event["step"] - self.bar.n)
        self.step = event["step"]
        self._end_if_told(self.step < event.get("steps", 0))

    def _end_if_told(self, unfinished: bool) -> None:
        if self.stopping:
            raise KeyboardInterrupt
        if self.until is not None and time.monotonic() > self.until and unfinished:
            raise TimeIsUpError

    @contextmanager
    def ends(self, resume: bool) -> Iterator[None]:
        """Say how a run that was ended goes on."""
        try:
            yield
        except TimeIsUpError:
            self.bar.close()
            note(f"time is up at step {self.step} of {self.bar.total}; give the same command again to go on")
            raise typer.Exit(UNFINISHED) from None
        except KeyboardInterrupt:
            self.bar.close()
            saved = self.step and self.stopping == 1
            where = f"step {self.step}" if saved else "the last step that was saved"
            again = "the same command again" if resume else "the same command without --fresh"
            note(f"stopped; give {again} to go on from {where}")
            raise

    @contextmanager
    def ctrl_c(self) -> Iterator[None]:
        """The first Ctrl-C lets the step end, so that it can be saved; the second does not wait."""
        if threading.current_thread() is not threading.main_thread():  # only there signals can be handled
            yield
            return
        before = signal.signal(signal.SIGINT, self._interrupted)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        self.stopping += 1
        if self.stopping > 1 or self.step == 0:
            raise KeyboardInterrupt
        # Past Python's streams, which may be in the middle of a write themselves.
        os.write(2, b"\nqmamba: this step is finished and saved first; Ctrl-C again ends at once\n")
