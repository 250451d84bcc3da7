"""`qmamba.distort`: distort an image of any kind, and return the same kind.

The distortions are in `qmamba.data.distortions`, which is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
import torch
from PIL import Image

from qmamba.images import ImageInput, decode

if TYPE_CHECKING:
    from qmamba.data.distortions import Pixels, Scale

_Kept = TypeVar("_Kept", np.ndarray, torch.Tensor)


@overload
def distort(
    image: _Kept, name: str, level: float, *, seed: int = 0, scale: str | Scale = "qmamba"
) -> _Kept: ...


@overload
def distort(
    image: ImageInput, name: str, level: float, *, seed: int = 0, scale: str | Scale = "qmamba"
) -> Any: ...


def distort(
    image: ImageInput, name: str, level: float, *, seed: int = 0, scale: str | Scale = "qmamba"
) -> Any:
    """Return a distorted copy of an image, of the same size.

    Args:
        image: one image, of any kind that `qmamba.score` takes. 16-bit and float images are rounded to 8 bits
            first.
        name: name of the distortion; see `list_distortions` and docs/distortions.md.
        level: severity from 1 (just visible) to 5 (severe): an integer, or on the scale "kadid" also a float.
        seed: random seed, at least 0. With the same seed, the levels of a distortion share their random
            draws. The global random state is not used.
        scale: scale of the levels: "qmamba" for the package's own, "kadid" or a `qmamba.data.KadidScale` for
            those of the data set KADID-10k, which are not always ordered by severity.

    Returns:
        A NumPy array (H, W, 3) uint8 for an array, a tensor (3, H, W) uint8 on the same device for a tensor,
        and a Pillow image in mode RGB for other inputs. Equal arguments give equal bits.

    Raises:
        DistortionError: an unknown name or scale, a level or seed out of range, or `denoise` on the scale
            "kadid".
        ImageError: the image cannot be decoded; `MissingImageError` if its file does not exist.

    Examples:
        >>> distort(Image.new("L", (60, 40), 128), "pixelate", level=3)  # doctest: +ELLIPSIS
        <PIL.Image.Image image mode=RGB size=60x40 at 0x...>
        >>> distort(np.full((2, 2, 3), 100, np.uint8), "mean_shift", level=1)[0, 0].tolist()
        [112, 112, 112]
        >>> distort(torch.rand(1, 40, 60), "white_noise", 5, seed=1).shape
        torch.Size([3, 40, 60])
        >>> distort("photo.jpg", "color_noise", 1)
        Traceback (most recent call last):
        qmamba.errors.DistortionError: no distortion is named 'color_noise'; near names: colour_noise
    """
    from qmamba.data.distortions import find

    pixels = find(name)(to_pixels(image), level, seed=seed, scale=scale)
    if isinstance(image, torch.Tensor):
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().to(image.device)
    return pixels if isinstance(image, np.ndarray) else Image.fromarray(pixels)


def to_pixels(image: ImageInput) -> Pixels:
    """Return an image of any kind as (H, W, 3) uint8, rounded if it has more than 8 bits.

    >>> to_pixels(np.full((1, 2), 0.5, np.float32)).tolist()
    [[[128, 128, 128], [128, 128, 128]]]
    """
    planes = decode(image)
    if planes.dtype != torch.uint8:
        planes = (planes * 255).round().to(torch.uint8)
    return planes.permute(1, 2, 0).contiguous().cpu().numpy()


def list_distortions() -> list[str]:
    """Return the names of the distortions, grouped by family: blur, colour, compression, noise, and so on.

    `qmamba.data.DISTORTIONS` has their parameters and descriptions.

    >>> list_distortions()[:3]
    ['gaussian_blur', 'lens_blur', 'motion_blur']
    """
    from qmamba.data.distortions import DISTORTIONS

    return list(DISTORTIONS)
