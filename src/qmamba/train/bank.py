"""A fixed bank of crops of rated photographs, as the features that precede an adapter's first change."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..adapters import Adapter
from ..data import Rated
from ..errors import RecipeError
from ..images import decode
from ..scoring import Scorer
from .batches import random_crop
from .networks import Interface
from .recipe import MOST_BYTES


class Bank:
    """Crops of photographs, the same ones in every epoch, ready for :meth:`Adapter.after`.

    What precedes an adapter's first change is computed once and kept; where that is too large, or nothing
    precedes it (full tuning, LoRA), the pixels are kept.

    Args:
        ratings: the photographs.
        scorer: the base; crops are cut as its protocol sees photographs.
        adapter: is trained on the crops.
        crops: number of crops of each photograph.
        seed: of the crops' positions, and of which are mirrored.
        most_bytes: maximum size in memory.
        report: called with ``{"image", "images"}`` after each photograph.

    Attributes:
        mos: (n·crops,) float32 on the network's device.

    Raises:
        ImageError: a photograph cannot be decoded; the message names it.
        RecipeError: even the pixels are too large.
    """

    def __init__(
        self,
        ratings: Sequence[Rated],
        scorer: Scorer,
        adapter: Adapter,
        *,
        crops: int,
        seed: int,
        most_bytes: int = MOST_BYTES,
        report: Callable[[dict[str, int]], None] | None = None,
    ) -> None:
        protocol = scorer.protocol
        self.network, self.adapter, self.crops = scorer.base(), adapter, crops
        self._weight = next(scorer.network.parameters())
        self._interface = Interface.of(scorer.config)
        self.mos = torch.tensor([r.mos for r in ratings for _ in range(crops)], device=self._weight.device)
        sides = protocol.sides if protocol.kind == "scales" else ()
        total, size = len(ratings) * crops, protocol.crop
        if total * 3 * size * size > most_bytes:
            raise RecipeError(
                f"{total} crops of {size}² pixels take more than {most_bytes >> 20} MB; use fewer crops"
            )
        self.keeps_features = adapter.start is not None
        self._kept: tuple[Tensor, ...] = ()
        for i, rated in enumerate(ratings):
            g = torch.Generator().manual_seed(seed * 1_000_003 + i)
            image = decode(rated.path)
            pixels = torch.stack([random_crop(image, size, sides, g) for _ in range(crops)])
            part = self._before(pixels) if self.keeps_features else (pixels,)
            if i == 0 and sum(t.nbytes for t in part) * len(ratings) > most_bytes:
                self.keeps_features, part = False, (pixels,)
            if i == 0:  # whole tensors from the start: lists of parts would need twice the memory at the end
                self._kept = tuple(t.new_empty((total, *t.shape[1:])) for t in part)
            for kept, crops_of_image in zip(self._kept, part, strict=True):
                kept[i * crops : (i + 1) * crops] = crops_of_image
            if report is not None:
                report({"image": i + 1, "images": len(ratings)})

    def __len__(self) -> int:
        return len(self.mos)

    def _before(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return what precedes the adapter's first change, without gradients."""
        with torch.no_grad():
            images = self._interface.images(pixels, self._weight.device).to(self._weight.dtype)
            return self.adapter.before(self.network, images)

    def features(self, chosen: Tensor | slice) -> tuple[Tensor, ...]:
        """Return what :meth:`Adapter.after` takes, for crops by their indices."""
        kept = tuple(t[chosen] for t in self._kept)
        return kept if self.keeps_features else self._before(*kept)
