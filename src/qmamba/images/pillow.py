"""Image files and Pillow images to RGB arrays: opening without Pillow's global settings, modes, transparency.

Private: `qmamba.images.decode` is the public function. Functions here raise `ImageError` with one line that
starts with the given name of the input.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from typing import IO, NamedTuple, TypeAlias

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from qmamba.errors import ImageError
from qmamba.images import formats, tiff
from qmamba.images.colour import converts, grey_to_srgb, to_srgb
from qmamba.images.damage import named_damage
from qmamba.images.tiff_samples import read_samples, to_picture

# The formats that photographs come in. Others that Pillow knows are left out on purpose: EPS starts
# Ghostscript, icons hide an image of another size behind their header, and several old formats have no
# signature, so that any text file may look like one. HEIF and JXL are Pillow plugins, see `formats`.
FORMATS = (
    *("JPEG", "MPO", "PNG", "WEBP", "TIFF", "GIF", "BMP", "DIB", "PPM", "JPEG2000", "AVIF", "QOI"),
    *("HEIF", "JXL"),
)

# No image needs more bytes than this, even with four floats per pixel and much metadata; some readers load
# the whole file before they know its size.
_BYTES_PER_PIXEL, _BYTES_BESIDES = 16, 1 << 24
# Maximum pixels times scans: each scan of a progressive JPEG covers the image, and takes only a few bytes.
_MAX_SCANNED = 5_000_000_000
_START_OF_SCAN = b"\xff\xda"

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


_TURNED = (5, 6, 7, 8)  # orientations in which height and width are exchanged

Least: TypeAlias = Callable[[int, int], tuple[int, int]]
"""From height and width of an image to the least height and width that are of use."""


class Picture(NamedTuple):
    """Pixels of an image, and height and width that it has when it is decoded whole."""

    pixels: np.ndarray
    height: int
    width: int


# Pillow loads an open image lazily: one thread at a time.
_LOADING = tuple(threading.Lock() for _ in range(64))


def check_size(height: int, width: int, max_pixels: int, name: str) -> None:
    """Raise ImageError for an image without pixels, or with more than `max_pixels` of them."""
    if height < 1 or width < 1:
        raise ImageError(f"{name}: the image is empty ({height} × {width}); give one with at least one pixel")
    if height * width > max_pixels:
        raise ImageError(
            f"{name}: {height} × {width} is {height * width / 1e6:.1f} megapixels, more than the limit of "
            f"{max_pixels / 1e6:g}; shrink the image or raise max_pixels"
        )


def max_bytes(max_pixels: int) -> int:
    """Return the maximum size in bytes of a file of `max_pixels` pixels."""
    return _BYTES_PER_PIXEL * max_pixels + _BYTES_BESIDES


def check_bytes(size: int, max_pixels: int, name: str) -> None:
    """Raise ImageError for a file that is larger than any image of `max_pixels` pixels."""
    if size > max_bytes(max_pixels):
        raise ImageError(
            f"{name}: the file has {size / 1e6:.0f} MB, more than an image of {max_pixels / 1e6:g} "
            "megapixels needs; shrink it or raise max_pixels"
        )


def read_stream(stream: IO[bytes], name: str, max_pixels: int, least: Least | None = None) -> Picture:
    """Decode an open binary stream.

    Args:
        stream: seekable, with an image file from its start to its end.
        name: name of the image in errors.
        max_pixels: maximum height × width, checked before decoding.
        least: lets a JPEG be decoded at 1/2, 1/4 or 1/8 of its size, but no smaller than this.

    Returns:
        Pixels (H, W, 3): uint8, or float32 in [0, 1] for deeper grey and for deeper colours of TIFF.

    Raises:
        ImageError: no image that can be read, or a larger one.
    """
    stream.seek(0)
    head = stream.read(16)
    if formats.is_raw_camera_file(head):
        raise tiff.raw_camera_file(name)
    if tiff.is_tiff(head):
        layout, is_read_by_pillow = tiff.find_layout(stream, name)
        if not is_read_by_pillow:
            return _whole(_read_layout(stream, layout, name, max_pixels))
    image = _open_or_refuse(stream, head, name, max_pixels)
    check_size(image.height, image.width, max_pixels, name)
    if image.info.get("progressive"):
        _check_scans(stream, image.height * image.width, name)
    if least is None or not isinstance(image, JpegImageFile):
        return _whole(read_image(image, name, max_pixels))
    height, width = image.height, image.width
    if _orientation(image) in _TURNED:
        height, width = width, height
    least_height, least_width = least(image.height, image.width)
    image.draft(None, (least_width, least_height))
    return Picture(read_image(image, name, max_pixels), height, width)


def _whole(pixels: np.ndarray) -> Picture:
    return Picture(pixels, pixels.shape[0], pixels.shape[1])


def _open_or_refuse(stream: IO[bytes], head: bytes, name: str, max_pixels: int) -> Image.Image:
    """Open an image; only its header is read, except by the plugin for JPEG XL."""
    try:
        if formats.is_jxl(head):
            check_size(*formats.jxl_size(stream), max_pixels, name)
            return formats.open_jxl(stream, name)
        image = _open(stream)
        if image is None and formats.is_heic(head):
            image = formats.open_heic(stream, name)
        if image is not None and image.format == "JPEG2000" and formats.jpeg2000_depth(stream) > 8:
            raise ImageError(
                f"{name}: colour JPEG 2000 of more than 8 bits is not read (Pillow shows white as black); "
                "save it as PNG or TIFF"
            )
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: far too many pixels to decode; shrink the image") from error
    except Exception as error:
        # On damaged headers Pillow's readers raise all kinds of errors, not only OSError.
        raise ImageError(f"{name}: the image's header is damaged; save or download it again") from error
    if image is None:
        raise ImageError(f"{name}: {formats.advice(head)}")
    return image


def _read_layout(stream: IO[bytes], layout: tiff.Layout, name: str, max_pixels: int) -> np.ndarray:
    """Read a TIFF without Pillow's reader for it."""
    check_size(layout.height, layout.width, max_pixels, name)
    picture = to_picture(read_samples(stream, layout, name), layout)
    if isinstance(picture, np.ndarray):
        return np.moveaxis(picture, 0, 2)
    return read_image(picture, name, max_pixels)


def _check_scans(stream: IO[bytes], pixels: int, name: str) -> None:
    position = stream.tell()
    stream.seek(0)
    scans, before = 0, b""
    while chunk := stream.read(1 << 20):
        scans += (before + chunk).count(_START_OF_SCAN)
        before = chunk[-1:]
    stream.seek(position)
    if scans * pixels > _MAX_SCANNED:
        raise ImageError(
            f"{name}: a progressive JPEG of {scans} scans, too many to decode; save it with fewer"
        )


def _open(stream: IO[bytes]) -> Image.Image | None:
    """Identify an image and read its header only.

    `Image.open` does the same and then compares the size with the global `Image.MAX_IMAGE_PIXELS`, with a
    warning or an error of its own. The limit of this library is a parameter, and neither that global nor the
    warning filters can be changed safely while other threads run: hence this loop over Pillow's registry of
    formats.
    """
    stream.seek(0)
    prefix = stream.read(16)
    tried: set[str] = set()
    for register_plugins in (Image.preinit, Image.init):
        register_plugins()
        for name in FORMATS:
            if name in tried or name not in Image.OPEN:
                continue
            tried.add(name)
            factory, accept = Image.OPEN[name]
            if not _may_be(accept, prefix):
                continue
            stream.seek(0)
            try:
                return factory(stream, "")
            except SyntaxError:  # Pillow's way of saying "another format"
                continue
    return None


def _may_be(accept: Callable[[bytes], bool | str] | None, prefix: bytes) -> bool:
    """Return whether a file with this prefix may be of the format; some checks fail on very short files."""
    try:
        return accept is None or accept(prefix) is True
    except (IndexError, TypeError, ValueError, struct.error):
        return False


def read_image(image: Image.Image, name: str, max_pixels: int) -> np.ndarray:
    """Decode a Pillow image of any mode.

    Args:
        image: its EXIF orientation is applied, see `qmamba.images.decode`.
        name: name of the image in errors.
        max_pixels: maximum height × width.

    Returns:
        (H, W, 3), as `read_stream`; read-only where it is uint8.
    """
    check_size(image.height, image.width, max_pixels, name)
    with _LOADING[id(image) // 16 % len(_LOADING)]:
        pixels = _read_opened_tiff(image, name, max_pixels) if isinstance(image, TiffImageFile) else None
        if pixels is not None:
            return pixels
        image = _loaded(image, name)
    check_size(image.height, image.width, max_pixels, name)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep(image, name)
    try:
        return np.asarray(_rgb(image))
    except MemoryError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{name}: Pillow mode {image.mode} cannot be turned into RGB ({reason})") from error


def _loaded(image: Image.Image, name: str) -> Image.Image:
    """Return an image upright, with its pixels."""
    with named_damage(name):
        # Loaded first: TIFF turns itself upright while loading, and PNG may keep its EXIF block after the
        # pixels.
        image.load()
        return _upright(image)


def _read_opened_tiff(image: TiffImageFile, name: str, max_pixels: int) -> np.ndarray | None:
    """Read the current page of a TIFF that Pillow has opened and would misread.

    Returns:
        As `read_stream`; None for a page that Pillow reads correctly, at 8 bits once it is loaded.

    Raises:
        ImageError: for a raw camera file, or a layout that is not read.
    """
    if image.tile and image.fp is not None:
        layout, _ = tiff.find_layout(image.fp, name, image.tag_v2.offset)
        return None if layout.is_read_by_pillow else _read_layout(image.fp, layout, name, max_pixels)
    loaded = tiff.layout_of_pillow(image.tag_v2, image.tag_v2.prefix, name)
    if loaded is not None and not loaded.is_shown_by_pillow:
        raise ImageError(f"{name}: Pillow misreads this kind of TIFF; pass its path or bytes")
    return None


def _orientation(image: Image.Image) -> int:
    """Return the orientation of EXIF, 1 to 8; 1 where there is none."""
    try:
        found = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:
        # A damaged EXIF block does not affect the pixels: they are kept as stored, as in viewers.
        return 1
    return found if isinstance(found, int) else 1


def _upright(image: Image.Image) -> Image.Image:
    method = _UPRIGHT.get(_orientation(image))
    return image if method is None else image.transpose(method)


def _deep(image: Image.Image, name: str) -> np.ndarray:
    """Return 16-bit grey (Pillow's I;16 family, and I, which holds it too) and float grey as float32."""
    values = np.asarray(image)
    if image.mode == "F":
        grey = values.astype(np.float32)
    else:
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise ImageError(
                f"{name}: integers from {low} to {high} do not fit 16 bits; scale them to 0…65535"
            )
        grey = values.astype(np.float32) / np.float32(65535)
        profile = image.info.get("icc_profile")
        if isinstance(profile, bytes) and converts(profile, "L"):
            grey = grey_to_srgb(grey, profile)
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            grey = np.where(values == transparent, np.float32(1), grey)
    return np.repeat(grey[..., None], 3, axis=2)


def _rgb(image: Image.Image) -> Image.Image:
    alpha = None
    if image.mode == "La":  # Pillow knows no direct way from premultiplied grey to RGBA
        image = _with_info(image.convert("LA"), image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        alpha = None if _is_unset(image, rgba) else rgba.getchannel("A")
        # Grey stays grey for its profile.
        is_grey = image.mode in ("LA", "L")
        image = _with_info(rgba.getchannel("R") if is_grey else rgba.convert("RGB"), image)
    elif image.mode not in ("RGB", "CMYK", "L"):
        image = _with_info(image.convert("RGB"), image)
    image = to_srgb(image)
    if image.mode != "RGB":
        image = image.convert("RGB")
    if alpha is not None:
        image = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
    return image


def _is_unset(image: Image.Image, rgba: Image.Image) -> bool:
    """Return whether an alpha channel of zeros is unset, and its image opaque.

    This is the case in BMP, whose fourth byte most writers do not set, and in TIFF with an undeclared fourth
    sample.
    """
    may_be = image.format in ("BMP", "DIB") or (
        isinstance(image, TiffImageFile) and tiff.EXTRA_SAMPLES not in image.tag_v2
    )
    return may_be and image.mode == "RGBA" and rgba.getchannel("A").getextrema() == (0, 0)


def _with_info(converted: Image.Image, source: Image.Image) -> Image.Image:
    """Keep the colour profile, which some of Pillow's conversions drop, and never a colour key."""
    converted.info = {key: value for key, value in source.info.items() if key == "icc_profile"}
    return converted
