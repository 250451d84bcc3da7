"""Rated photographs that decide which weights of an adapter are kept, seen as the scorer sees them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..adapters import Adapter
from ..calibration import Calibration
from ..data import Rated
from ..images import decode, label
from ..metrics import srcc
from ..scoring import Scorer
from ..scoring.pipeline import windows_and_weights
from .calibrating import fit_calibration
from .recipe import MOST_BYTES

Views = tuple[list[tuple[Tensor, ...]], Tensor]
"""What precedes an adapter for the crops of one photograph, and their weights (n,)."""


class HeldOut:
    """Photographs by the scorer's own protocol, ready for any weights of one adapter.

    What precedes the adapter's first change is computed once and kept, as in a `Bank`; photographs beyond
    `most_bytes` are decoded again for each measurement.

    Args:
        scorer: the base, whose protocol is what results are reported by.
        ratings: the photographs.
        adapter: says where the adapter begins.
        most_bytes: maximum size in memory.
        report: called with ``{"image", "images"}`` after each photograph.

    Raises:
        ImageError: a photograph cannot be decoded; the message names it.
    """

    def __init__(
        self,
        scorer: Scorer,
        ratings: Sequence[Rated],
        adapter: Adapter,
        *,
        most_bytes: int = MOST_BYTES,
        report: Callable[[dict[str, int]], None] | None = None,
    ) -> None:
        self.scorer, self.ratings, self.first = scorer, ratings, adapter
        self.mos = [r.mos for r in ratings]
        self._kept: list[Views | None] = []
        for i, rated in enumerate(ratings):
            seen = self._views(rated)
            most_bytes -= sum(t.nbytes for part in seen[0] for t in part)
            self._kept.append(seen if most_bytes >= 0 else None)
            if report is not None:
                report({"image": i + 1, "images": len(ratings)})

    def _views(self, rated: Rated) -> Views:
        base: Any = self.scorer.base()
        pixels = decode(rated.path)
        looked = list(self.scorer.look(lambda x: self.first.before(base, x), pixels, label(rated.path)))
        crops, features = zip(*looked, strict=True)
        return list(features), windows_and_weights(crops, *map(int, pixels.shape[-2:]))[1]

    @torch.no_grad()
    def rate(self, adapter: Adapter) -> list[tuple[Tensor, Tensor]]:
        """Return raw quality (n,) and weights (n,) of the crops of each photograph, on the CPU."""
        base, found = self.scorer.base(), []
        for kept, rated in zip(self._kept, self.ratings, strict=True):
            parts, weights = kept or self._views(rated)
            raw = torch.cat([adapter.after(base, part)[:, 0].float() for part in parts])
            found.append((raw.cpu(), weights))
        return found

    def scores(self, adapter: Adapter, curve: Calibration | None = None) -> Tensor | None:
        """Return the scores (n,) that the adapter would give; None where it cannot be calibrated.

        Args:
            adapter: a copy of the one that the photographs were prepared for.
            curve: calibration; by default the one that fits these photographs.
        """
        parts = self.rate(adapter)
        curve = curve or fit_calibration([raw for raw, _ in parts], self.mos)
        return None if curve is None else calibrated(parts, curve)


def calibrated(parts: Iterable[tuple[Tensor, Tensor]], curve: Calibration) -> Tensor:
    """Return the scores (n,) of photographs from raw quality and weight of their crops."""
    return torch.stack([(curve(raw) * weights).sum() for raw, weights in parts])


def agreement(scores: Tensor | None, mos: Sequence[float]) -> float:
    """Return SRCC, and -inf where there is none: scores that are missing, not finite, or all the same."""
    if scores is None or not bool(torch.isfinite(scores).all()):
        return -math.inf
    found = srcc(scores, mos)
    return -math.inf if math.isnan(found) else found
