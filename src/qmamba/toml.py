"""TOML: Python's own reader from 3.11 on, tomli before."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from typing import Any

from .errors import RecipeError


def parse_toml(text: str) -> dict[str, Any]:
    """The values of a TOML text.

    Raises:
        ValueError: the text is not TOML.
        RecipeError: nothing can read TOML here.
    """
    for name in ("tomllib", "tomli"):  # the first comes with Python 3.11
        with suppress(ModuleNotFoundError):
            return dict(import_module(name).loads(text))
    raise RecipeError("recipes need tomli on Python 3.10: pip install 'qmamba[train]'")
