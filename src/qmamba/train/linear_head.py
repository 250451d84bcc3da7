"""A head in closed form: ridge regression of several sets' ratings on a frozen network's statistics.

The network stays as it is. Each image is seen by the checkpoint's protocol; the means and deviations of all
stages' features, averaged over its views, are its row. Each set is centred by itself and counts the same,
whatever its size and the unit of its opinion scores. The regression is written into the head, and a
calibration on one of the sets then maps raw quality to [0, 1].
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoints import default_config, load_checkpoint
from ..checkpoints.locate import resolve
from ..checkpoints.safetensors_file import replace_file
from ..data import Rated
from ..errors import CheckpointError, RecipeError
from ..images import decode
from ..metrics import srcc
from ..models import create_model
from ..models.capabilities import ReadsStatistics, require
from ..models.statistics import channel_statistics
from ..scoring import Scorer
from .calibrating import fit_calibration
from .folds import digest_of
from .recipe import HeadRecipe
from .ridge import Block, Moments, Ridge, fit, pooled_moments, standardised
from .sampling import drawn

Report = Callable[[dict[str, Any]], None]
SAVE_EVERY = 200  # images
STATISTICS, FINGERPRINT = "statistics.npy", "statistics.json"
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
        out: folder for ``statistics.npy`` (to resume from), what it was computed of, and ``checkpoint/``.
        init: checkpoint whose network, apart from its head, is kept; by any name that ``qmamba.load`` takes.
        device: of the network.
        resume: use the statistics that an interrupted run left in ``out``; otherwise compute them again.
        report: called with ``{"step", "steps"}`` after every image.

    Returns:
        The folder of the checkpoint.

    Raises:
        RecipeError: no ratings of a set that the recipe names, all ratings of a set equal, raw quality that
            does not rise with the opinion scores of ``calibrated_on``, or ``out`` belongs to another run.
        CheckpointError: ``init`` is of another network.
        CapabilityError: the head does not read statistics.
        ImageError: an image that cannot be decoded.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    scorer, weights_sha256 = _headless(recipe, init)
    scorer, sets = scorer.to(device), chosen(recipe, ratings)
    every = [r for members in sets.values() for r in members]
    begun = _begun(out, [weights_sha256, recipe.sides, recipe.max_crops, digest_of(sets)], resume)
    rows = _statistics(scorer, every, out / STATISTICS, begun, report)
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


def _begun(out: Path, fingerprint: list[Any], resume: bool) -> list[np.ndarray]:
    """Return the statistics that an interrupted run of the same network, views and images has left."""
    kept, wanted = out / FINGERPRINT, json.dumps(fingerprint)
    if resume and (out / STATISTICS).is_file():
        if not kept.is_file() or kept.read_text(encoding="utf-8") != wanted:
            raise RecipeError(f"{out} holds a run of another recipe or other data; choose another folder")
        return list(np.load(out / STATISTICS))
    (out / STATISTICS).unlink(missing_ok=True)
    kept.write_text(wanted, encoding="utf-8")
    return []


def _headless(recipe: HeadRecipe, init: str | Path) -> tuple[Scorer, str]:
    """Return a network of the recipe with the weights of ``init`` below the head, and their digest."""
    source, about = load_checkpoint(resolve(str(init)))
    network = create_model(recipe.arch, **recipe.overrides)
    kept = {k: v for k, v in source.state_dict().items() if not k.startswith(HEAD)}
    below = {k: v for k, v in network.state_dict().items() if not k.startswith(HEAD)}
    if {k: v.shape for k, v in kept.items()} != {k: v.shape for k, v in below.items()}:
        raise CheckpointError(f"{init} is of another network than {recipe.arch}; give one of the same")
    network.load_state_dict({**network.state_dict(), **kept}, strict=True)
    config = default_config(
        network, recipe.name, licence=recipe.licence, limits=recipe.limits, dtype="float16",
        protocol=recipe.protocol,
    )  # fmt: skip
    return Scorer(network.eval(), config), about.weights_sha256


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
        kept = sorted(drawn(range(len(train)), recipe.images, recipe.seed))
        found[name] = [*(train[i] for i in kept), *(r for r in members if r.fold == "val")]
    return found


def _statistics(
    scorer: Scorer, ratings: Sequence[Rated], path: Path, rows: list[np.ndarray], report: Report | None
) -> np.ndarray:
    """Return statistics (n, 2 · ΣC) float32 of images, mean over their views, after the rows that are there.

    They are kept in a file on the way.
    """
    network = require(scorer.network, ReadsStatistics, "head to fit")

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
    content = io.BytesIO()
    np.save(content, np.stack(rows))
    replace_file(path, content.getvalue())


def _moments(
    recipe: HeadRecipe, members: Sequence[Rated], x: np.ndarray, mos: np.ndarray, trained: np.ndarray
) -> Moments:
    """Return the moments of a set's images to train on, centred within references for a set of pairs."""
    x, mos = x[trained], mos[trained]
    if members[0].set not in recipe.pairs:
        return Block(x, standardised(mos)).moments
    references = np.array([r.reference for r, t in zip(members, trained, strict=True) if t])
    within, better = x.astype(np.float64), mos.astype(np.float64)
    for group in (references == reference for reference in np.unique(references)):
        within[group] -= within[group].mean(axis=0)
        better[group] -= better[group].mean()
    return Block(within, better / better.std()).moments._replace(mean=x.mean(axis=0, dtype=np.float64))


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
    shown = drawn(members, recipe.calibration_images, recipe.seed)
    found = fit_calibration([scorer.raw_parts(r.path).raw for r in shown], [r.mos for r in shown])
    if found is None:
        raise RecipeError("raw quality does not rise with MOS, so it cannot be calibrated")
    return found
