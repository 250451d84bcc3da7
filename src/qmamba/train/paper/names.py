"""Names of checkpoints and adapters, and parts of rows by these names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...errors import RecipeError
from .recipe import NO_TUNING, PaperRecipe, Transfer
from .runs import Run


def short(name: str) -> str:
    """Return a set's name as it appears in names of checkpoints.

    >>> short("koniq10k"), short("agiqa3k"), short("tid2013")
    ('koniq', 'agiqa', 'tid2013')
    """
    return re.sub(r"\d+k$", "", name)


def joined(names: Sequence[str]) -> str:
    """Return the names of sets as one.

    >>> joined(("koniq10k", "livec"))
    'koniq-livec'
    """
    return "-".join(map(short, names))


def name_of(run: Run, recipe: PaperRecipe) -> str:
    """Return the name of what a run trains: ARCH-SET, or BASE-to-SET for an adapter; "" for no tuning.

    Adapters other than StylePrompt with its own options have the method and its options behind it.
    """
    if recipe.task == "single":
        return recipe.name if len(recipe.data) == 1 else f"{recipe.name}-{joined(run.train)}"
    if recipe.task == "universal":
        return recipe.name
    base = f"{recipe.arch}-{joined(run.sources)}"
    if run.base is None:
        return base
    if recipe.adapter == NO_TUNING:
        return ""
    options = "".join(f"-{key}-{_shown(value)}" for key, value in sorted(recipe.adapter_options.items()))
    is_plain = recipe.adapter == "style-prompt" and not options
    method = "" if is_plain else f"-{recipe.adapter}{options}"
    return f"{base}-to-{joined(run.test)}{method}"


def _shown(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def narrowed(recipe: PaperRecipe, wanted: str) -> PaperRecipe:
    """Return the part of a row that concerns one set, or one transfer.

    Args:
        recipe: of a row.
        wanted: name of a set, whole or short: "koniq10k" or "koniq"; for a transfer that of a target, or of
            sources and target: "koniq-livec-to-agiqa".

    Raises:
        RecipeError: the row has no such part; those that it has are named.
    """
    if recipe.task == "universal":
        raise RecipeError(f"{recipe.name} learns all its sets together: leave /{wanted} out")
    if recipe.task == "single":
        names = [name for name in recipe.data if wanted in (name, short(name))]
        if not names:
            raise _no_part(wanted, map(short, recipe.data))
        name = recipe.name if len(recipe.data) == 1 else f"{recipe.name}-{short(names[0])}"
        return replace(recipe, name=name, data=tuple(names), **_of_sets(recipe, names))
    transfers = [part for transfer in recipe.transfers if (part := _part(transfer, wanted)) is not None]
    if not transfers:
        known = [f"{joined(t.sources)}-to-{short(name)}" for t in recipe.transfers for name in t.targets]
        raise _no_part(wanted, known)
    kept = [name for t in transfers for name in (*t.sources, *t.targets)]
    return replace(recipe, transfers=tuple(transfers), **_of_sets(recipe, kept))


def _part(transfer: Transfer, wanted: str) -> Transfer | None:
    targets = tuple(
        name
        for name in transfer.targets
        if wanted in (name, short(name), f"{joined(transfer.sources)}-to-{short(name)}")
    )
    paper = {name: printed for name, printed in transfer.paper.items() if name in targets}
    return replace(transfer, targets=targets, paper=paper) if targets else None


def _of_sets(recipe: PaperRecipe, names: Sequence[str]) -> dict[str, Any]:
    """Return the values that a recipe has by set, for these sets."""
    by_set = {key: getattr(recipe, key) for key in ("weights", "sizes", "interpolation", "split_by", "paper")}
    return {
        key: {name: value for name, value in values.items() if name in names}
        for key, values in by_set.items()
    }


def _no_part(wanted: str, known: Sequence[str] | map[str]) -> RecipeError:
    return RecipeError(f"a part of the row must be one of {', '.join(known)}; got {wanted!r}")
