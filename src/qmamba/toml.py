"""Read TOML, with Python's own reader from 3.11 on and tomli before."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from typing import Any

from .errors import RecipeError


def parse_toml(text: str) -> dict[str, Any]:
    """Return the values of a TOML text.

    Raises:
        ValueError: the text is not TOML.
        RecipeError: tomli is not installed on Python 3.10.
    """
    for name in ("tomllib", "tomli"):  # the first comes with Python 3.11
        with suppress(ModuleNotFoundError):
            return dict(import_module(name).loads(text))
    raise RecipeError("reading TOML needs tomli on Python 3.10: pip install tomli")
