"""Training from a recipe: ratings in, a checkpoint folder out."""

from __future__ import annotations

from .recipe import Phase, Recipe, list_recipes, load_recipe
from .trainer import train

__all__ = ["Phase", "Recipe", "list_recipes", "load_recipe", "train"]
