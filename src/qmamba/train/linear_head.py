"""A head in closed form: ridge regression of several sets' ratings on a frozen network's statistics.

The network stays as it is. Each image is seen by the checkpoint's protocol; the means and deviations of all
stages' features, averaged over its views, are its row. Each set is centred by itself and counts the same,
whatever its size and the unit of its opinion scores. The regression is written into the head, and a
calibration on one of the sets then maps raw quality to [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoints import ModelConfig, load_checkpoint
from ..checkpoints.locate import resolve
from ..data import Rated
from ..errors import CheckpointError, RecipeError
from ..images import decode
from ..metrics import srcc
from ..models import create_model, get_architecture
from ..models.capabilities import ReadsStatistics, require
from ..scoring import Scorer
from .calibrating import fit_calibration
from .general_features import channel_statistics
from .recipe import HeadRecipe
from .ridge import Block, Moments, Ridge, fit, pooled_moments, standardised

Report = Callable[[dict[str, Any]], None]
SAVE_EVERY = 200  # images
HEAD = "head."  # prefix of the head's tensors


def fit_head(
    recipe: HeadRecipe,
    ratings: Sequence[Rated],
    out: str | Path,
    *,
    init: str | Path,
    device: str | torch.device = "cpu",
    resume: bool = True,
    report: Report | None = None,
) -> Path:
    """Fit the head of a frozen network to the fold "train" of one or more sets, and write a checkpoint.

    Args:
        recipe: the plan.
        ratings: images with folds, of sets named by ``Rated.set``; opinion scores in any unit, higher is
            better. SRCC on the fold "val" of each set that has one goes to the checkpoint's config.
        out: folder for ``statistics.npy`` (to resume from) and ``checkpoint/``.
        init: checkpoint whose network, apart from its head, is kept; by any name that ``qmamba.load`` takes.
        device: of the network.
        resume: use the statistics that an interrupted run left in ``out``; otherwise compute them again.
        report: called with ``{"step", "steps"}`` after every image.

    Returns:
        The folder of the checkpoint.

    Raises:
        RecipeError: no ratings of a set that the recipe names, all ratings of a set equal, or raw quality
            that does not rise with the opinion scores of ``calibrated_on``.
        CheckpointError: ``init`` is of another network.
        CapabilityError: the head does not read statistics.
        ImageError: an image that cannot be decoded.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    scorer = _headless(recipe, init).to(device)
    sets = chosen(recipe, ratings)
    every = [r for members in sets.values() for r in members]
    rows = _statistics(scorer, every, out / "statistics.npy", resume, report)
    blocks, first = {}, 0
    for name, members in sets.items():
        trained = np.array([r.fold == "train" for r in members])
        x = rows[first : first + len(members)]
        blocks[name] = (x, np.array([r.mos for r in members]), trained)
        first += len(members)
    ridge = fit(pooled_moments([_moments(recipe, sets[n], *blocks[n]) for n in sets]), recipe.strength)
    network = require(scorer.network, ReadsStatistics, "head to fit")
    mean, scale, weights = (
        torch.from_numpy(values).float() for values in (ridge.mean, 1 / ridge.deviation, ridge.weights)
    )
    network.read_statistics(mean, scale, weights, 0.0)
    found = {n: _agreement(ridge, x[~t], mos[~t]) for n, (x, mos, t) in blocks.items() if (~t).sum() > 2}
    calibration = _calibrate(scorer, recipe, sets)
    training = {"recipe": asdict(recipe), "init": Path(init).name, "val_srcc": found}
    config = scorer.config.replace(calibration=calibration, training=training, trained_on=tuple(sets))
    Scorer(scorer.network, config).save_pretrained(out / "checkpoint")
    return out / "checkpoint"


def _headless(recipe: HeadRecipe, init: str | Path) -> Scorer:
    """Return a network of the recipe with the weights of ``init`` below the head."""
    source = load_checkpoint(resolve(str(init)))[0]
    network = create_model(recipe.arch, **recipe.overrides)
    kept = {k: v for k, v in source.state_dict().items() if not k.startswith(HEAD)}
    below = {k: v for k, v in network.state_dict().items() if not k.startswith(HEAD)}
    if {k: v.shape for k, v in kept.items()} != {k: v.shape for k, v in below.items()}:
        raise CheckpointError(f"{init} is of another network than {recipe.arch}; give one of the same")
    network.load_state_dict({**network.state_dict(), **kept}, strict=True)
    config = ModelConfig(
        name=recipe.name, arch=recipe.arch, overrides=dict(recipe.overrides), licence=recipe.licence,
        limits=recipe.limits, dtype="float16", protocol=recipe.protocol,
        preprocessing=get_architecture(recipe.arch).preprocessing,
    )  # fmt: skip
    return Scorer(network.eval(), config)


def chosen(recipe: HeadRecipe, ratings: Sequence[Rated]) -> dict[str, list[Rated]]:
    """Return the images of each set that are used: some of its fold "train", and all of "val".

    Raises:
        RecipeError: nothing to train on, or a set that the recipe names is absent.
    """
    sets: dict[str, list[Rated]] = {}
    for r in ratings:
        if r.fold in ("train", "val"):
            sets.setdefault(r.set, []).append(r)
    named = {*recipe.pairs, *([recipe.calibrated_on] if recipe.calibrated_on else [])}
    if missing := sorted(named - sets.keys()):
        raise RecipeError(
            f"the recipe names the set {missing[0]!r}, got ratings of {', '.join(sets) or 'none'}"
        )
    if len(sets) > 1 and not recipe.calibrated_on:
        raise RecipeError(f"calibrated_on must be one of {', '.join(sets)}, got none")
    found = {}
    for name, members in sets.items():
        train = [r for r in members if r.fold == "train"]
        if len({r.mos for r in train}) < 2:
            raise RecipeError(f"the set {name!r} must have images in the fold 'train' whose ratings differ")
        if len(train) > recipe.images:
            order = np.random.default_rng(recipe.seed).permutation(len(train))[: recipe.images]
            train = [train[i] for i in sorted(order)]
        found[name] = [*train, *(r for r in members if r.fold == "val")]
    return found


def _statistics(
    scorer: Scorer, ratings: Sequence[Rated], path: Path, resume: bool, report: Report | None
) -> np.ndarray:
    """Return statistics (n, 2 · ΣC) float32 of images, mean over their views; kept in a file on the way."""
    network = require(scorer.network, ReadsStatistics, "head to fit")
    rows: list[np.ndarray] = list(np.load(path)) if resume and path.is_file() else []

    def seen(images: Tensor) -> Tensor:
        return channel_statistics(network.forward_features(images)[1])

    with torch.inference_mode():
        for i, r in enumerate(ratings[len(rows) :], start=len(rows)):
            views = [found for _, found in scorer.look(seen, decode(r.path), str(r.path))]
            rows.append(torch.cat(views).mean(0).cpu().numpy())
            if report is not None:
                report({"step": i + 1, "steps": len(ratings)})
            if (i + 1) % SAVE_EVERY == 0:
                _save(path, rows)
    _save(path, rows)
    return np.stack(rows)


def _save(path: Path, rows: Sequence[np.ndarray]) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, np.stack(rows))
    partial.replace(path)


def _moments(
    recipe: HeadRecipe, members: Sequence[Rated], x: np.ndarray, mos: np.ndarray, trained: np.ndarray
) -> Moments:
    """Return the moments of a set's images to train on, of its references one by one for a set of pairs."""
    x, mos = x[trained], mos[trained]
    if members[0].set not in recipe.pairs:
        return Block(x, standardised(mos)).moments
    references = np.array([r.reference for r, t in zip(members, trained, strict=True) if t])
    groups = [references == reference for reference in np.unique(references)]
    deviation = np.concatenate([mos[group] - mos[group].mean() for group in groups]).std()
    return pooled_moments([Block(x[group], mos[group] / deviation).moments for group in groups])


def _agreement(ridge: Ridge, x: np.ndarray, mos: np.ndarray) -> float:
    return round(srcc(ridge.predict(x), mos), 4)


def _calibrate(scorer: Scorer, recipe: HeadRecipe, sets: Mapping[str, Iterable[Rated]]) -> Any:
    """Return the calibration of raw quality on images of one set.

    Raises:
        RecipeError: opinion scores outside [0, 1], or raw quality that does not rise with them.
    """
    name = recipe.calibrated_on or next(iter(sets))
    members = [r for r in sets[name] if r.fold == "train"]
    if not all(0 <= r.mos <= 1 for r in members):
        raise RecipeError(f"opinion scores of {name or 'the set'} must lie in [0, 1]; rescale them first")
    order = np.random.default_rng(recipe.seed).permutation(len(members))[: recipe.calibration_images]
    parts = [scorer.raw_parts(members[i].path).raw for i in order]
    found = fit_calibration(parts, [members[i].mos for i in order])
    if found is None:
        raise RecipeError("raw quality does not rise with MOS, so it cannot be calibrated")
    return found
