"""KADID-10k's levels as a second scale, with the mean human rating of each kind and level.

The table kadid.csv holds, for each kind but `denoise` at five levels, the parameter that the data set's
generator uses and the mean and standard deviation over its 81 photographs of the published ratings (H. Lin,
V. Hosu and D. Saupe, "KADID-10k: A Large-scale Artificially Distorted IQA Database", QoMEX 2019). It has no
`denoise`, which needs the learned denoiser. Levels are not always ordered by severity.
"""

from __future__ import annotations

import csv
import functools
import math
from dataclasses import dataclass
from importlib import resources
from typing import NamedTuple

import numpy as np

from qmamba.data.distortions._base import SCALES, Distortion, Pixels
from qmamba.data.distortions._kadid_operations import OPERATIONS
from qmamba.errors import DistortionError

__all__ = ["KADID_KINDS", "KadidQuality", "KadidScale", "kadid_parameter", "kadid_quality"]

KADID_KINDS = tuple(OPERATIONS)
"""The 24 kinds that have levels on KADID-10k's scale."""

_LONGER_SIDE = 512  # of KADID-10k's photographs, 512×384
# Kinds whose parameter steps by a constant amount, or changes sign; the others step by a factor.
_LINEAR = {"colour_saturation_hsv", "mean_shift", "non_eccentricity_patch", "colour_block", "contrast_change"}


class KadidQuality(NamedTuple):
    """How people rated one kind at one level.

    Attributes:
        mean: mean rating (DMOS) over 81 photographs, 1 (bad) to 5 (excellent).
        std: standard deviation of the photographs' ratings.
    """

    mean: float
    std: float


class _Row(NamedTuple):
    parameter: float
    mean: float
    std: float


@dataclass(frozen=True)
class KadidScale:
    """KADID-10k's levels, integers or floats from 1 to 5, for `DISTORTIONS[name](..., scale=...)`.

    The name "kadid" stands for `KadidScale()`.

    Attributes:
        reference_side: the longer side, in pixels, of the whole photograph. Lengths in pixels are meant for
            512×384 and scaled by `reference_side` / 512. None leaves them as they are.
        stretch: map the least and the greatest value of the image to 0 and 255 before the distortion, and
            those of the result after it, as the generator does. False suits crops, whose values span only
            a part of the photograph's.
    """

    reference_side: float | None = None
    stretch: bool = True

    def __post_init__(self) -> None:
        side = self.reference_side
        if side is not None and not (math.isfinite(side) and side > 0):
            raise DistortionError(f"reference_side must be positive, got {side}; give pixels or None")

    def covers(self, distortion: Distortion) -> bool:
        """Return True if the distortion is among `KADID_KINDS`."""
        return distortion.name in KADID_KINDS

    def parameter(self, distortion: Distortion, level: float) -> float:
        """Return the generator's parameter at a level; see `kadid_parameter`."""
        return kadid_parameter(distortion.name, level)

    def apply(self, distortion: Distortion, pixels: Pixels, level: float, rng: np.random.Generator) -> Pixels:
        """Return pixels (H, W, 3) uint8, distorted at a level of KADID-10k's.

        Raises:
            DistortionError: a kind that is not among `KADID_KINDS`, a level that is not 1 to 5.
        """
        parameter = self.parameter(distortion, level)
        zoom = 1.0 if self.reference_side is None else self.reference_side / _LONGER_SIDE
        operation = OPERATIONS[distortion.name]
        if not self.stretch:
            return operation(pixels, parameter, rng, zoom)
        return stretch_values(operation(stretch_values(pixels), parameter, rng, zoom))


SCALES["kadid"] = KadidScale()


def stretch_values(pixels: Pixels) -> Pixels:
    """Map the least value of all three channels to 0 and the greatest to 255; a flat image stays as it is.

    >>> stretch_values(np.array([[[50, 100, 150]]], np.uint8)).tolist()
    [[[0, 128, 255]]]
    """
    least, greatest = int(pixels.min()), int(pixels.max())
    if least == greatest:
        least, greatest = 0, 255
    span = greatest - least
    table = (np.clip(np.arange(256) - least, 0, span) * 255 + span // 2) // span
    stretched: Pixels = np.take(table.astype(np.uint8), pixels)
    return stretched


def kadid_parameter(name: str, level: float) -> float:
    """Return the parameter of KADID-10k's generator at a level, interpolated between integer levels.

    Args:
        name: one of `KADID_KINDS`.
        level: 1 to 5.

    Raises:
        DistortionError: a name that is not among `KADID_KINDS`, a level that is not 1 to 5.

    >>> kadid_parameter("gaussian_blur", 5)
    5.0
    >>> round(kadid_parameter("gaussian_blur", 3.5), 3)
    1.414
    """
    low, high, share = _between(name, level)
    if name in _LINEAR or share == 0:
        return low.parameter + share * (high.parameter - low.parameter)
    return float(low.parameter * (high.parameter / low.parameter) ** share)


def kadid_quality(name: str, level: float) -> KadidQuality:
    """Return the mean rating of a kind at a level, and its standard deviation over photographs.

    Between integer levels both are interpolated linearly. The ratings are for good photographs at 512×384; an
    undistorted one gets about 4.6.

    Args:
        name: one of `KADID_KINDS`.
        level: 1 to 5.

    Raises:
        DistortionError: a name that is not among `KADID_KINDS`, a level that is not 1 to 5.

    >>> kadid_quality("jpeg", 5)
    KadidQuality(mean=1.35, std=0.181)
    """
    low, high, share = _between(name, level)
    return KadidQuality(low.mean + share * (high.mean - low.mean), low.std + share * (high.std - low.std))


@functools.cache
def _table() -> dict[str, tuple[_Row, ...]]:
    """Return the rows of levels 1 to 5 of each kind."""
    text = resources.files("qmamba.data.distortions").joinpath("kadid.csv").read_text(encoding="utf-8")
    rows = sorted(csv.DictReader(text.splitlines()), key=lambda row: int(row["level"]))
    return {
        name: tuple(
            _Row(float(row["parameter"]), float(row["mean_dmos"]), float(row["sd"]))
            for row in rows
            if row["kind"] == name
        )
        for name in KADID_KINDS
    }


def _between(name: str, level: float) -> tuple[_Row, _Row, float]:
    """Return the rows of the levels below and above, and the share of the way from one to the other."""
    if name not in _table():
        reason = "it needs a learned denoiser" if name == "denoise" else f"names: {', '.join(KADID_KINDS)}"
        raise DistortionError(f"the scale 'kadid' has no {name!r}; {reason}")
    try:
        number = math.nan if isinstance(level, (bool, str)) else float(level)
    except (TypeError, ValueError):
        number = math.nan
    if not 1 <= number <= 5:
        raise DistortionError(f"the level must be a number from 1 to 5 on the scale 'kadid', got {level!r}")
    below = min(int(number), 4)
    return _table()[name][below - 1], _table()[name][below], number - below
