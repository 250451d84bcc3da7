"""Training: from ratings to a checkpoint folder or an adapter.

A training is a :class:`Task`, which :func:`fit` runs.
"""

from __future__ import annotations

from .adaptation import adapt
from .engine import fit
from .linear_head import fit_head
from .pretraining import pretrain
from .quantizing import QuantizeRecipe, quantize
from .ratings import train
from .recipe import QUICK, AdaptRecipe, HeadRecipe, Phase, PretrainRecipe, Recipe
from .recipe_files import list_recipes, load_recipe
from .task import Task
from .words import WordsRecipe, read_conversations, train_words

__all__ = [
    "QUICK",
    "AdaptRecipe",
    "HeadRecipe",
    "Phase",
    "PretrainRecipe",
    "QuantizeRecipe",
    "Recipe",
    "Task",
    "WordsRecipe",
    "adapt",
    "fit",
    "fit_head",
    "list_recipes",
    "load_recipe",
    "pretrain",
    "quantize",
    "read_conversations",
    "train",
    "train_words",
]
