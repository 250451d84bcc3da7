"""Statistics of networks' stages over whole images, kept on disk: one row an image.

The cache holds ``EXTRACTOR/DOMAIN-fit-DIGEST.npy`` and ``EXTRACTOR/DOMAIN-test-DIGEST.npy``, float32 arrays
with a row for each image of `Domain.fit` or `Domain.test` in their order; the digest is that of their file
names and sizes. A row of NaN has not been computed yet, so that a run resumes where another one stopped.
EXTRACTOR is ``lite0-SIDE``, or twelve digits of the SHA-256 of a checkpoint's weights and ``-SIDE``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol as Interface

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from generality_domains import Domain, digest
from qmamba.data import Rated
from qmamba.images import decode
from qmamba.models.capabilities import StageFeatures, require
from qmamba.models.statistics import channel_statistics
from qmamba.protocol import Protocol
from qmamba.scoring import Scorer
from qmamba.train.general_features import BLOCKS, STATISTICS, GeneralTeacher

BATCH = 8


class Extractor(Interface):
    """Computes a row of numbers for each image."""

    key: str
    """Name of its folder in the cache."""
    width: int
    """Numbers in a row."""
    statistics: int
    """How many of them, from the first, describe the backbone's features."""

    def __call__(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return (n, width) float32 for n images (3, H, W) uint8 or float32 in [0, 1]."""


def stage_statistics(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the means and deviations of the stages' features before their downsamples.

    Args:
        network: built by `qmamba.create_model`.
        images: (B, 3, H, W), normalised as the network takes them.

    Returns:
        (B, 2·ΣC) float32, in the order of `channel_statistics`.
    """
    return channel_statistics(network.forward_features(images)[1])


class Lite0:
    """Frozen EfficientNet-Lite0: statistics of seven stage ends, and the means of its last features.

    Images are brought to side × side without smoothing, which leaves traces of their sharpness.
    """

    def __init__(self, side: int) -> None:
        self.key, self.side = f"lite0-{side}", side
        self.network = GeneralTeacher().network
        self.width = self.statistics = STATISTICS

    @torch.inference_mode()
    def __call__(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return (n, 2848) float32; see `Extractor`."""
        size = (self.side, self.side)
        small = [F.interpolate(in_bytes(image)[None], size, mode="bilinear") for image in images]
        ends, last = self.network.block_outputs(torch.cat(small) / 127.5 - 1, BLOCKS)
        return torch.cat([channel_statistics(ends), last.mean((2, 3))], dim=1)


class Student:
    """A checkpoint's backbone on whole images of about side² pixels: its statistics, then its raw quality."""

    def __init__(self, scorer: Scorer, side: int) -> None:
        self.key = f"{scorer.config.weights_sha256[:12]}-{side}"
        protocol = Protocol("scales", max_crops=0, sides=(side,))
        self.scorer = Scorer(scorer.network, scorer.config.replace(protocol=protocol))
        self.statistics = 2 * sum(stage["num_chs"] for stage in scorer.network.feature_info)
        self.width = self.statistics + 1

    @torch.inference_mode()
    def __call__(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return (n, 2·ΣC + 1) float32; see `Extractor`."""
        rows, network = [], require(self.scorer.network, StageFeatures, "stage statistics")
        for image in images:
            for _, (raw, features) in self.scorer.look(network.forward_features, image, "image"):
                rows.append(torch.cat([channel_statistics(features), raw.float()], dim=1))
        return torch.cat(rows)


class OwnScore:
    """A checkpoint's scores by its own protocol."""

    width, statistics = 1, 0

    def __init__(self, scorer: Scorer) -> None:
        self.key = f"{scorer.config.weights_sha256[:12]}-score"
        self.scorer = scorer

    def __call__(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return (n, 1) float32; see `Extractor`."""
        return self.scorer.score(list(images))[:, None]


def in_bytes(image: torch.Tensor) -> torch.Tensor:
    """Return float32 pixels on the scale 0 to 255."""
    return image.float() if image.dtype == torch.uint8 else image.float() * 255


class Cache:
    """A folder of features."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fit(self, extractor: Extractor, domain: Domain) -> np.ndarray:
        """Return the features (n, width) of the images that models are fitted to."""
        if domain.fit == domain.test:
            return self.test(extractor, domain)
        return self.rows(extractor, f"{domain.name}-fit", domain.fit)

    def test(self, extractor: Extractor, domain: Domain) -> np.ndarray:
        """Return the features (n, width) of the images that models are tested on."""
        return self.rows(extractor, f"{domain.name}-test", domain.test)

    def rows(self, extractor: Extractor, name: str, ratings: Sequence[Rated]) -> np.ndarray:
        """Return features (n, width) float32 of images, computing the rows that the cache lacks."""
        path = self.folder / extractor.key / f"{name}-{digest(ratings)}.npy"
        if not path.is_file():
            make_empty(path, (len(ratings), extractor.width))
        kept = np.lib.format.open_memmap(path, mode="r+")
        missing = np.flatnonzero(np.isnan(kept).any(axis=1))
        starts = range(0, len(missing), BATCH)
        for start in tqdm(starts, desc=f"{extractor.key} {name}", unit=" batches", disable=not starts):
            indices = missing[start : start + BATCH]
            kept[indices] = extractor([decode(ratings[index].path) for index in indices]).numpy()
            kept.flush()
        return np.array(kept)


def make_empty(path: Path, shape: tuple[int, int]) -> None:
    """Write an array of NaN as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, np.full(shape, np.nan, dtype=np.float32))
    partial.replace(path)
