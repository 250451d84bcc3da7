"""What the commands share: how a scorer is loaded, bars on stderr, how errors and Ctrl-C end a program."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from qmamba.errors import QMambaError

if TYPE_CHECKING:
    from qmamba.scoring import Scorer

USAGE = 2
INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
CLOSED_PIPE = 141  # 128 + SIGPIPE


class ProtocolName(str, Enum):
    """The ways to cut an image into crops."""

    grid = "grid"
    random = "random"
    whole = "whole"
    scales = "scales"


class DtypeName(str, Enum):
    """Floating types that a network can compute in."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


def load_options(
    model: str,
    device: str | None,
    dtype: DtypeName | None,
    protocol: ProtocolName | None,
    revision: str | None,
    offline: bool,
    adapter: str | None = None,
) -> dict[str, Any]:
    """The arguments of `qmamba.load`, from what options hold; the name is `model`."""
    import torch

    return {
        "model": model,
        "revision": revision,
        "device": device,
        "dtype": None if dtype is None else getattr(torch, dtype.value),
        "local_files_only": offline,
        "protocol": None if protocol is None else protocol.value,
        "adapter": adapter,
    }


def load_scorer(*named: Any) -> Scorer:
    """`qmamba.load`, from what options hold, as :func:`load_options` takes it."""
    from qmamba.scoring import load

    options = load_options(*named)
    return load(options.pop("model"), **options)


def tell_failed(failed: int, total: int) -> None:
    """One line about the images that could not be scored, if there are any."""
    if failed:
        note(f"{failed} of {total} images could not be scored; their rows say why")


def bar_of(total: int | None, progress: bool | None, unit: str = " images", **options: Any) -> Any:
    """A tqdm bar on stderr; `progress` None shows it on terminals only."""
    from tqdm import tqdm

    wanted = sys.stderr is not None and (sys.stderr.isatty() if progress is None else progress)
    return tqdm(total=total, unit=unit, file=sys.stderr, disable=not wanted, leave=False, **options)


def check_target(path: Path, force: bool) -> None:
    """Refuse a file to be written that is there already, is a folder, or would lie in none.

    Raises:
        QMambaError: in one line.
    """
    if path.is_dir():
        raise QMambaError(f"{path}: a folder; give the name of the file to write")
    if not force and os.path.lexists(path):
        raise QMambaError(f"{path}: there already; give --force to write over it")
    if not path.parent.is_dir():
        raise QMambaError(f"{path.parent}: no such folder to write to; make it first")


def note(line: str) -> None:
    """One line for the person, on stderr: stdout holds nothing but rows."""
    typer.echo(f"qmamba: {printable(line)}", err=True)


def printable(text: str) -> str:
    """`text` on one line, harmless to a terminal: line breaks, control characters and stray bytes escaped.

    >>> print(printable("two\\nlines"))
    two\\nlines
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


@contextmanager
def quiet_ends() -> Iterator[None]:
    """Run a command's body: our errors become one line and exit code 2; Ctrl-C and `head` are silent."""
    try:
        yield
        sys.stdout.flush()  # a pipe that closed is noticed here, not in the interpreter's own clean-up
    except QMambaError as error:
        note(str(error))
        raise typer.Exit(USAGE) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        _forget_stdout()
        raise typer.Exit(CLOSED_PIPE) from None
    except OSError as error:  # a full disk, say; what is read has errors of its own
        _forget_stdout()
        note(" ".join(str(error).split()) or type(error).__name__)
        raise typer.Exit(USAGE) from None


@contextmanager
def hushed() -> Iterator[None]:
    """While images are read, stderr is for what this program says: what cannot be read has a row.

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


def _forget_stdout() -> None:
    """Let the interpreter flush what is left into nowhere, or it would complain at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, sys.stdout.fileno())
    finally:
        os.close(nowhere)
