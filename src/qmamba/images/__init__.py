"""Images: from whatever a user calls an image to a tensor (3, H, W), and files found in folders."""

from __future__ import annotations

from .decoding import MAX_PIXELS, ImageInput, as_bytes, as_list, decode, iterate, label, printable, thumbnail
from .preprocessing import Preprocessing

__all__ = [
    "MAX_PIXELS",
    "ImageInput",
    "Preprocessing",
    "as_bytes",
    "as_list",
    "decode",
    "iterate",
    "label",
    "printable",
    "thumbnail",
]
