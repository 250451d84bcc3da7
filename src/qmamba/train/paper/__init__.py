"""The paper's experiments: recipes for the rows of its tables, their training and their numbers."""

from __future__ import annotations

from .recipe import PaperRecipe, Transfer, list_paper_recipes
from .rows import do_row
from .runs import Workshop
from .start import Start, start

__all__ = ["PaperRecipe", "Start", "Transfer", "Workshop", "do_row", "list_paper_recipes", "start"]
