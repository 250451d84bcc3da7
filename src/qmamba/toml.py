"""TOML: its text to tables, and tables to dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import QMambaError, RecipeError, near_names

T = TypeVar("T")


def parse_toml(text: str) -> dict[str, Any]:
    """Return the values of a TOML text, read by Python itself from 3.11 on and by tomli before.

    Raises:
        ValueError: the text is not TOML.
        RecipeError: tomli is not installed on Python 3.10.
    """
    for name in ("tomllib", "tomli"):  # the first comes with Python 3.11
        with suppress(ModuleNotFoundError):
            return dict(import_module(name).loads(text))
    raise RecipeError("reading TOML needs tomli on Python 3.10: pip install tomli")


def from_table(
    kind: type[T], table: Mapping[str, Any], where: str, error: type[QMambaError] = RecipeError, **given: Any
) -> T:
    """Return a dataclass from a TOML table, its fields' types checked, at any depth.

    A field's key is its name, or ``metadata["key"]``. TOML writes tuples as lists.

    Args:
        kind: the dataclass.
        table: values by key.
        where: what errors call the table.
        error: class of the errors.
        given: fields that the table does not set.

    Raises:
        QMambaError: of class ``error``, an unknown or missing key, or a value of a wrong type; one line.
    """
    fields: dict[str, dataclasses.Field[Any]] = {
        field.metadata.get("key", field.name): field
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        if field.name not in given
    }
    for key in sorted(table.keys() - fields.keys()):
        raise error(f"{where} has the unknown key {key!r}; {near_names(key, sorted(fields))}")
    for key, field in sorted(fields.items()):
        if key not in table and field.default is field.default_factory is dataclasses.MISSING:
            raise error(f"{where} lacks {key!r}; the keys are {', '.join(sorted(fields))}")
    hints = get_type_hints(kind)
    values = {
        fields[key].name: _checked(hints[fields[key].name], value, f"{where}: {key}", error)
        for key, value in table.items()
    }
    return kind(**given, **values)


def _checked(hint: Any, value: Any, where: str, error: type[QMambaError]) -> Any:
    """Return a value of TOML as the type of a field."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, UnionType):  # with None, which TOML writes as an absent key
        return _checked(next(each for each in arguments if each is not NoneType), value, where, error)
    is_table = origin in (dict, Mapping) or dataclasses.is_dataclass(hint)
    kind = list if origin is tuple else dict if is_table else origin or hint
    fits = isinstance(value, kind) or (kind is float and type(value) is int)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise error(f"{where} must be of type {kind.__name__}, got {value!r}")
    if dataclasses.is_dataclass(hint):
        return from_table(hint, value, where, error)  # type: ignore[arg-type]
    if is_table:
        return {key: _checked(arguments[1], each, f"{where}.{key}", error) for key, each in value.items()}
    if origin is not tuple:
        return value
    hints = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
    if len(hints) != len(value):
        raise error(f"{where} must be a list of {len(hints)} values, got {value!r}")
    return tuple(_checked(each, part, where, error) for each, part in zip(hints, value, strict=True))
