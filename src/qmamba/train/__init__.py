"""Training from a recipe: ratings in, a checkpoint folder out."""

from __future__ import annotations

from .pretrain import pretrain
from .recipe import Phase, PretrainRecipe, Recipe, list_recipes, load_recipe
from .trainer import train

__all__ = ["Phase", "PretrainRecipe", "Recipe", "list_recipes", "load_recipe", "pretrain", "train"]
