"""Distortions, each at five levels from just visible to severe.

The kinds are those of the data set KADID-10k. The levels of the default scale "qmamba" are this package's;
those of the scale "kadid" are KADID-10k's, each with its mean human rating.

`qmamba.distort` takes images of any kind; the distortions here take NumPy arrays:

>>> import numpy as np
>>> grey = np.full((8, 8, 3), 128, np.uint8)
>>> DISTORTIONS["mean_shift"](grey, level=1)[0, 0].tolist()
[140, 140, 140]
>>> DISTORTIONS["jpeg"].levels
(40, 25, 15, 9, 5)
>>> DISTORTIONS["mean_shift"](grey, level=1.5, scale="kadid")[0, 0].tolist()
[145, 145, 145]
>>> kadid_quality("mean_shift", level=1)
KadidQuality(mean=4.218, std=0.295)

To add one, write a function in the module of its family and decorate it with `distortion`.
"""

from __future__ import annotations

from qmamba.data.distortions import blur, brightness, codecs, colour, noise, sharpness, spatial
from qmamba.data.distortions._base import SCALES, Distortion, Pixels, Scale, find_scale
from qmamba.data.distortions.kadid import KADID_KINDS, KadidScale, kadid_parameter, kadid_quality
from qmamba.errors import DistortionError, near_names

__all__ = [
    "DISTORTIONS",
    "KADID_KINDS",
    "SCALES",
    "Distortion",
    "KadidScale",
    "Pixels",
    "Scale",
    "find",
    "find_scale",
    "kadid_parameter",
    "kadid_quality",
]

DISTORTIONS: dict[str, Distortion] = {
    entry.name: entry
    for module in (blur, colour, codecs, noise, brightness, spatial, sharpness)
    for entry in vars(module).values()
    if isinstance(entry, Distortion)
}
"""All distortions by name, family by family."""


def find(name: str) -> Distortion:
    """Return a distortion by name.

    Raises:
        DistortionError: no distortion has this name; the message lists near names.

    >>> find("gaussian_blur").parameter
    'sigma of the Gaussian, in pixels'
    >>> find("color_shift")
    Traceback (most recent call last):
    qmamba.errors.DistortionError: no distortion is named 'color_shift'; near names: colour_shift
    """
    if not isinstance(name, str) or name not in DISTORTIONS:
        wanted = str(name).lower().replace("color", "colour")
        raise DistortionError(f"no distortion is named {name!r}; {near_names(wanted, DISTORTIONS)}")
    return DISTORTIONS[name]
