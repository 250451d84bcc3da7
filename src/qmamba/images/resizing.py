"""Resize an image to the size of a view, and turn its pixels into floats."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from qmamba.images.decoding import MAX_PIXELS
from qmamba.images.pillow import check_size

_BAND = 64  # rows of an image that are converted to floats at a time


def unit(pixels: torch.Tensor) -> torch.Tensor:
    """Return pixels as float32 in [0, 1]: uint8 is divided by 255, floats keep their values."""
    return pixels.to(torch.float32) / 255 if pixels.dtype == torch.uint8 else pixels.to(torch.float32)


def resize(
    image: torch.Tensor, height: int, width: int, *, max_pixels: int = MAX_PIXELS, name: str = "image"
) -> torch.Tensor:
    """Resize an image; bilinear, with antialiasing where it shrinks.

    Args:
        image: (…, H, W), uint8, or float in [0, 1].
        height, width: of the result.
        max_pixels: maximum height × width of an enlarged image.
        name: what an error calls the image.

    Returns:
        The image itself when it has that size, and otherwise a float32 copy in [0, 1], differentiable to a
        float input.

    Raises:
        ImageError: the enlarged image would exceed `max_pixels`.
    """
    given = int(image.shape[-2]), int(image.shape[-1])
    if given == (height, width):
        return image
    if height > given[0] or width > given[1]:
        check_size(given[0], given[1], max_pixels, name)
        check_size(height, width, max_pixels, f"{name}: {given[0]} × {given[1]}, enlarged for its crops")
    shrinks = height < given[0] or width < given[1]
    if shrinks and image.dtype == torch.uint8 and image.device.type == "cpu":
        planes = _narrowed(image.reshape(-1, *given), width)[None]
    else:
        planes = unit(image).reshape(1, -1, *given)
    return _interpolated(planes, height, width).reshape(*image.shape[:-2], height, width)


def _interpolated(planes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    # The filter of antialiasing is bilinear interpolation where an image grows. Without it torch has two ways
    # to compute that on a CPU, and takes one of them according to its number of threads.
    return F.interpolate(planes, size=(height, width), mode="bilinear", align_corners=False, antialias=True)


def _narrowed(pixels: torch.Tensor, width: int) -> torch.Tensor:
    """Return (C, H, width) float32 in [0, 1] of (C, H, W) uint8, the first of the two passes of resizing.

    The same bits as for the whole image at once, whose passes go over columns and then over rows, without a
    float image of its size: a quarter of the time at twelve megapixels.
    """
    channels, height, _ = pixels.shape
    narrow = torch.empty(channels, height, width, dtype=torch.float32, device="cpu")
    for top in range(0, height, _BAND):
        rows = unit(pixels[:, top : top + _BAND])[None]
        narrow[:, top : top + _BAND] = _interpolated(rows, rows.shape[-2], width)[0]
    return narrow
