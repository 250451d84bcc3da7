"""Compression by real codecs: JPEG and JPEG 2000."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, features

from qmamba.data.distortions._base import Pixels, distortion
from qmamba.errors import DistortionError

_J2K_OVERHEAD = 130  # header bytes of a JPEG 2000 codestream


@distortion("compression", (40, 25, 15, 9, 5), "quality, on Pillow's scale of 1 to 95", degrades=True)
def jpeg(pixels: Pixels, quality: float, rng: np.random.Generator) -> Pixels:
    """Compress as JPEG, with half the resolution for colour."""
    return _through(pixels, "JPEG", quality=int(quality), subsampling="4:2:0")


@distortion(
    "compression", (20, 40, 75, 130, 220), "compression ratio: bytes of pixels per byte", degrades=True
)
def jpeg2000(pixels: Pixels, ratio: float, rng: np.random.Generator) -> Pixels:
    """Compress as JPEG 2000, with the irreversible wavelet."""
    if not features.check_codec("jpg_2000"):
        raise DistortionError("jpeg2000: this Pillow was built without OpenJPEG; install Pillow from PyPI")
    # The codec counts the header as data, which would leave nothing for a small crop.
    ratio = pixels.size / (pixels.size / ratio + _J2K_OVERHEAD)
    return _through(
        pixels, "JPEG2000", quality_mode="rates", quality_layers=[ratio], irreversible=True, no_jp2=True
    )


def _through(pixels: Pixels, codec: str, **options: Any) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, codec, **options)
    buffer.seek(0)
    with Image.open(buffer, formats=(codec,)) as image:
        return np.array(image.convert("RGB"))
