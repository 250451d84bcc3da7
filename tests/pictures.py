"""Small pictures for tests of decoding, and a check that errors are one line."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qmamba.errors import ImageError
from qmamba.images import decode


def photo(height: int = 24, width: int = 36, seed: int = 0) -> np.ndarray:
    """A small RGB picture with smooth colours and no symmetry."""
    rng = np.random.default_rng(seed)
    return np.asarray(Image.fromarray(rng.integers(0, 256, (4, 6, 3), np.uint8)).resize((width, height)))


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow cannot write {kind}")
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def planes(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def message(image: Any, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        decode(image, **options)
    text = str(caught.value)
    assert "\n" not in text and text.strip(), text
    return text
