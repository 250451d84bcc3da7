"""Models on frozen statistics: a probe, a ridge regression with a domain left out, and ensembles of those."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import generality_ridge
from generality_domains import Domain, contents, digest, opinions
from generality_features import Cache, Extractor
from generality_ridge import LeaveOut, folds_of, split
from qmamba.train import ridge as library_ridge
from qmamba.train.ridge import Block, standardised

Predictions = dict[str, np.ndarray]
FITTED = "biq2021"  # the domain that probes are fitted to
FOLDS = 5  # of a probe's images, to choose its strength
PARTS = 3  # of each domain, one of which a member of the ensemble leaves out


def probe(extractor: Extractor, domains: Sequence[Domain], cache: Cache) -> Predictions:
    """Return predictions for each domain by a ridge regression on BIQ2021's train fold alone."""

    def compute() -> Predictions:
        (fitted,) = (domain for domain in domains if domain.name == FITTED)
        folds = folds_of(contents(fitted.fit).tolist(), FOLDS)
        blocks = split(block_of(extractor, fitted, cache), folds)
        ridge = LeaveOut(blocks).best(blocks)
        return {domain.name: ridge.predict(tested(extractor, domain, cache)) for domain in domains}

    return remembered(cache.folder, "probe", [extractor], domains, compute)


def left_out(extractor: Extractor, domains: Sequence[Domain], cache: Cache) -> Predictions:
    """Return predictions for each domain by a ridge regression on all other domains with opinions."""

    def compute() -> Predictions:
        models = LeaveOut(blocks_of(extractor, domains, cache))
        return {
            domain.name: models.best(others(models, domain)).predict(tested(extractor, domain, cache))
            for domain in domains
        }

    return remembered(cache.folder, "left-out", [extractor], domains, compute)


def ensemble(extractors: Sequence[Extractor], domains: Sequence[Domain], cache: Cache) -> Predictions:
    """Return mean predictions for each domain by many ridge regressions on other domains.

    Members differ in their statistics, in the part of each domain that they leave out, and in one more
    domain that they may leave out. Their strength is the one chosen for all other domains.
    """

    def compute() -> Predictions:
        members: dict[str, list[np.ndarray]] = {domain.name: [] for domain in domains}
        for extractor in extractors:
            blocks = blocks_of(extractor, domains, cache)
            strengths = {}
            whole = LeaveOut(blocks)
            for domain in domains:
                strengths[domain.name] = whole.choose(others(whole, domain))
            parts = {
                domain.name: folds_of(contents(domain.fit).tolist(), PARTS)
                for domain in domains
                if domain.rated
            }
            for part in range(PARTS):
                models = LeaveOut({name: without(blocks[name], parts[name] == part) for name in blocks})
                for domain in domains:
                    x, names = tested(extractor, domain, cache), others(models, domain)
                    for subset in subsets(names):
                        ridge = models.ridge(subset, strengths[domain.name])
                        members[domain.name].append(ridge.predict(x))
        return {name: np.mean(predictions, axis=0) for name, predictions in members.items()}

    return remembered(cache.folder, "ensemble", extractors, domains, compute)


def tested(extractor: Extractor, domain: Domain, cache: Cache) -> np.ndarray:
    """Return the statistics (n, D) of a domain's images to test."""
    return cache.test(extractor, domain)[:, : extractor.statistics]


def block_of(extractor: Extractor, domain: Domain, cache: Cache) -> Block:
    """Return a domain's images to fit, its opinions standardised."""
    x = cache.fit(extractor, domain)[:, : extractor.statistics]
    return Block(x, standardised(opinions(domain.fit)))


def blocks_of(extractor: Extractor, domains: Sequence[Domain], cache: Cache) -> dict[str, Block]:
    """Return the blocks of all domains with opinions."""
    return {domain.name: block_of(extractor, domain, cache) for domain in domains if domain.rated}


def without(block: Block, left: np.ndarray) -> Block:
    """Return a block without the images where `left` (n,) is True."""
    return Block(block.x[~left], block.y[~left])


def others(models: LeaveOut, domain: Domain) -> list[str]:
    """Return the names of the blocks that are not the domain's."""
    return [name for name in models.blocks if name != domain.name]


def subsets(names: Sequence[str]) -> list[list[str]]:
    """Return all names, and all but each one.

    >>> subsets(["a", "b"])
    [['a', 'b'], ['b'], ['a']]
    """
    return [list(names), *([name for name in names if name != left] for left in names)]


def remembered(
    folder: Path,
    kind: str,
    extractors: Sequence[Extractor],
    domains: Sequence[Domain],
    compute: Callable[[], Predictions],
) -> Predictions:
    """Return predictions from a folder, or compute and keep them there.

    They are kept under a digest of all that they depend on: the statistics, the images, and the code of the
    regression and of these models.
    """
    code = [
        Path(file).read_text(encoding="utf-8")
        for file in (library_ridge.__file__, generality_ridge.__file__, __file__)
    ]
    images = [f"{domain.name} {digest(domain.fit)} {digest(domain.test)}" for domain in domains]
    key = [extractor.key for extractor in extractors]
    mark = hashlib.sha256("\n".join([*code, *images, *key]).encode()).hexdigest()[:12]
    path = folder / "predictions" / f"{kind}-{'+'.join(key)}-{mark}.npz"
    if path.is_file():
        with np.load(path) as arrays:
            return {name: arrays[name] for name in arrays.files}
    found = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, **found)
    partial.replace(path)
    return found
