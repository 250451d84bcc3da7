"""What a distortion is, and how a function becomes one."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

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

    def __call__(self, pixels: Pixels, level: int, *, seed: int = 0) -> Pixels:
        """New pixels (H, W, 3) uint8; see the class.

        Raises:
            DistortionError: pixels of another shape or type, a level that is not 1 to 5, a negative seed.
        """
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
            kind = getattr(pixels, "dtype", type(pixels).__name__)
            raise DistortionError(f"{self.name}: takes a numpy array of uint8, not {kind}")
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
            raise DistortionError(f"{self.name}: takes pixels (H, W, 3), not {pixels.shape}")
        parameter = self.levels[_level(level) - 1]
        pixels = np.ascontiguousarray(pixels)  # Pillow would copy a view for each of its operations
        return self.function(pixels, parameter, np.random.default_rng(_seed(seed)))


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


def _level(level: int) -> int:
    try:
        number = operator.index(level)
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
