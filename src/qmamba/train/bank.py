"""A fixed bank of crops of rated photographs, as the features that come before what an adapter changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..adapters import Adapter
from ..data import Rated
from ..errors import RecipeError
from ..images import Preprocessing, decode
from ..models.qmamba import QMamba
from ..protocol import Protocol
from .batches import random_crop

MOST_BYTES = 4 << 30


class Bank:
    """Crops of photographs, the same ones in every epoch, ready for :meth:`Adapter.after`.

    What lies before an adapter's first change is computed once and kept; where that is too large, or nothing
    lies before it (full tuning, LoRA), the pixels are kept.

    Args:
        ratings: the photographs.
        network: the base, in evaluation mode.
        adapter: whose first change it is.
        protocol: of the base; crops are cut as it sees photographs.
        crops: of each photograph.
        seed: of their places and of which are mirrored.
        preprocessing: of the base.
        most_bytes: that may be kept.
        report: called with ``{"image", "images"}`` after each photograph.

    Attributes:
        mos: (n·crops,) float32 on the network's device.

    Raises:
        ImageError: a photograph cannot be decoded; the message names it.
        RecipeError: even the pixels are too many.
    """

    def __init__(
        self,
        ratings: Sequence[Rated],
        network: QMamba,
        adapter: Adapter,
        protocol: Protocol,
        *,
        crops: int,
        seed: int,
        preprocessing: Preprocessing,
        most_bytes: int = MOST_BYTES,
        report: Callable[[dict[str, int]], None] | None = None,
    ) -> None:
        self.network, self.adapter, self.crops = network, adapter, crops
        self._weight = next(network.parameters())
        self._mean, self._std = (255 * t for t in preprocessing.tensors(self._weight.device))
        self.mos = torch.tensor([r.mos for r in ratings for _ in range(crops)], device=self._weight.device)
        sides = protocol.sides if protocol.kind == "scales" else ()
        total, size = len(ratings) * crops, protocol.crop
        if total * 3 * size * size > most_bytes:
            raise RecipeError(
                f"{total} crops of {size}² pixels take more than {most_bytes >> 20} MB: fewer crops"
            )
        self.keeps_features = adapter.start is not None
        self._kept = torch.empty(0)
        for i, rated in enumerate(ratings):
            g = torch.Generator().manual_seed(seed * 1_000_003 + i)
            image = decode(rated.path)
            pixels = torch.stack([random_crop(image, size, sides, g) for _ in range(crops)])
            part = self._before(pixels) if self.keeps_features else pixels
            if i == 0 and part.nbytes * len(ratings) > most_bytes:
                self.keeps_features, part = False, pixels
            if i == 0:  # one tensor from the start: a list of parts would be held twice at the end
                self._kept = part.new_empty((total, *part.shape[1:]))
            self._kept[i * crops : (i + 1) * crops] = part
            if report is not None:
                report({"image": i + 1, "images": len(ratings)})

    def __len__(self) -> int:
        return len(self.mos)

    def _before(self, pixels: Tensor) -> Tensor:
        """uint8 crops (B, 3, S, S) to what comes before the adapter's first change; no gradient is wanted."""
        images = (pixels.to(self._weight.device).float() - self._mean) / self._std
        with torch.no_grad():
            return self.adapter.before(self.network, images.to(self._weight.dtype))

    def features(self, chosen: Tensor | slice) -> Tensor:
        """What :meth:`Adapter.after` takes, for crops by their places."""
        kept = self._kept[chosen]
        return kept if self.keeps_features else self._before(kept)

    @torch.no_grad()
    def rate(self, adapter: Adapter, batch: int) -> Tensor:
        """Raw quality (n,) of the photographs by an adapter, each the mean over its crops; on the CPU."""
        parts = [
            adapter.after(self.network, self.features(slice(i, i + batch)))[:, 0].float()
            for i in range(0, len(self), batch)
        ]
        return torch.cat(parts).view(-1, self.crops).mean(dim=1).cpu()
