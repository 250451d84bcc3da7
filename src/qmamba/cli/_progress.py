"""Progress on stderr: a bar on a terminal, and whole lines in a log file."""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from typing import Any, TextIO

ASKED_SECONDS, LOG_SECONDS = 10.0, 60.0
"""Seconds between lines in a log file, where progress was asked for and where it was not."""


def bar_of(total: int | None, progress: bool | None, unit: str = " images", **options: Any) -> Any:
    """Return a progress bar with the interface of tqdm.

    Args:
        total: number of steps; None or 0 if it is not known.
        progress: False for none. None shows a bar on a terminal, and elsewhere a line each minute. True also
            shows the first and the last line there.
        unit: of the steps.
        options: of tqdm.
    """
    from tqdm import tqdm

    stream = sys.stderr
    if stream is None or progress is False:
        return tqdm(total=total, disable=True)
    if not stream.isatty():
        return Lines(stream, total, unit, asked=bool(progress), initial=options.get("initial", 0))
    return tqdm(total=total, unit=unit, file=stream, leave=False, **options)


class Lines:
    """Progress as whole lines: at most one each few seconds, so that a log file stays readable.

    The interface is the part of tqdm's that commands use.
    """

    disable = True  # no bar on a screen that rows would have to make room for

    def __init__(
        self, stream: TextIO, total: int | None, unit: str, *, asked: bool = False, initial: int = 0
    ) -> None:
        self.stream, self.total, self.unit, self.asked = stream, total, unit, asked
        self.n = self.initial = self.last_print_n = initial
        self.description = self.postfix = self.last_text = ""
        self.begin = self.last_time = time.monotonic()
        self.refresh()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, count: int = 1) -> None:
        """Count steps, and write a line if it is time."""
        self.n += count
        self._write_if_due()

    def set_description(self, text: str) -> None:
        """Set what stands before the numbers."""
        self.description = text
        self._write_if_due()

    def set_postfix(self, values: dict[str, str], refresh: bool = True) -> None:
        """Set what stands after the numbers."""
        self.postfix = ", ".join(f"{key}={value}" for key, value in values.items())

    def refresh(self) -> None:
        """Write a line now if progress was asked for."""
        if self.asked:
            self._write()

    def clear(self) -> None:
        """Do nothing: whole lines need not make room for another one."""

    def close(self) -> None:
        """Write the last line if progress was asked for."""
        self.refresh()

    def external_write_mode(self, **_: object) -> nullcontext[None]:
        """Return a context for writing to the screen."""
        return nullcontext()

    def _write_if_due(self) -> None:
        if time.monotonic() - self.last_time >= (ASKED_SECONDS if self.asked else LOG_SECONDS):
            self._write()

    def _write(self) -> None:
        from tqdm import tqdm

        now = time.monotonic()
        text = tqdm.format_meter(
            self.n, self.total or None, now - self.begin, unit=self.unit, initial=self.initial,
            prefix=f"{self.description}: " if self.description else "", postfix=self.postfix,
            bar_format="{desc}{n_fmt}/{total_fmt}{unit} [{elapsed}<{remaining}{postfix}]",
        )  # fmt: skip
        counted = f"{self.description} {self.n} {self.total} {self.postfix}"
        if counted != self.last_text:
            self.stream.write(f"{text}\n")
            self.stream.flush()
        self.last_text, self.last_time = counted, now
