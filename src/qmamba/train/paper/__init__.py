"""The paper's experiments: recipes for the rows of its tables, their training and their numbers."""

from __future__ import annotations

from .recipe import PaperRecipe, Transfer, list_paper_recipes
from .rows import do_row
from .runs import Workshop

__all__ = ["PaperRecipe", "Transfer", "Workshop", "do_row", "list_paper_recipes"]
