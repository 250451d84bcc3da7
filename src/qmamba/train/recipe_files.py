"""Recipes as TOML: those of the library by name, and files of users."""

from __future__ import annotations

import dataclasses
from importlib import resources
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import RecipeError
from ..toml import parse_toml
from .paper.recipe import PaperRecipe, list_paper_recipes, paper_recipe_text
from .recipe import HeadRecipe, PretrainRecipe, Recipe
from .words.recipe import WordsRecipe

T = TypeVar("T")


def list_recipes() -> list[str]:
    """Return the names of the recipes that come with the library."""
    folder = resources.files("qmamba.train") / "recipes"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(name: str | Path) -> Any:
    """Load a recipe from a TOML file, or by a name of :func:`list_recipes` or
    :func:`qmamba.train.paper.list_paper_recipes`.

    Returns:
        A :class:`qmamba.train.paper.PaperRecipe` where there is a ``task``, a :class:`HeadRecipe` where there
        is a ``head``, a :class:`WordsRecipe` where there is a ``stage``, a :class:`PretrainRecipe` where
        ``data`` is "photos", and otherwise a :class:`Recipe`.

    Raises:
        RecipeError: no such recipe, not TOML, an unknown key, or a value that a key cannot have.
    """
    path = Path(name)
    if path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"the recipe {path} cannot be read: {error}") from error
    elif str(name) in list_recipes():
        text = (resources.files("qmamba.train") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    elif str(name) in list_paper_recipes():
        text = paper_recipe_text(str(name))
    else:
        known = ", ".join(list_recipes())
        raise RecipeError(f"no recipe {str(name)!r}; give a .toml file, or one of {known}")
    return parse_recipe(text, str(name))


def parse_recipe(text: str, where: str = "recipe") -> Any:
    """Return a recipe from TOML text; unknown keys and wrong types are refused."""
    try:
        values = parse_toml(text)
    except ValueError as error:
        raise RecipeError(f"{where} is not valid TOML: {error}") from error
    if "task" in values:
        return build(PaperRecipe, values, where)
    if "head" in values:
        return build(HeadRecipe, values, where)
    if "stage" in values:
        return build(WordsRecipe, values, where)
    return build(PretrainRecipe if values.get("data") == "photos" else Recipe, values, where)


def build(kind: type[T], values: dict[str, Any], where: str) -> T:
    """Return a dataclass from a TOML table, its fields' types checked, at any depth.

    A field is called by its name, or by ``metadata["key"]``. TOML writes tuples as lists.

    Args:
        kind: the dataclass.
        values: the table.
        where: what errors call the table.

    Raises:
        RecipeError: one line that says what is wrong.
    """
    fields = {field.metadata.get("key", field.name): field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    required = [
        key for key, field in fields.items() if field.default is field.default_factory is dataclasses.MISSING
    ]
    unknown, missing = sorted(values.keys() - fields.keys()), sorted(required - values.keys())
    if unknown or missing:
        what = f"has the unknown key {unknown[0]!r}" if unknown else f"lacks {missing[0]!r}"
        raise RecipeError(f"{where} {what}; the keys are {', '.join(sorted(fields))}")
    hints = get_type_hints(kind)
    return kind(
        **{
            fields[key].name: _checked(hints[fields[key].name], value, f"{where}: {key}")
            for key, value in values.items()
        }
    )


def _checked(hint: Any, value: Any, where: str) -> Any:
    """Return a value of TOML as the type of a field."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, UnionType):  # with None, which TOML writes as an absent key
        return _checked(next(each for each in arguments if each is not NoneType), value, where)
    kind = list if origin is tuple else dict if dataclasses.is_dataclass(hint) else origin or hint
    fits = isinstance(value, kind) or (kind is float and type(value) is int)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise RecipeError(f"{where} must be of type {kind.__name__}, got {value!r}")
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)  # type: ignore[arg-type]
    if origin is dict:
        return {key: _checked(arguments[1], each, f"{where}.{key}") for key, each in value.items()}
    if origin is not tuple:
        return value
    each_hint = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
    if len(each_hint) != len(value):
        raise RecipeError(f"{where} must be a list of {len(each_hint)} values, got {value!r}")
    return tuple(_checked(each, part, where) for each, part in zip(each_hint, value, strict=True))
