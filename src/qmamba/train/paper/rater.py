"""A network, plain or with an adapter, that rates crops of pixels; and how it rates whole images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...adapters import Adapter
from ...data import Rated
from ...images import Preprocessing, as_bytes
from ...metrics import MetricError, plcc, plcc_fitted, srcc
from ...models.qmamba import QMamba, undecayed
from ...protocol import Protocol, fit_side, windows
from ..loop import batch_workers, made_ahead
from .recipe import PaperRecipe
from .sets import RatedSet


class Rater(nn.Module):
    """Crops (B, 3, S, S) uint8 to raw quality (B,).

    Args:
        network: what is trained; with an adapter it is frozen and stays in evaluation mode.
        adapter: what is trained in its place.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: QMamba, adapter: Adapter | None = None) -> None:
        super().__init__()
        self.network, self.adapter = network, adapter
        if adapter is not None:
            network.requires_grad_(False)
        for name, values in zip(("mean", "std"), Preprocessing().tensors(), strict=True):
            self.register_buffer(name, 255 * values, persistent=False)

    def train(self, mode: bool = True) -> Rater:
        """Training mode, of the adapter alone where there is one."""
        super().train(mode)
        if self.adapter is not None:
            self.network.eval()
        return self

    def rate(self, pixels: Tensor) -> Tensor:
        """:meth:`forward`, past whatever was put around it for training."""
        images = (pixels.float() - self.mean) / self.std
        raw = self.network(images) if self.adapter is None else self.adapter(self.network, images)
        return raw[:, 0]  # type: ignore[no-any-return]

    def forward(self, pixels: Tensor) -> Tensor:
        return self.rate(pixels)

    def groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """The parameters that train, in two groups for an optimiser: with weight decay, and without."""
        part: nn.Module = self.network if self.adapter is None else self.adapter
        still = undecayed(part)
        named = [(name, p) for name, p in part.named_parameters() if p.requires_grad]
        return [
            {"params": [p for n, p in named if n not in still], "weight_decay": weight_decay},
            {"params": [p for n, p in named if n in still], "weight_decay": 0.0},
        ]


def protocol_of(recipe: PaperRecipe) -> Protocol:
    """How images are cut in testing."""
    return Protocol("random", crop=recipe.crop, n_crops=recipe.test_crops, seed=recipe.seed)


def rate_images(
    rater: Rater,
    images: Sequence[Rated],
    of: RatedSet,
    protocol: Protocol,
    accelerator: Any,
    done: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Raw quality (n, crops) of images in float32, shared among the processes; an image's crops go together.

    Args:
        of: the set that they are from.
        accelerator: of accelerate, for its processes and its device.
        done: told after each image how many this process has rated, and of how many.

    Raises:
        ImageError: an image cannot be decoded.
    """
    from accelerate.utils import gather_object

    mine = list(range(accelerator.process_index, len(images), accelerator.num_processes))

    def crops(place: int) -> Tensor:
        pixels = as_bytes(fit_side(of.pixels(images[mine[place]]), protocol.crop))
        boxes = windows(pixels.shape[1], pixels.shape[2], protocol)
        return torch.stack([pixels[:, t : t + h, left : left + w] for t, left, h, w in boxes])

    before, rows = rater.training, []
    rater.eval()
    with torch.inference_mode(), torch.autocast(accelerator.device.type, enabled=False):
        ahead = made_ahead(crops, 0, len(mine), batch_workers(accelerator.device))
        for place, pixels in enumerate(ahead):
            rows.append((mine[place], rater.rate(pixels.to(accelerator.device)).float().tolist()))
            if done is not None:
                done(place + 1, len(mine))
    rater.train(before)
    return torch.tensor([raw for _, raw in sorted(gather_object(rows))], dtype=torch.float64)


def measure(scores: Tensor, mos: Sequence[float]) -> dict[str, Any]:
    """SRCC, PLCC raw and after the four-parameter logistic fit, and n; None where one is not defined."""
    found: dict[str, Any] = {"n": len(mos)}
    for name, metric in (("srcc", srcc), ("plcc", plcc), ("plcc_fitted", plcc_fitted)):
        try:
            value = metric(scores, mos)
        except MetricError:  # no fit: too few images, or no scipy
            value = math.nan
        found[name] = None if math.isnan(value) else round(value, 6)
    return found
