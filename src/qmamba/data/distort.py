"""`qmamba.distort`: images of any kind in, damaged images of the same kind out.

The distortions themselves are in `qmamba.data.distortions`, which is imported when the first one is wanted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
import torch
from PIL import Image

from qmamba.images import ImageInput, decode

if TYPE_CHECKING:
    from qmamba.data.distortions import Pixels

_Kept = TypeVar("_Kept", np.ndarray, torch.Tensor)


@overload
def distort(image: _Kept, name: str, level: int, *, seed: int = 0) -> _Kept: ...


@overload
def distort(image: ImageInput, name: str, level: int, *, seed: int = 0) -> Any: ...


def distort(image: ImageInput, name: str, level: int, *, seed: int = 0) -> Any:
    """A damaged copy of an image, of the same size.

    Args:
        image: one image, of any kind that `qmamba.score` takes. Images of 16 bits and floats are rounded to
            8 bits first.
        name: of the distortion; `list_distortions` has them, docs/distortions.md describes them.
        level: 1 (just visible) to 5 (severe).
        seed: of what is random; 0 or more. With the same seed, the levels of a distortion share their random
            draws. The global random state is not used.

    Returns:
        For a numpy array, a numpy array (H, W, 3) uint8. For a tensor, a tensor (3, H, W) uint8 on its
        device. For everything else, a Pillow image in mode RGB. Equal arguments give equal bits.

    Raises:
        DistortionError: an unknown name, or a level or seed out of range.
        ImageError: what cannot be decoded; `MissingImageError` for a path that names no file.

    Examples:
        >>> distort(Image.new("L", (60, 40), 128), "pixelate", level=3)  # doctest: +ELLIPSIS
        <PIL.Image.Image image mode=RGB size=60x40 at 0x...>
        >>> distort(np.full((2, 2, 3), 100, np.uint8), "mean_shift", level=1)[0, 0].tolist()
        [112, 112, 112]
        >>> distort(torch.rand(1, 40, 60), "white_noise", 5, seed=1).shape
        torch.Size([3, 40, 60])
        >>> distort("photo.jpg", "color_noise", 1)
        Traceback (most recent call last):
        qmamba.errors.DistortionError: no distortion is called 'color_noise'; near names: colour_noise
    """
    from qmamba.data.distortions import find

    pixels = find(name)(to_pixels(image), level, seed=seed)
    if isinstance(image, torch.Tensor):
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().to(image.device)
    return pixels if isinstance(image, np.ndarray) else Image.fromarray(pixels)


def to_pixels(image: ImageInput) -> Pixels:
    """(H, W, 3) uint8 of an image of any kind, rounded where it has more than 8 bits.

    >>> to_pixels(np.full((1, 2), 0.5, np.float32)).tolist()
    [[[128, 128, 128], [128, 128, 128]]]
    """
    planes = decode(image)
    if planes.dtype != torch.uint8:
        planes = (planes * 255).round().to(torch.uint8)
    return planes.permute(1, 2, 0).contiguous().cpu().numpy()


def list_distortions() -> list[str]:
    """The names that `distort` takes, family by family: blur, colour, compression, noise, and so on.

    `qmamba.data.DISTORTIONS` has the parameters and all else that is known of each.

    >>> list_distortions()[:3]
    ['gaussian_blur', 'lens_blur', 'motion_blur']
    """
    from qmamba.data.distortions import DISTORTIONS

    return list(DISTORTIONS)
