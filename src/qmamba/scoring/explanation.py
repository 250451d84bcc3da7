"""Explain a score: the fault of an image, where it is worst, and what was measured of its pixels."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from qmamba.errors import CapabilityError, CheckpointError
from qmamba.images import Decoded
from qmamba.images.measures import Reasons, reasons_in
from qmamba.scoring.faults import Fault, FaultProbe, embedded_probe, stage_statistics
from qmamba.scoring.pipeline import pixel_limit
from qmamba.scoring.quality_map import QualityMap, mappable
from qmamba.scoring.stream import senseless

if TYPE_CHECKING:
    from qmamba.scoring.scorer import Scorer

THIRDS = (0.0, 1 / 3, 2 / 3, 1.0)
REGIONS: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "left third": ((0, 3), (0, 1)),
    "right third": ((0, 3), (2, 3)),
    "upper third": ((0, 1), (0, 3)),
    "lower third": ((2, 3), (0, 3)),
    "centre": ((1, 2), (1, 2)),
}
"""Regions of an image by name: their first and last rows, and columns, in thirds; the last is left out."""


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What is known about an image's score.

    Attributes:
        score: as `Scorer.score` returns it.
        std: standard deviation of the scores of the image's parts, as for `Scorer.score`.
        fault: what the probe recognised; None if it was not sure, or there is no probe.
        worst: region with the least contributions to the score, such as "left third"; None if none stands
            out.
        measured: of the pixels.
        no_probe: why no fault was looked for, in a line; None if it was.
    """

    score: float
    std: float
    fault: Fault | None
    worst: str | None
    measured: Reasons
    no_probe: str | None = None

    def __str__(self) -> str:
        words, *notes = self._told()
        return "; ".join(filter(None, [words, f"score {self.score:.2f} ± {self.std:.2f}", *notes]))

    @property
    def reason(self) -> str:
        """The sentence without the score; empty if there is nothing to tell."""
        return "; ".join(filter(None, self._told()))

    def _told(self) -> list[str]:
        """Return fault and region, then what was measured."""
        fault = "" if self.no_probe is not None else str(self.fault or "no clear fault")
        place = "" if self.worst is None else f"worst in the {self.worst}"
        return [", ".join(filter(None, [fault, place])), *self.measured.notes()]

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, ready for JSON."""
        return dataclasses.asdict(self)


class Explainer:
    """A function that explains decoded images, in any thread.

    Attributes:
        no_probe: why no fault is looked for, in a line; None if faults are.

    Arguments and errors are those of `Scorer.explain`.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        batch_size: int = 32,
        max_pixels: int | None = None,
        probe: FaultProbe | None = None,
    ) -> None:
        self._scorer, self._batch_size = scorer, batch_size
        self._limit = pixel_limit(batch_size, max_pixels)
        sha256 = scorer.base_sha256()
        if probe is not None and probe.weights_sha256 != sha256:
            raise CheckpointError(
                f"the probe must belong to the weights {sha256[:8]}…, got one of "
                f"{probe.weights_sha256[:8]}…; fit one with benchmarks/faults.py"
            )
        self._probe = embedded_probe(sha256) if probe is None else probe
        self.no_probe = None
        if self._probe is None:
            self.no_probe = (
                f"no probe of faults belongs to the weights of {scorer.name} ({sha256[:8]}…), so only what "
                "is measured of the pixels is told"
            )
        self._is_mappable = _is_mappable(scorer)

    def __call__(self, image: Decoded) -> tuple[Explanation, QualityMap | None]:
        """Return the explanation of an image, and its map; None for networks without values of positions.

        Raises:
            ImageError: the image cannot be scored.
        """
        scorer, found = self._scorer, None
        if self._is_mappable:
            found = scorer.quality_map(image, batch_size=self._batch_size, max_pixels=self._limit)
            score, std = found.score, found.std
        else:
            parts = scorer.crop_scores(image, batch_size=self._batch_size, max_pixels=self._limit)
            score, std = parts.mean, parts.std
        if not math.isfinite(score):
            raise senseless(score)
        fault, worst = (None, None) if self._probe is None else self._looked(self._probe, image, found)
        measured = reasons_in(image.pixels, image.height, image.width)
        return Explanation(score, std, fault, worst, measured, self.no_probe), found

    def _looked(
        self, probe: FaultProbe, image: Decoded, found: QualityMap | None
    ) -> tuple[Fault | None, str | None]:
        """Return the fault and the worst region of an image, None where they are not clear."""
        statistics = stage_statistics(
            self._scorer.network, self._scorer.config.preprocessing, image, probe.protocol(), self._limit
        )
        fault = probe.named(probe.probabilities(statistics[None])[0])
        if found is None or probe.worst is None:
            return fault, None
        region, gap = worst_region(found, self._scorer.lower_better)
        return fault, region if gap >= probe.worst else None


def _is_mappable(scorer: Scorer) -> bool:
    try:
        mappable(scorer.network, scorer.config)
    except CapabilityError:
        return False
    return True


def worst_region(found: QualityMap, lower_better: bool = False) -> tuple[str, float]:
    """Return the region whose mean in a map is worst against the rest, and how much worse, in scores.

    Regions that the map does not reach are passed over; without any, the gap is -inf.
    """
    picture = found.coarse() * (-1 if lower_better else 1)
    gaps = {}
    for name, (rows, columns) in REGIONS.items():
        inside = np.zeros(picture.shape, bool)
        edges = [
            slice(*(round(THIRDS[third] * length) for third in thirds))
            for thirds, length in zip((rows, columns), picture.shape, strict=True)
        ]
        inside[tuple(edges)] = True
        seen = ~np.isnan(picture)
        if (inside & seen).any() and (~inside & seen).any():
            gaps[name] = float(picture[~inside & seen].mean() - picture[inside & seen].mean())
    if not gaps:
        return next(iter(REGIONS)), -math.inf
    return max(gaps.items(), key=lambda item: item[1])
