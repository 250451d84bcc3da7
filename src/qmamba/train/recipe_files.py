"""Recipes as TOML: those of the library by name, and files of users."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..toml import from_table, parse_toml
from .paper.recipe import PaperRecipe, list_paper_recipes, paper_recipe_text
from .recipe import HeadRecipe, PretrainRecipe, Recipe
from .words.recipe import WordsRecipe


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
        return from_table(PaperRecipe, values, where)
    if "head" in values:
        return from_table(HeadRecipe, values, where)
    if "stage" in values:
        return from_table(WordsRecipe, values, where)
    return from_table(PretrainRecipe if values.get("data") == "photos" else Recipe, values, where)
