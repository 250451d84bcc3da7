"""Four degradations of known order: blur, noise, JPEG, and shrinking followed by enlargement.

Each has five levels, from just visible to severe. A quality model must not prefer a higher level.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from ..errors import ImageError

BLUR_SIGMA = (0.7, 1.2, 2.0, 3.2, 5.0)  # pixels
NOISE_STD = (6.0, 12.0, 20.0, 32.0, 50.0)  # of 255
JPEG_QUALITY = (40, 25, 15, 9, 5)  # Pillow's scale
SHRINK_FACTOR = (1.5, 2.0, 3.0, 4.0, 6.0)


def _blur(image: Image.Image, level: int, generator: torch.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(BLUR_SIGMA[level - 1]))


def _noise(image: Image.Image, level: int, generator: torch.Generator) -> Image.Image:
    pixels = torch.from_numpy(np.asarray(image).copy()).float()
    noise = torch.randn(pixels.shape, generator=generator) * NOISE_STD[level - 1]
    return Image.fromarray((pixels + noise).round().clamp(0, 255).byte().numpy())


def _jpeg(image: Image.Image, level: int, generator: torch.Generator) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY[level - 1])
    return Image.open(buffer).convert("RGB")


def _shrink(image: Image.Image, level: int, generator: torch.Generator) -> Image.Image:
    factor = SHRINK_FACTOR[level - 1]
    small = (max(1, round(image.width / factor)), max(1, round(image.height / factor)))
    return image.resize(small, Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)


DEGRADATIONS: dict[str, Callable[[Image.Image, int, torch.Generator], Image.Image]] = {
    "blur": _blur,
    "noise": _noise,
    "jpeg": _jpeg,
    "shrink": _shrink,
}


def degrade(image: Tensor, kind: str, level: int, *, seed: int = 0) -> Tensor:
    """A degraded copy of an image.

    Args:
        image: (3, H, W) uint8.
        kind: "blur", "noise", "jpeg" or "shrink".
        level: 1 (just visible) to 5 (severe).
        seed: of the noise; the global random state is not used.

    Returns:
        (3, H, W) uint8.

    Raises:
        ImageError: another dtype or shape, an unknown kind, or a level out of range.

    >>> flat = torch.full((3, 32, 32), 128, dtype=torch.uint8)
    >>> torch.equal(degrade(flat, "blur", 5), flat), torch.equal(degrade(flat, "noise", 1), flat)
    (True, False)
    """
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ImageError(f"degrade takes a uint8 image (3, H, W), not {image.dtype} {tuple(image.shape)}")
    if kind not in DEGRADATIONS:
        raise ImageError(f"unknown degradation {kind!r}: choose one of {', '.join(DEGRADATIONS)}")
    if not 1 <= level <= 5:
        raise ImageError(f"the level of a degradation is 1 to 5, not {level}")
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    degraded = DEGRADATIONS[kind](picture, level, torch.Generator().manual_seed(seed))
    return torch.from_numpy(np.asarray(degraded).copy()).permute(2, 0, 1).contiguous().to(image.device)
