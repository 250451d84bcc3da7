"""Formats that Pillow cannot read, or misreads: raw camera files, HEIC, JPEG XL, deep JPEG 2000.

Pillow plugins read HEIC and JPEG XL if installed (the extra `heif`). A plugin is imported on first use.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import IO, Any

from PIL import Image

from qmamba.errors import ImageError

RAW_SIGNS = (
    b"FUJIFILMCCD-RAW",  # RAF
    b"IIRO", b"IIRS", b"MMOR",  # Olympus, OM System: ORF
    b"IIU\0",  # Panasonic: RW2
    b"FOVb",  # Sigma: X3F
    b"\0MRM",  # Minolta: MRW
    b"II\x1a\0\0\0HEAPCCDR",  # Canon: CRW
)  # fmt: skip
_HEIC_BRANDS = frozenset(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"mif2", b"msf1")
)
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
_JXL_STREAM, _JXL_BOX = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"
_JXL_RATIOS = (None, (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width to height
_HEAD = 1 << 12  # bytes of a codestream's beginning


def is_raw_camera_file(head: bytes) -> bool:
    """Return whether a file with this head is a raw camera file. For those in TIFF see `tiff.find_layout`."""
    return head.startswith(RAW_SIGNS) or head[4:12] == b"ftypcrx "  # Canon's third format


def is_jxl(head: bytes) -> bool:
    """Return whether a file with this head is JPEG XL."""
    return head.startswith((_JXL_STREAM, _JXL_BOX))


def is_heic(head: bytes) -> bool:
    """Return whether a file with this head is HEIF with pictures in HEVC, as far as its first brand tells."""
    return head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS


def open_heic(stream: IO[bytes], name: str) -> Image.Image:
    """Open HEIC with pillow-heif; its header only is read."""
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise ImageError(
            f'{name}: HEIC needs pillow-heif; pip install "qmamba[heif]", or save it as JPEG'
        ) from error
    stream.seek(0)
    open_stream: Any = HeifImageFile  # untyped
    image: Image.Image = open_stream(stream, "")
    return image


def jxl_size(stream: IO[bytes]) -> tuple[int, int]:
    """Return height and width of a JPEG XL file from its header; ValueError where there is none.

    The plugin decodes a file as it opens it, so the size has to be known before. The header is that of
    ISO/IEC 18181-1, SizeHeader.
    """
    data = next(_codestreams(stream, _JXL_BOX, (b"jxlc", b"jxlp")), b"")
    start = data.find(_JXL_STREAM)  # a partial codestream has its number before it
    if start not in (0, 4) or len(data) < start + 12:
        raise ValueError("no codestream")
    bits = int.from_bytes(data[start + 2 : start + 12], "little")

    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    is_small = take(1)

    def length() -> int:
        return 8 * (take(5) + 1) if is_small else take((9, 13, 18, 30)[take(2)]) + 1

    height = length()
    ratio = _JXL_RATIOS[take(3)]
    return height, length() if ratio is None else height * ratio[0] // ratio[1]


def open_jxl(stream: IO[bytes], name: str) -> Image.Image:
    """Open JPEG XL with pillow-jxl-plugin, which decodes it at once."""
    try:
        from pillow_jxl.JpegXLImagePlugin import JXLImageFile
    except ImportError as error:
        raise ImageError(
            f'{name}: JPEG XL needs pillow-jxl-plugin; pip install "qmamba[heif]", or save it as JPEG'
        ) from error
    stream.seek(0)
    image: Image.Image = JXLImageFile(stream, "")
    if not getattr(image, "jpeg", False):  # decoded upright: the flag is for what was a JPEG file only
        image.info.pop("exif", None)
    return image


def jpeg2000_depth(stream: IO[bytes]) -> int:
    """Return the bits of the deepest sample of a JPEG 2000 image in colour; 0 for grey, or if none is found.

    Pillow rounds samples of more than 8 bits without a limit, so that white, at 256, becomes black. The
    header is that of ISO/IEC 15444-1, A.5.1.
    """
    data = next(_codestreams(stream, b"\0\0\0\x0cjP  \r\n\x87\n", (b"jp2c",)), b"")
    if data[:4] != b"\xff\x4f\xff\x51" or len(data) < 42:
        return 0
    (count,) = struct.unpack(">H", data[40:42])
    depths = [(byte & 127) + 1 for byte in data[42 : 42 + 3 * count : 3]]
    return max(depths, default=0) if count > 1 else 0


def _codestreams(stream: IO[bytes], signature: bytes, kinds: tuple[bytes, ...]) -> Iterator[bytes]:
    """Yield the beginnings of a file's codestreams: of the file itself, or of its boxes of these kinds."""
    stream.seek(0)
    head = stream.read(_HEAD)
    if not head.startswith(signature):
        yield head
        return
    position = 0
    for _ in range(64):
        stream.seek(position)
        box = stream.read(16)
        if len(box) < 8:
            return
        size, kind, start = int.from_bytes(box[:4], "big"), box[4:8], 8
        if size == 1:
            size, start = int.from_bytes(box[8:16], "big"), 16
        if kind in kinds:
            stream.seek(position + start)
            yield stream.read(_HEAD)
        if size < start:  # 0: to the end of the file
            return
        position += size


def advice(head: bytes) -> str:
    """Return advice for a file with this head that no reader accepts."""
    if head[4:8] == b"ftyp" and head[8:12] in _AVIF_BRANDS and "AVIF" not in Image.OPEN:
        return "AVIF needs Pillow 11.3 or newer; upgrade Pillow, or save it as JPEG or PNG"
    return "not an image, or in an unsupported format; save it as JPEG or PNG"
