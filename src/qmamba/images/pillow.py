"""Reading image files through Pillow: opening without its global settings, colour modes, transparency.

Private: `qmamba.images.decode` is the door. Functions here raise `ImageError` with one line that starts
with the given name of the input.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import IO

import numpy as np
from PIL import Image, ImageCms

from qmamba.errors import ImageError

# The formats that photographs come in. Others that Pillow knows are left out on purpose: EPS starts
# Ghostscript, icons hide an image of another size behind their header, and several old formats have no
# signature, so that any text file may look like one. HEIF and JXL are there for those who registered a
# Pillow plugin for them.
FORMATS = (
    *("JPEG", "MPO", "PNG", "WEBP", "TIFF", "GIF", "BMP", "DIB", "PPM", "JPEG2000", "AVIF", "QOI"),
    *("HEIF", "JXL"),
)

# No image needs more bytes than this, be it of four floats a pixel and full of remarks; several readers take
# the whole file into memory before they know its size.
_BYTES_A_PIXEL, _BYTES_BESIDES = 16, 1 << 24
# Each scan of a progressive JPEG goes over all of the image, and a few bytes make one: pixels times scans.
_MOST_SCANNED = 5_000_000_000
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


def check_size(height: int, width: int, max_pixels: int, name: str) -> None:
    """Refuse an image without pixels, or with more than `max_pixels` of them."""
    if height < 1 or width < 1:
        raise ImageError(f"{name}: the image is empty ({height} × {width}); give one with at least one pixel")
    if height * width > max_pixels:
        raise ImageError(
            f"{name}: {height} × {width} is {height * width / 1e6:.1f} megapixels, more than the limit of "
            f"{max_pixels / 1e6:g}; shrink the image or raise max_pixels"
        )


def check_bytes(size: int, max_pixels: int, name: str) -> None:
    """Refuse a file that is larger than any image of `max_pixels` pixels."""
    if size > _BYTES_A_PIXEL * max_pixels + _BYTES_BESIDES:
        raise ImageError(
            f"{name}: the file has {size / 1e6:.0f} MB, more than an image of {max_pixels / 1e6:g} "
            "megapixels needs; shrink it or raise max_pixels"
        )


def read_stream(stream: IO[bytes], name: str, max_pixels: int) -> np.ndarray:
    """Decode an open binary stream into (H, W, 3): uint8, or float32 in [0, 1] for 16-bit and float grey."""
    try:
        image = _open(stream)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: far too many pixels to decode; shrink the image") from error
    except Exception as error:
        # Damaged headers make Pillow's readers fail in every way there is, not only with OSError.
        raise ImageError(f"{name}: the image's header is damaged; save or download it again") from error
    if image is None:
        stream.seek(0)
        head = stream.read(16)
        if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1"):
            raise ImageError(
                f"{name}: HEIC needs a Pillow plugin; register pillow-heif's, or save it as JPEG"
            )
        raise ImageError(f"{name}: not an image, or not in a format that can be read; save it as JPEG or PNG")
    check_size(image.height, image.width, max_pixels, name)
    if image.info.get("progressive"):
        _check_scans(stream, image.height * image.width, name)
    return read_image(image, name, max_pixels)


def _check_scans(stream: IO[bytes], pixels: int, name: str) -> None:
    position = stream.tell()
    stream.seek(0)
    scans, before = 0, b""
    while chunk := stream.read(1 << 20):
        scans += (before + chunk).count(_START_OF_SCAN)
        before = chunk[-1:]
    stream.seek(position)
    if scans * pixels > _MOST_SCANNED:
        raise ImageError(
            f"{name}: a progressive JPEG of {scans} scans, which take too long; save it as another"
        )


def _open(stream: IO[bytes]) -> Image.Image | None:
    """Identify an image and read its header only.

    `Image.open` does the same and then compares the size with the global `Image.MAX_IMAGE_PIXELS`, with a
    warning or an error of its own. The limit of this library is a parameter, and neither that global nor the
    warning filters can be changed safely while other threads run: hence this loop over Pillow's registry of
    formats.
    """
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
    """Whether a file that begins so may be of the format. A file of a few bytes makes some checks fail."""
    try:
        return accept is None or accept(prefix) is True
    except (IndexError, TypeError, ValueError, struct.error):
        return False


def read_image(image: Image.Image, name: str, max_pixels: int) -> np.ndarray:
    """Pixels of a Pillow image of any mode: (H, W, 3), uint8, or float32 in [0, 1] for deep grey."""
    check_size(image.height, image.width, max_pixels, name)
    try:
        # First of all: TIFF turns itself upright while loading, and PNG may keep its EXIF block after the
        # pixels.
        image.load()
        image = _upright(image)
    except MemoryError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(
            f"{name}: the image is truncated or damaged ({reason}); save or download it again"
        ) from error
    check_size(image.height, image.width, max_pixels, name)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep(image, name)
    try:
        return np.array(_rgb(image))
    except MemoryError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{name}: Pillow mode {image.mode} cannot be turned into RGB ({reason})") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        method = _UPRIGHT.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:
        # A damaged EXIF block says nothing about the pixels: they are shown as stored, as viewers do.
        return image
    return image if method is None else image.transpose(method)


def _deep(image: Image.Image, name: str) -> np.ndarray:
    """16-bit grey (Pillow's I;16 family, and I, which holds it too) and float grey, as float32 in [0, 1]."""
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
        alpha = rgba.getchannel("A")
        image = _with_info(rgba.convert("RGB"), image)
    elif image.mode not in ("RGB", "CMYK"):
        image = _with_info(image.convert("RGB"), image)
    image = _to_srgb(image)
    if image.mode != "RGB":
        image = image.convert("RGB")
    if alpha is not None:
        image = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
    return image


def _with_info(converted: Image.Image, source: Image.Image) -> Image.Image:
    """Keep the colour profile along, which some of Pillow's conversions drop, and a colour key never."""
    converted.info = {key: value for key, value in source.info.items() if key == "icc_profile"}
    return converted


def _to_srgb(image: Image.Image) -> Image.Image:
    """Convert by the embedded ICC profile, so that wide-gamut and CMYK photographs look as a viewer shows
    them.

    Left as they are: images without a profile, with an sRGB one, with one that is damaged or made for another
    kind of pixels (grey profiles among them), and all where Pillow was built without LittleCMS.
    """
    embedded = image.info.get("icc_profile")
    if not isinstance(embedded, bytes) or not embedded:
        return image
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(embedded))
        space = profile.profile.xcolor_space.strip()
        if space != image.mode or _is_called_srgb(embedded):
            return image
        converted = ImageCms.profileToProfile(
            image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, ImportError):
        return image
    return image if converted is None else converted


def _is_called_srgb(profile: bytes) -> bool:
    """Whether an ICC profile's description has sRGB in it.

    Read here and not by LittleCMS, which believes what the description says of its length: two kilobytes can
    have it fill hundreds of megabytes.
    """
    tags = 132, 132 + 12 * int.from_bytes(profile[128:132], "big")
    for start in range(tags[0], min(tags[1], len(profile) - 11), 12):
        if profile[start : start + 4] == b"desc":
            offset, size = (int.from_bytes(profile[start + i : start + i + 4], "big") for i in (4, 8))
            said = profile[offset : offset + size]
            return b"sRGB" in said or b"s\0R\0G\0B" in said  # ASCII, or UTF-16 in newer profiles
    return False
