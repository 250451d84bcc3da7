"""The command line: one file a command; `program.py` puts them together."""

from __future__ import annotations

from qmamba.cli.program import app, main

__all__ = ["app", "main"]
