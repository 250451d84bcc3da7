"""Progress of a training run, and the ways to stop it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import typer

from qmamba.cli._options import Device, Minutes, Progress, Resume, Threads
from qmamba.cli._progress import bar_of
from qmamba.cli._shared import note, note_missing_kernel

UNFINISHED = 3


class TimeIsUpError(Exception):
    """The time limit of a run is reached."""


class Watch:
    """A report function for trainers: shows progress, and stops the run on Ctrl-C or at a time limit.

    Args:
        steps: of the run; 0 if a report tells it.
        progress: as for `bar_of`.
        minutes: time limit; None for none.
    """

    def __init__(self, steps: int, progress: bool | None, minutes: float | None) -> None:
        self.step = 0
        self.run = ""  # a row of a table has many runs, one after the other
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self.interrupts = 0
        self.shown: dict[str, str] = {}
        self.bar = bar_of(steps, progress, unit=" steps", smoothing=0.05)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.refresh()  # show the last steps, however fast they were
        self.bar.close()

    def __call__(self, event: dict[str, Any]) -> None:
        """Show a report of the trainer, which saves its state if this raises."""
        if (run := event.get("run", "")) != self.run:
            self.run, self.step, self.shown = run, 0, {}
        if "note" in event:
            self.bar.clear()
            note(event["note"])
        elif "step" in event:
            self._show_step(event)
            self._stop_if_told(self.step < event.get("steps", 0))
        else:  # photographs are read before the first step and after the last one
            title = f"{run}: " if run else ""
            self.bar.set_description(f"{title}photograph {event['image']}/{event['images']}")
            if event["image"] == event["images"]:
                self.bar.refresh()
            self._stop_if_told(run != "")

    def _show_step(self, event: dict[str, Any]) -> None:
        self.bar.set_description(self.run)
        if self.step == 0:  # a resumed run does not begin at 0
            self.bar.initial = self.bar.n = self.bar.last_print_n = event["step"] - 1
            self.bar.total = event.get("steps", self.bar.total)
        for key, title in (("loss", "loss"), ("val_srcc", "val SRCC")):
            if key in event:
                self.shown[title] = f"{event[key]:.4f}"
        self.bar.set_postfix(self.shown, refresh=False)
        self.bar.update(event["step"] - self.bar.n)
        self.step = event["step"]

    def _stop_if_told(self, is_unfinished: bool) -> None:
        if self.interrupts:
            raise KeyboardInterrupt
        if self.deadline is not None and time.monotonic() > self.deadline and is_unfinished:
            raise TimeIsUpError

    @contextmanager
    def ends(self, resume: bool) -> Iterator[None]:
        """Say how to resume a run that was stopped; Ctrl-C stops it after the current step."""
        try:
            with self._ctrl_c():
                yield
        except TimeIsUpError:
            self.bar.close()
            note(f"time is up at step {self.step} of {self.bar.total}; give the same command again to resume")
            raise typer.Exit(UNFINISHED) from None
        except KeyboardInterrupt:
            self.bar.close()
            is_saved = self.step and self.interrupts == 1
            where = f"step {self.step}" if is_saved else "the last step that was saved"
            command = "the same command again" if resume else "the same command without --fresh"
            note(f"stopped; give {command} to resume from {where}")
            raise

    @contextmanager
    def _ctrl_c(self) -> Iterator[None]:
        """Let the first Ctrl-C finish the step, so that it can be saved; the second stops at once."""
        if threading.current_thread() is not threading.main_thread():  # others cannot handle signals
            yield
            return
        before = signal.signal(signal.SIGINT, self._interrupted)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        self.interrupts += 1
        if self.interrupts > 1 or self.step == 0:
            raise KeyboardInterrupt
        # Not through Python's streams, which may be in the middle of a write.
        os.write(2, b"\nqmamba: finishing and saving this step; press Ctrl-C again to stop at once\n")


@dataclass(frozen=True)
class WatchOptions:
    """How a run is watched and limited."""

    minutes: Minutes = None
    progress: Progress = None


@dataclass(frozen=True)
class RunOptions(WatchOptions):
    """How and where a training runs."""

    device: Device = None
    threads: Threads = None
    resume: Resume = True

    def watch(self, steps: int = 0) -> Watch:
        """Return what watches a run of `steps` steps; 0 where its reports give their number."""
        return Watch(steps, self.progress, self.minutes)

    def prepare(self) -> str:
        """Set the number of threads, and return the device."""
        if self.threads is not None:
            import torch

            torch.set_num_threads(self.threads)
        device = self.device or "cpu"
        note_missing_kernel(device)
        return device
