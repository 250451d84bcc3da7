"""Training: ratings in, a checkpoint folder out, or an adapter's."""

from __future__ import annotations

from .adaptation import AdaptRecipe, adapt
from .pretraining import pretrain
from .recipe import Phase, PretrainRecipe, Recipe, list_recipes, load_recipe
from .trainer import train

__all__ = [
    "AdaptRecipe",
    "Phase",
    "PretrainRecipe",
    "Recipe",
    "adapt",
    "list_recipes",
    "load_recipe",
    "pretrain",
    "train",
]
