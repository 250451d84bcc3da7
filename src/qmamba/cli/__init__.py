"""The command line: one file per command; `program.py` assembles them."""

from __future__ import annotations

from qmamba.cli.program import app, main

__all__ = ["app", "main"]
