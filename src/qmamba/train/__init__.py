"""Training: from ratings to a checkpoint folder or an adapter.

A training is a :class:`Task`, which :func:`fit` runs.
"""

from __future__ import annotations

from .adaptation import QUICK, AdaptRecipe, adapt
from .engine import fit
from .pretraining import pretrain
from .quantizing import QuantizeRecipe, quantize
from .ratings import train
from .recipe import Phase, PretrainRecipe, Recipe, list_recipes, load_recipe
from .task import Task

__all__ = [
    "QUICK",
    "AdaptRecipe",
    "Phase",
    "PretrainRecipe",
    "QuantizeRecipe",
    "Recipe",
    "Task",
    "adapt",
    "fit",
    "list_recipes",
    "load_recipe",
    "pretrain",
    "quantize",
    "train",
]
