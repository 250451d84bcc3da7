"""Find the picture in a TIFF file, describe the layout of its pixels, and choose a reader.

Pillow misreads some layouts: 16-bit planes as 8-bit values, 12-bit grey at a sixteenth of its brightness, and
deep white-is-zero as a negative. So the directory is parsed first: Pillow reads the layouts that it supports,
`tiff_samples` reads others, and the rest are refused with the reason.

Tag numbers and defaults: TIFF 6.0 (Adobe, 1992) and its Technical Notes, DNG 1.4, and the BigTIFF design for
64-bit offsets.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping
from typing import IO, Any, Literal, TypeAlias

import numpy as np

from qmamba.errors import ImageError
from qmamba.images.tiff_fields import Directory, Fields, PillowFields

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, MASK, CMYK, YCBCR, CIELAB, ICCLAB = 0, 1, 2, 3, 4, 5, 6, 8, 9
_COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3, CIELAB: 3, ICCLAB: 3}
_NAMES = {
    WHITE_IS_ZERO: "white-is-zero", BLACK_IS_ZERO: "black-is-zero", RGB: "RGB", PALETTE: "palette",
    MASK: "transparency mask", CMYK: "CMYK", YCBCR: "YCbCr", CIELAB: "CIE Lab", ICCLAB: "ICC Lab",
    10: "ITU Lab", 32844: "LogL", 32845: "LogLuv",
}  # fmt: skip
_MOSAICS = (32803, 34892)  # DNG: colour filter array; linear raw
_RAW_CODECS = (32767, 32769, 32770, 32867, 34713, 65000, 65535)  # Sony, Epson, Samsung, Kodak, Nikon, Pentax

UNCOMPRESSED, LZW, JPEG = 1, 5, 7
_FAX, _OLD_JPEG = (2, 3, 4), 6
LOSSLESS = (UNCOMPRESSED, LZW, 8, 32946, 32773, 34925, 50000)  # deflate twice, PackBits, LZMA, Zstandard
_PREDICTED = tuple(number for number in LOSSLESS if number not in (UNCOMPRESSED, 32773))
CODED = (*_FAX, _OLD_JPEG, JPEG)
"""Compressions that define by themselves how pixels are stored."""

EXTRA_SAMPLES, _DNG_VERSION, _SUB_IFDS, _ICC_PROFILE = 338, 50706, 330, 34675
_MAX_DIRECTORIES = 64  # searched for signs of a raw file, or for the picture of a thumbnail
_MAX_BLOCKS = 1 << 16  # strips or tiles; each takes a tenth of a millisecond

Alpha: TypeAlias = Literal["straight", "premultiplied", "undeclared"]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the pixels of an image are stored.

    Attributes:
        order: byte order, "<" or ">".
        height, width: in pixels, as stored.
        photometric: photometric interpretation (tag 262).
        bits, kind: of each sample; "u" for unsigned integers, "f" for floats.
        samples: samples per pixel: colours, then extra samples.
        extra: declared kinds of the extra samples.
        alpha: kind of the first extra sample if it is alpha; "undeclared" for a fourth sample of RGB that no
            field describes.
        is_planar: whether samples are stored in planes instead of interleaved.
        compression, predictor: tag values.
        is_reversed: whether the first pixel of a byte is in its lowest bits.
        is_tiled, rows, columns: whether there are tiles or strips, and their size.
        offsets, lengths: of tiles or strips, plane by plane.
        colour_map: (3, n) uint8 for a palette.
        is_map_short: whether the colour map is written in 8 bits in place of 16.
        subsampling: of the chroma of YCbCr.
        orientation: 1 to 8, as in EXIF.
        profile: ICC profile, or empty.
    """

    order: str
    height: int
    width: int
    photometric: int
    bits: int
    kind: str
    samples: int
    extra: tuple[int, ...]
    alpha: Alpha | None
    is_planar: bool
    compression: int
    predictor: int
    is_reversed: bool
    is_tiled: bool
    rows: int
    columns: int
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    colour_map: np.ndarray | None
    is_map_short: bool
    subsampling: tuple[int, ...]
    orientation: int
    profile: bytes

    @property
    def is_read_by_pillow(self) -> bool:
        """Whether Pillow reads this layout correctly; checked by tests/test_images_tiff.py."""
        if self.compression in CODED or (self.photometric == YCBCR and self.compression != UNCOMPRESSED):
            return True
        if self.is_planar or self.kind != "u" or self.is_reversed or self.bits > 8 or self.is_map_short:
            return False
        if self.photometric == YCBCR:
            return self.bits == 8 and self.subsampling == (1, 1) and not self.extra
        if self.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO, PALETTE) and not self.extra:
            return self.bits in (1, 2, 4, 8) and self.samples == 1
        known: dict[int, tuple[tuple[int, ...], ...]] = {
            BLACK_IS_ZERO: ((2,),), RGB: ((), (0,), (1,), (2,)), PALETTE: ((2,),), CMYK: ((), (0,)),
        }  # fmt: skip
        return self.bits == 8 and self.extra in known.get(self.photometric, ())

    @property
    def is_shown_by_pillow(self) -> bool:
        """Whether pixels loaded by Pillow are correct, at least in 8 bits."""
        if self.is_read_by_pillow:
            return True
        if self.bits == 8 and self.kind == "u" and self.photometric in (RGB, CMYK):
            return True
        if self.is_planar or self.is_reversed:
            return False
        if self.bits == 16 and self.kind == "u":
            return self.photometric in (BLACK_IS_ZERO, RGB, CMYK)
        return self.bits == 32 and self.kind == "f" and self.photometric == BLACK_IS_ZERO


def is_tiff(head: bytes) -> bool:
    """Return whether a file that begins so is a TIFF; as in Pillow, its version may be in the wrong order."""
    return head[:2] in (b"II", b"MM") and head[2:4] in (b"*\0", b"\0*", b"+\0", b"\0+")


def raw_camera_file(name: str) -> ImageError:
    """Return the error for a raw camera file."""
    return ImageError(
        f"{name}: a raw camera file, which holds what the sensor measured and no finished picture; develop "
        "it to JPEG, PNG or TIFF first"
    )


def find_layout(stream: IO[bytes], name: str, offset: int | None = None) -> tuple[Layout, bool]:
    """Find the picture of a file: its first image, or the full image if the first is a thumbnail.

    Args:
        stream: a file that begins as `is_tiff` says.
        name: name of the image in errors.
        offset: offset of a given directory, which skips the search.

    Returns:
        The layout of the picture, and whether Pillow finds it and reads it correctly.

    Raises:
        ImageError: for a raw camera file, a layout that is not read, or a damaged file.
    """
    try:
        stream.seek(0)
        head = stream.read(16)
        order, is_big = "<" if head[:2] == b"II" else ">", 43 in head[2:4]
        start = struct.unpack(order + "Q", head[8:16]) if is_big else struct.unpack(order + "I", head[4:8])
        first = Directory(stream, order, is_big, *start)
        others = _others(stream, order, is_big, first)
        if head[8:10] == b"CR" or _DNG_VERSION in first or _has_raw_data([first, *others]):
            raise raw_camera_file(name)
        if offset is None:
            whole = [each for each in [first, *others] if not each.is_reduced]
            chosen = first if not first.is_reduced or not whole else whole[0]
        else:
            chosen = Directory(stream, order, is_big, offset)
        layout = _layout(chosen, order, name)
    except ImageError:
        raise
    except (ValueError, KeyError, IndexError, OverflowError, struct.error) as error:
        raise ImageError(f"{name}: the image's header is damaged; save or download it again") from error
    is_found = chosen is first and not (is_big and order == ">")  # Pillow reads little-endian BigTIFF only
    if layout.compression in CODED and not is_found and offset is None:
        what = "a BigTIFF of this byte order" if chosen is first else "a picture behind its thumbnail"
        raise _refused(name, f"it is {what}, with compression number {layout.compression}")
    return layout, is_found and layout.is_read_by_pillow


def layout_of_pillow(tags: Mapping[int, Any], prefix: bytes, name: str) -> Layout | None:
    """Return the layout of an open Pillow image, from its `tag_v2`; None where that does not say.

    Raises:
        ImageError: for a raw camera file, or a layout that is not read.
    """
    fields = PillowFields(tags)
    if _DNG_VERSION in fields or _has_raw_data([fields]):
        raise raw_camera_file(name)
    try:
        return _layout(fields, "<" if prefix == b"II" else ">", name)
    except ImageError:
        raise
    except (ValueError, KeyError, IndexError, OverflowError):
        return None


def _has_raw_data(found: list[Any]) -> bool:
    return any(each.number(262, 0) in _MOSAICS or each.number(259, 1) in _RAW_CODECS for each in found)


def _others(stream: IO[bytes], order: str, is_big: bool, first: Directory) -> list[Directory]:
    """Return the directories behind the first and below it, as far as they can be read."""
    found: list[Directory] = []
    seen, waiting = {first.offset}, [*first.numbers(_SUB_IFDS), first.next]
    while waiting and len(found) < _MAX_DIRECTORIES:
        offset = waiting.pop(0)
        if offset <= 0 or offset in seen:
            continue
        seen.add(offset)
        try:
            directory = Directory(stream, order, is_big, offset)
            waiting += [*directory.numbers(_SUB_IFDS), directory.next]
            for tag in (254, 255, 259, 262):
                directory.number(tag, 0)
        except (ValueError, OverflowError, struct.error):
            continue
        found.append(directory)
    return found


def _layout(fields: Fields, order: str, name: str) -> Layout:
    photometric = fields.number(262, WHITE_IS_ZERO)
    compression = fields.number(259, UNCOMPRESSED)
    if photometric not in _COLOURS:
        raise _refused(name, f"its photometric interpretation is {_NAMES.get(photometric, photometric)}")
    if compression not in (*LOSSLESS, *CODED):
        raise _refused(name, f"its compression is number {compression}")
    depth, kind = _depth(fields, photometric, compression, name)
    samples = _count(fields, photometric, compression, name)
    extra = fields.numbers(EXTRA_SAMPLES)
    if photometric == CMYK and fields.number(332, 1) != 1:
        raise _refused(name, "its inks are not cyan, magenta, yellow and black")
    layout = Layout(
        order=order, photometric=photometric, bits=depth, kind=kind, samples=samples, extra=extra,
        alpha=_alpha(samples, photometric, extra, name), compression=compression,
        is_planar=fields.number(284, 1) == 2 and samples > 1,
        predictor=fields.number(317, 1) if compression in _PREDICTED else 1,
        is_reversed=fields.number(266, 1) == 2, subsampling=fields.numbers(530, 2, 2),
        orientation=fields.number(274, 1), profile=fields.raw(_ICC_PROFILE),
        **_map_of(fields, photometric, depth), **_blocks(fields),
    )  # fmt: skip
    if photometric == YCBCR and compression == UNCOMPRESSED and not layout.is_read_by_pillow:
        raise _refused(name, "its pixels are YCbCr with subsampled chroma")
    is_whole = depth in (8, 16, 32, 64)
    if layout.predictor not in (1, 2, 3) or (layout.predictor == 3 and not (kind == "f" and is_whole)):
        raise _refused(name, f"its predictor is number {layout.predictor}")
    if layout.predictor == 2 and not is_whole:
        raise _refused(name, f"its predictor is for whole bytes, and its samples have {depth} bits")
    return layout


def _depth(fields: Fields, photometric: int, compression: int, name: str) -> tuple[int, str]:
    """Return the bits of a sample and "u" or "f"; ImageError for samples that are not read."""
    kinds = set(fields.numbers(339, 1))
    bits = set(fields.numbers(258, 1)[: fields.number(277, 1) or 1])
    is_lab = photometric in (CIELAB, ICCLAB)  # a and b have signs, which some writers declare
    kind = "u" if kinds <= ({1, 2, 4} if is_lab else {1, 4}) else "f" if kinds == {3} else ""
    if not kind:
        what = "signed integers" if kinds <= {1, 2, 4} else "neither integers nor floats"
        raise _refused(name, f"its samples are {what}")
    depth = min(bits)
    if compression in _FAX:
        is_read = depth == 1 and photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO)
    elif compression in CODED or photometric == YCBCR:
        is_read = depth == 8 and kind == "u" and not is_lab and photometric != PALETTE
    elif is_lab:
        is_read = depth in (8, 16) and kind == "u"
    elif kind == "f":
        is_read = depth in (16, 32, 64) and photometric != PALETTE
    else:
        is_read = 1 <= depth <= 16 or (depth == 32 and photometric != PALETTE)
    if len(bits) != 1 or not is_read:
        what = f"{_NAMES[photometric]} of {'/'.join(map(str, sorted(bits)))} bits"
        coding = f" in compression number {compression}" if compression in CODED else ""
        raise _refused(name, f"its samples are {what}{', floats' if kind == 'f' else ''}{coding}")
    return depth, kind


def _count(fields: Fields, photometric: int, compression: int, name: str) -> int:
    """Return the samples of a pixel; ImageError for a number that does not fit the colours."""
    is_colour_jpeg = compression in (JPEG, _OLD_JPEG) and photometric in (RGB, YCBCR)
    samples = fields.number(277, 3 if is_colour_jpeg else 1)
    spare, extra = samples - _COLOURS[photometric], len(fields.numbers(EXTRA_SAMPLES))
    undeclared = 1 if photometric == RGB else 0
    if not 0 <= spare <= 5 or spare != (extra or min(spare, undeclared)):
        raise _refused(name, f"it has {samples} samples per pixel of {_NAMES[photometric]}")
    return samples


def _alpha(samples: int, photometric: int, extra: tuple[int, ...], name: str) -> Alpha | None:
    if samples == _COLOURS[photometric]:
        return None
    if not extra:
        return "undeclared"
    if extra[0] not in (1, 2, 999):  # 999: CorelDRAW 10
        return None
    if photometric in (CMYK, CIELAB, ICCLAB):
        raise _refused(name, f"its pixels are {_NAMES[photometric]} with alpha")
    return "premultiplied" if extra[0] == 1 else "straight"


def _map_of(fields: Fields, photometric: int, bits: int) -> dict[str, Any]:
    """Return the colours of a palette in 8 bits. By the specification they have 16; some writers use 8."""
    if photometric != PALETTE:
        return {"colour_map": None, "is_map_short": False}
    values = np.array(fields.numbers(320), np.int64)
    if len(values) != 3 << bits:
        raise ValueError(f"a palette of {len(values)} numbers")
    is_short = bool(values.max() < 256)
    return {
        "colour_map": (values if is_short else values >> 8).astype(np.uint8).reshape(3, -1),
        "is_map_short": is_short and bool(values.max() > 0),
    }


def _blocks(fields: Fields) -> dict[str, Any]:
    """Return the size of the image, and size and place of its strips or tiles."""
    height, width = fields.number(257, 0), fields.number(256, 0)
    if height < 1 or width < 1:
        raise ValueError("no size")
    is_tiled = 322 in fields
    if is_tiled:
        rows, columns = fields.number(323, 0), fields.number(322, 0)
    else:
        rows, columns = min(fields.number(278, height) or height, height), width
    offsets = fields.numbers(324 if is_tiled else 273)
    if rows < 1 or columns < 1 or not 1 <= len(offsets) <= _MAX_BLOCKS:
        raise ValueError("no strips or tiles")
    return {
        "height": height, "width": width, "is_tiled": is_tiled, "rows": rows, "columns": columns,
        "offsets": offsets, "lengths": fields.numbers(325 if is_tiled else 279),
    }  # fmt: skip


def _refused(name: str, reason: str) -> ImageError:
    return ImageError(
        f"{name}: this kind of TIFF is not read: {reason}; save it as RGB of 8 or 16 bits, or as PNG"
    )
