"""Images: decode any kind of input to a tensor (3, H, W), and find image files in folders."""

from __future__ import annotations

from .decoding import (
    MAX_PIXELS,
    Decoded,
    ImageInput,
    as_bytes,
    as_list,
    decode,
    decode_for,
    iterate,
    label,
    printable,
    thumbnail,
)

__all__ = [
    "MAX_PIXELS",
    "Decoded",
    "ImageInput",
    "as_bytes",
    "as_list",
    "decode",
    "decode_for",
    "iterate",
    "label",
    "printable",
    "thumbnail",
]
