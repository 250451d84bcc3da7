"""Output of commands: lines on stderr, files to write, and how a program ends on errors and signals."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from qmamba.errors import ArgumentError, QMambaError

if TYPE_CHECKING:
    import torch

USAGE = 2
INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
CLOSED_PIPE = 141  # 128 + SIGPIPE


def note(line: str) -> None:
    """Write one line for the user to stderr; stdout holds results only."""
    typer.echo(f"qmamba: {printable(line)}", err=True)


def note_failed(failed: int, total: int) -> None:
    """Write how many images could not be scored, if any."""
    if failed:
        note(f"{failed} of {total} images could not be scored; their rows say why")


def note_missing_kernel(device: torch.device | str) -> None:
    """Write once per process that the CPU is slower without the native kernel, and what to do about it."""
    from qmamba.ops.backend import missing_kernel

    reason = None
    with suppress(RuntimeError):  # an unknown device is refused where it is used
        reason = missing_kernel(device)
    if reason is not None:
        _note_once(reason)


@cache
def _note_once(line: str) -> None:
    note(line)


def printable(text: str) -> str:
    """Return `text` on one line, safe for a terminal: line breaks, control characters, stray bytes escaped.

    >>> print(printable("two\\nlines"))
    two\\nlines
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def columns(rows: Sequence[tuple[str, ...]]) -> str:
    """Return rows of text as aligned columns.

    >>> print(columns([("name", "size"), ("a", "10")]))
    name  size
    a     10
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def two_numbers(text: str, option: str, form: str) -> tuple[float, float]:
    """Return the two numbers of an option's text.

    Args:
        text: such as "0:1".
        option, form: the option, and how its text is written, for the error.

    Raises:
        ArgumentError: it is no such text.

    >>> two_numbers("100:0", "--scale", "WORST:BEST")
    (100.0, 0.0)
    """
    first, _, second = text.partition(":")
    try:
        return float(first), float(second)
    except ValueError:
        raise ArgumentError(f"{option} must be {form}, got {text!r}") from None


def check_target(path: Path, force: bool, *, is_folder_made: bool = False) -> None:
    """Refuse a file that exists, is a folder, or would lie in no folder, before any work is done.

    Raises:
        QMambaError: the file cannot be written, or only with `force`.
    """
    if path.is_dir():
        raise QMambaError(f"{path}: a folder; give the name of the file to write")
    if not force and os.path.lexists(path):
        raise QMambaError(f"{path}: exists already; give --force to overwrite it")
    if not is_folder_made and not path.parent.is_dir():
        raise QMambaError(f"{path.parent}: no such folder to write to; create it first")


def open_closed_streams() -> None:
    """Open stdin, stdout and stderr on nothing where the parent process has closed them.

    Otherwise Python sets them to None, and the next file that is opened gets the descriptor of stdout.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def draw_to_files() -> None:
    """Have matplotlib draw to files, whatever MPLBACKEND says.

    A notebook sets that variable for the programs it starts too, where its backend may not be installed.
    """
    os.environ["MPLBACKEND"] = "agg"


@contextmanager
def quiet_ends() -> Iterator[None]:
    """Run a command: errors of the library are one line and exit code 2; Ctrl-C and `head` are silent."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # a closed pipe is noticed here, not when the interpreter exits
    except QMambaError as error:
        note(str(error))
        raise typer.Exit(USAGE) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        _discard_stdout()
        raise typer.Exit(CLOSED_PIPE) from None
    except OSError as error:  # such as a full disk; errors of input files are QMambaErrors
        _discard_stdout()
        note(" ".join(str(error).split()) or type(error).__name__)
        raise typer.Exit(USAGE) from None


@contextmanager
def hushed() -> Iterator[None]:
    """Keep the messages of image libraries off stderr: an image that cannot be read has a row.

    Pillow warns and logs what it finds odd in a file, and the C libraries below it write to the file
    descriptor itself.
    """
    python = sys.stderr
    try:
        kept = os.dup(2)
    except OSError:  # closed
        yield
        return
    if isinstance(python, io.TextIOWrapper) and python is sys.__stderr__:
        own = open(kept, "wb", buffering=0, closefd=False)  # noqa: SIM115
        sys.stderr = io.TextIOWrapper(own, python.encoding, python.errors, write_through=True)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    if not (pillow := logging.getLogger("PIL")).hasHandlers():
        pillow.addHandler(logging.NullHandler())
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        if sys.stderr is not python:
            with suppress(OSError):
                sys.stderr.flush()
        sys.stderr = python
        os.dup2(kept, 2)
        os.close(kept)


def _discard_stdout() -> None:
    """Redirect stdout to nothing, or the interpreter would complain at exit about what it cannot flush."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, sys.stdout.fileno())
    except (OSError, ValueError):  # not a file, as in tests
        pass
    finally:
        os.close(nowhere)
