"""The samples of a TIFF's layout, as planes of 8-bit values or of floats in [0, 1]."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin

from qmamba.errors import ImageError
from qmamba.images.colour import converts, grey_to_srgb, lab_to_srgb
from qmamba.images.damage import named_damage
from qmamba.images.tiff import (
    BLACK_IS_ZERO,
    CIELAB,
    CMYK,
    ICCLAB,
    PALETTE,
    RGB,
    UNCOMPRESSED,
    WHITE_IS_ZERO,
    Layout,
)

_CHUNK = 1 << 18  # samples unpacked at a time
_BYTES_PER_PIXEL, _BYTES_BESIDES = (
    16,
    1 << 24,
)  # maximum of a compressed strip or tile, per pixel of the image


class _Block(NamedTuple):
    """A strip, a tile, or some rows of a strip: bytes of `rows` rows of `columns` pixels."""

    plane: int
    top: int
    left: int
    rows: int
    columns: int
    offset: int
    length: int


class _GreyTiff(TiffImagePlugin.TiffImageFile):
    """A TIFF that loads without a check against Pillow's global limit of pixels."""

    load_prepare = ImageFile.ImageFile.load_prepare


def read_samples(stream: IO[bytes], layout: Layout, name: str) -> np.ndarray:
    """Read the samples of an image.

    Args:
        stream: the file.
        layout: of the image, whose compression is among `LOSSLESS`.
        name: name of the image in errors.

    Returns:
        (samples, H, W), upright: uint8 for integers of 1, 2, 4 and 8 bits, spread over 0…255, and for
        palettes, whose colours take the place of their indices; else float32, integers divided by the
        greatest one. White is 255 or 1 for both kinds of grey. Of Lab, a and b have zero at 128 of 255, or at
        32768 of 65535.

    Raises:
        ImageError: cut off or damaged, or blocks far larger than the image.
    """
    is_palette = layout.photometric == PALETTE
    is_deep = (layout.bits not in (1, 2, 4, 8) or layout.kind == "f") and not is_palette
    count = layout.samples + 2 * is_palette
    out: np.ndarray | None = None  # allocated once the first block is read: a lying header takes no memory
    for block in _blocks(layout, name):
        for top, data in _rows_of(stream, layout, block, name):
            if out is None:
                out = np.zeros((count, layout.height, layout.width), np.float32 if is_deep else np.uint8)
            rows = _unpacked(data, layout, block.columns)
            _place(rows, out, layout, block._replace(top=block.top + top))
    assert out is not None
    return _upright(out, layout.orientation)


def _blocks(layout: Layout, name: str) -> Iterator[_Block]:
    """Yield the blocks of all planes, uncompressed strips in bands of some megabytes."""
    across = -(-layout.width // layout.columns) if layout.is_tiled else 1
    down = -(-layout.height // layout.rows)
    planes = layout.samples if layout.is_planar else 1
    if len(layout.offsets) < across * down * planes:
        raise ImageError(f"{name}: the image is truncated: strips or tiles are missing; save it again")
    row = _row_bytes(layout, layout.columns)
    largest = _BYTES_PER_PIXEL * layout.height * layout.width + _BYTES_BESIDES
    if (layout.compression != UNCOMPRESSED or layout.is_tiled) and row * layout.rows > largest:
        size = row * layout.rows
        raise ImageError(f"{name}: its header is damaged: strips of {size} bytes, more than the image needs")
    whole = layout.rows if layout.compression != UNCOMPRESSED or layout.is_tiled else max(1, (1 << 22) // row)
    for index in range(across * down * planes):
        plane, place = divmod(index, across * down)
        top, left = place // across * layout.rows, place % across * layout.columns
        rows = layout.rows if layout.is_tiled else min(layout.rows, layout.height - top)
        length = layout.lengths[index] if index < len(layout.lengths) else row * rows
        for start in range(0, rows, whole):
            band = min(whole, rows - start)
            offset = layout.offsets[index] + start * row
            yield _Block(plane, top + start, left, band, layout.columns, offset, length)


def _row_bytes(layout: Layout, columns: int) -> int:
    return -(-columns * (1 if layout.is_planar else layout.samples) * layout.bits // 8)


def _rows_of(stream: IO[bytes], layout: Layout, block: _Block, name: str) -> Iterator[tuple[int, np.ndarray]]:
    """Yield rows of a block in batches: the index of the first row, and (rows, bytes per row) uint8."""
    width = _row_bytes(layout, block.columns)
    step = max(1, _CHUNK // max(1, width * 8 // layout.bits))
    expected = width * block.rows
    stream.seek(block.offset)
    if layout.compression == UNCOMPRESSED:
        data = stream.read(expected)
        if len(data) < expected:
            raise ImageError(f"{name}: the image is truncated; save or download it again")
        rows = np.frombuffer(data, np.uint8).reshape(block.rows, width)
        for top in range(0, block.rows, step):
            yield top, _MIRRORED[rows[top : top + step]] if layout.is_reversed else rows[top : top + step]
        return
    image = _decompressed(
        stream.read(min(block.length, 2 * expected + 4096)), layout, width, block.rows, name
    )
    for top in range(0, block.rows, step):
        yield top, np.asarray(image.crop((0, top, width, min(top + step, block.rows))))


_MIRRORED = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)), bitorder="little")


def _decompressed(data: bytes, layout: Layout, width: int, rows: int, name: str) -> Image.Image:
    """Decompress a block by Pillow's libtiff, as a TIFF of one strip of 8-bit grey."""
    fields = [
        (256, 4, width), (257, 4, rows), (258, 3, 8), (259, 3, layout.compression), (262, 3, BLACK_IS_ZERO),
        (266, 3, 2 if layout.is_reversed else 1), (273, 4, 8 + 2 + 12 * 10 + 4), (277, 3, 1), (278, 4, rows),
        (279, 4, len(data)),
    ]  # fmt: skip
    head = struct.pack("<2sHIH", b"II", 42, 8, len(fields))
    table = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in fields)
    with named_damage(name):
        image = _GreyTiff(io.BytesIO(head + table + bytes(4) + data))
        image.load()
    return image


def _unpacked(data: np.ndarray, layout: Layout, columns: int) -> np.ndarray:
    """Unpack (rows, bytes) to (rows, columns, samples), in the type that the file has, predictors undone."""
    count = 1 if layout.is_planar else layout.samples
    shape = len(data), columns, count
    if layout.predictor == 3:
        return _floats_from_bytes(data, layout.bits // 8, shape)
    if layout.bits % 8 or layout.bits == 24:
        bits = np.unpackbits(data, axis=1)[:, : columns * count * layout.bits]
        digits = bits.reshape(len(data), columns * count, layout.bits)
        values = np.zeros(digits.shape[:2], np.uint16)
        for place in range(layout.bits):
            values = values << np.uint16(1) | digits[..., place]
        return values.reshape(shape)
    values = np.ascontiguousarray(data).view(f"{layout.order}{layout.kind}{layout.bits // 8}").reshape(shape)
    if layout.predictor == 2:
        whole = values.view(f"{layout.order}u{layout.bits // 8}")
        native = whole.astype(whole.dtype.newbyteorder("="))  # sums wrap around, as differences did
        values = np.cumsum(native, axis=1, dtype=native.dtype).view(f"{layout.kind}{layout.bits // 8}")
    return values


def _floats_from_bytes(data: np.ndarray, size: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Undo predictor 3 (TIFF Technical Note 3): differences of bytes, a row's most significant ones first."""
    rows, columns, count = shape
    summed = np.cumsum(data.reshape(rows, -1, count), axis=1, dtype=np.uint8)
    planes = summed.reshape(rows, size, columns * count)
    return np.ascontiguousarray(planes.transpose(0, 2, 1)).view(f">f{size}").reshape(shape)


def _place(rows: np.ndarray, out: np.ndarray, layout: Layout, block: _Block) -> None:
    """Write unpacked rows to their position in `out`, with values as in `read_samples`."""
    high, wide = (
        min(length, whole - start)
        for length, whole, start in (
            (rows.shape[0], layout.height, block.top),
            (rows.shape[1], layout.width, block.left),
        )
    )
    if high < 1 or wide < 1:  # the padding of a tile at an edge
        return
    area = np.s_[block.top : block.top + high, block.left : block.left + wide]
    maximum = 1 if layout.kind == "f" else (1 << layout.bits) - 1
    for index in range(rows.shape[2]):
        sample = block.plane if layout.is_planar else index
        values = rows[:high, :wide, index]
        if layout.photometric == PALETTE:
            if sample == 0:
                assert layout.colour_map is not None
                for channel, colours in enumerate(layout.colour_map):
                    out[channel][area] = colours[values]
                continue
            sample += 2
        if layout.photometric == CIELAB and sample in (1, 2):  # with a sign, to what ICC Lab has
            values = values ^ values.dtype.type(1 << layout.bits - 1)
        target = out[sample][area]
        if out.dtype == np.uint8 and maximum == 255:
            target[...] = values
        elif out.dtype == np.uint8:
            target[...] = (values.astype(np.uint32) * 255 + maximum // 2) // maximum
        else:
            is_wide = layout.bits == 64 or (layout.bits == 32 and layout.kind == "u")
            wider = np.float64 if is_wide else np.float32
            with np.errstate(over="ignore", invalid="ignore"):  # what is out of range is refused later
                np.divide(values, wider(maximum), out=target, dtype=wider, casting="unsafe")
        if layout.photometric == WHITE_IS_ZERO and sample == 0:
            np.subtract(target.dtype.type(255 if out.dtype == np.uint8 else 1), target, out=target)


def _upright(planes: np.ndarray, orientation: int) -> np.ndarray:
    """Return a view of (C, H, W), turned as an orientation of EXIF and TIFF, 1 to 8, says."""
    if orientation in (5, 6, 7, 8):
        planes = planes.transpose(0, 2, 1)
    if orientation in (3, 4, 7, 8):
        planes = planes[:, ::-1]
    if orientation in (2, 3, 6, 7):
        planes = planes[:, :, ::-1]
    return planes


def to_picture(planes: np.ndarray, layout: Layout) -> Image.Image | np.ndarray:
    """Give samples their colours.

    Args:
        planes: of `read_samples`; they are overwritten.
        layout: of the image.

    Returns:
        A Pillow image with its profile for samples of 8 bits, and for deeper colours with an ICC profile,
        which is applied to 8 bits only. Else (3, H, W), contiguous float32, in [0, 1] for integers.
    """
    mode = _MODES[layout.photometric]
    colours, extra = planes[: len(mode)], planes[len(mode) :]
    alpha = extra[0] if layout.alpha and not (layout.alpha == "undeclared" and not extra[0].any()) else None
    is_premultiplied, is_deep = layout.alpha == "premultiplied", planes.dtype != np.uint8
    if mode == "LAB":
        rgb = _rgb_of_lab(colours, layout.photometric)
        return np.ascontiguousarray(rgb) if is_deep else _image("RGB", rgb, None, False, b"")
    if is_deep and converts(layout.profile, mode) and planes.min() >= 0 and planes.max() <= 1:
        if mode == "L" and alpha is None:
            return np.repeat(grey_to_srgb(colours, layout.profile), 3, axis=0)
        planes *= 255
        planes = planes.round(out=planes).astype(np.uint8)
        colours, alpha = planes[: len(mode)], None if alpha is None else planes[len(mode)]
    if planes.dtype == np.uint8:
        return _image(mode, colours, alpha, is_premultiplied, layout.profile)
    if mode == "CMYK":
        np.subtract(1, colours, out=colours)
        colours[:3] *= colours[3]
        colours = colours[:3]
    if alpha is not None:  # on white
        if not is_premultiplied:
            colours *= alpha
        colours += 1 - alpha
    return np.ascontiguousarray(colours) if len(colours) == 3 else np.repeat(colours, 3, axis=0)


_MODES = {
    WHITE_IS_ZERO: "L", BLACK_IS_ZERO: "L", PALETTE: "RGB", RGB: "RGB", CMYK: "CMYK", CIELAB: "LAB",
    ICCLAB: "LAB",
}  # fmt: skip


def _image(
    mode: str, colours: np.ndarray, alpha: np.ndarray | None, is_premultiplied: bool, profile: bytes
) -> Image.Image:
    bands = [Image.fromarray(np.ascontiguousarray(plane)) for plane in colours]
    if alpha is not None:
        bands.append(Image.fromarray(np.ascontiguousarray(alpha)))
        mode += "a" if is_premultiplied else "A"
    image = bands[0] if mode == "L" else Image.merge(mode, bands)
    image.info = {"icc_profile": profile} if profile else {}
    return image


def _rgb_of_lab(lab: np.ndarray, photometric: int) -> np.ndarray:
    """Convert Lab as `read_samples` gives it, in place, some rows at a time.

    ICC Lab of 16 bits has its greatest L at 65280 of 65535 (ICC.1:2001-04, annex A).
    """
    is_deep, maximum = lab.dtype != np.uint8, 65535 if lab.dtype != np.uint8 else 255
    white = 65280 if is_deep and photometric == ICCLAB else maximum
    step = max(1, _CHUNK // lab.shape[2])
    for top in range(0, lab.shape[1], step):
        rows = lab[:, top : top + step]
        values = rows.astype(np.float64) * (65535 if is_deep else 1)
        values[0] *= 100 / white
        values[1:] = (values[1:] - 32768) / 256 if is_deep else values[1:] - 128
        rgb = lab_to_srgb(values)
        rows[...] = rgb if is_deep else (rgb * 255).round()
    return lab
