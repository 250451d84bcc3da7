"""Define distortions, their scales, and the decorator that registers functions."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np

from qmamba.errors import DistortionError

Pixels: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
"""(H, W, 3) uint8 RGB, H and W at least 1."""

Floats: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
"""float32 of any shape."""

Function: TypeAlias = Callable[[Pixels, Any, np.random.Generator], Pixels]
"""Function (pixels, parameter, generator) → new pixels of the same shape."""


@dataclass(frozen=True)
class Distortion:
    """A distortion at five levels.

    Calling it with pixels (H, W, 3) uint8, a level and a seed gives new pixels of the same shape and type.
    The input is not changed, and neither is the global random state. Equal seeds give equal bits.

    Attributes:
        name: name for `qmamba.distort`.
        family: "blur", "colour", "compression", "noise", "brightness", "spatial" or "sharpness".
        levels: the parameter at levels 1 (just visible) to 5 (severe).
        parameter: description of the parameter, with its unit.
        degrades: True if a higher level always means lower quality. Other distortions, such as changes of
            brightness, can improve a photograph.
        random: True if the result depends on the seed.
        summary: description in one sentence.
    """

    name: str
    family: str
    levels: tuple[float, float, float, float, float]
    parameter: str
    degrades: bool
    random: bool
    summary: str
    function: Function = field(repr=False, compare=False)

    def __call__(
        self, pixels: Pixels, level: float, *, seed: int = 0, scale: str | Scale = "qmamba"
    ) -> Pixels:
        """Return distorted pixels (H, W, 3) uint8.

        Args:
            pixels: (H, W, 3) uint8 RGB.
            level: 1 to 5; an integer, or a float on a scale that interpolates.
            seed: random seed, at least 0.
            scale: scale of the levels: "qmamba" for `levels`, "kadid" or a `KadidScale` for KADID-10k's.

        Raises:
            DistortionError: pixels of another shape or dtype, a level outside 1 to 5, a negative seed, an
                unknown scale, or a distortion that the scale lacks.
        """
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
            kind = getattr(pixels, "dtype", type(pixels).__name__)
            raise DistortionError(f"{self.name}: pixels must be a NumPy array of uint8, got {kind}")
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
            raise DistortionError(f"{self.name}: pixels must have shape (H, W, 3), got {pixels.shape}")
        pixels = np.ascontiguousarray(pixels)  # Pillow would copy a view for each of its operations
        return find_scale(scale).apply(self, pixels, level, np.random.default_rng(_seed(seed)))


class Scale(Protocol):
    """Meaning of the levels 1 to 5 of each distortion."""

    def covers(self, distortion: Distortion) -> bool:
        """Return True if the distortion has levels on this scale."""

    def parameter(self, distortion: Distortion, level: float) -> float:
        """Return the parameter at a level, or raise `DistortionError` where there is none."""

    def apply(self, distortion: Distortion, pixels: Pixels, level: float, rng: np.random.Generator) -> Pixels:
        """Return pixels (H, W, 3) uint8, distorted at a level; the input is contiguous and not changed."""


@dataclass(frozen=True)
class OwnScale:
    """The scale of `Distortion.levels`: five integer levels."""

    def covers(self, distortion: Distortion) -> bool:
        """Return True: every distortion has these levels."""
        return True

    def parameter(self, distortion: Distortion, level: float) -> float:
        """Return the parameter of an integer level."""
        return distortion.levels[_level(level) - 1]

    def apply(self, distortion: Distortion, pixels: Pixels, level: float, rng: np.random.Generator) -> Pixels:
        """Return pixels (H, W, 3) uint8, distorted at an integer level."""
        return distortion.function(pixels, self.parameter(distortion, level), rng)


SCALES: dict[str, Scale] = {"qmamba": OwnScale()}
"""The scales by name."""


def find_scale(scale: str | Scale) -> Scale:
    """Return the scale of a name, or the given scale itself.

    Raises:
        DistortionError: no scale has this name.
    """
    if not isinstance(scale, str):
        if not hasattr(scale, "apply"):
            raise DistortionError(
                f"scale must be a name or a scale, got {scale!r}; names: {', '.join(SCALES)}"
            )
        return scale
    if scale not in SCALES:
        raise DistortionError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    return SCALES[scale]


def distortion(
    family: str,
    levels: tuple[float, float, float, float, float],
    parameter: str,
    *,
    degrades: bool = False,
    random: bool = False,
) -> Callable[[Function], Distortion]:
    """Decorate a function (pixels, parameter, generator) → pixels; its name and first line are used."""

    def wrap(function: Function) -> Distortion:
        name = getattr(function, "__name__", "")
        summary = (function.__doc__ or "").strip().partition("\n")[0].rstrip(".")
        return Distortion(name, family, levels, parameter, degrades, random, summary, function)

    return wrap


def to_bytes(values: Floats) -> Pixels:
    """Round to the nearest integer and clip to 0…255. `values` is used as scratch space.

    >>> to_bytes(np.array([-3.0, 1.4, 1.6, 300.0], np.float32)).tolist()
    [0, 1, 2, 255]
    """
    values += np.float32(0.5)
    return np.clip(values, 0, 255, out=values).astype(np.uint8)


def _level(level: float) -> int:
    try:
        number = operator.index(level)  # type: ignore[arg-type]
    except TypeError:
        number = 0
    if not 1 <= number <= 5 or isinstance(level, bool):
        raise DistortionError(f"level must be an integer from 1 to 5, got {level!r}")
    return number


def _seed(seed: int) -> int:
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if number < 0:
        raise DistortionError(f"seed must be an integer of at least 0, got {seed!r}")
    return number
