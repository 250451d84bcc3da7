"""What a distortion is, and how a function becomes one."""

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
"""From pixels, one of the five parameters and a generator to new pixels of the same shape."""


@dataclass(frozen=True)
class Distortion:
    """One way to damage an image, at five levels.

    Calling it with pixels (H, W, 3) uint8, a level and a seed gives new pixels of the same shape and type.
    The input is not changed, and neither is the global random state. Equal seeds give equal bits.

    Attributes:
        name: what `qmamba.distort` takes.
        family: "blur", "colour", "compression", "noise", "brightness", "spatial" or "sharpness".
        levels: the parameter at levels 1 (just visible) to 5 (severe).
        parameter: what the parameter is, with its unit.
        degrades: True if it can only make a photograph worse, so that a higher level is a worse image. Of the
            others (a change of brightness, say) some photographs gain.
        random: True if the result depends on the seed.
        summary: what is done, in one sentence.
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
            seed: of what is random; 0 or more.
            scale: what the levels mean: "qmamba" for `levels`, "kadid" or a `KadidScale` for KADID-10k's.

        Raises:
            DistortionError: pixels of another shape or type, a level that is not 1 to 5, a negative seed, an
                unknown scale, or a kind that the scale lacks.
        """
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
            kind = getattr(pixels, "dtype", type(pixels).__name__)
            raise DistortionError(f"{self.name}: takes a numpy array of uint8, not {kind}")
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
            raise DistortionError(f"{self.name}: takes pixels (H, W, 3), not {pixels.shape}")
        pixels = np.ascontiguousarray(pixels)  # Pillow would copy a view for each of its operations
        return find_scale(scale).apply(self, pixels, level, np.random.default_rng(_seed(seed)))


class Scale(Protocol):
    """What the levels 1 to 5 of each distortion mean."""

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
        raise DistortionError(f"the level of a distortion is an integer from 1 to 5, not {level!r}")
    return number


def _seed(seed: int) -> int:
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if number < 0:
        raise DistortionError(f"the seed is an integer, 0 or more, not {seed!r}")
    return number
