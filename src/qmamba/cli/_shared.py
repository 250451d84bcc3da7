"""What every command shares: how errors, Ctrl-C and a closed pipe end the program."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from qmamba.errors import QMambaError

USAGE = 2
INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
CLOSED_PIPE = 141  # 128 + SIGPIPE


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


def _forget_stdout() -> None:
    """Let the interpreter flush what is left into nowhere, or it would complain at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, sys.stdout.fileno())
    finally:
        os.close(nowhere)
