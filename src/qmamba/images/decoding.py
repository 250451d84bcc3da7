"""Decode any kind of image to a (3, H, W) tensor.

`decode` turns one input into pixels; `as_list` tells one image from a sequence of images. Both are safe to
call from several threads, and neither changes a global setting of Pillow, NumPy or torch.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image

from qmamba.errors import ImageError, MissingImageError
from qmamba.images.arrays import from_array, from_tensor, unit_range
from qmamba.images.file_objects import content, unreadable
from qmamba.images.find import IMAGE_SUFFIXES
from qmamba.images.pillow import Least, Picture, check_bytes, read_image, read_stream

ImageInput: TypeAlias = (
    str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray | torch.Tensor | Mapping[str, Any]
)
"""One image. See `decode` for what each kind may hold."""

MAX_PIXELS = 50_000_000
"""Images with more pixels than this are refused unless `max_pixels` says otherwise."""

_FILES = (str, bytes, bytearray, memoryview, os.PathLike)
_SINGLE = (*_FILES, Image.Image)


class Decoded(NamedTuple):
    """An image, decoded.

    Attributes:
        pixels: (3, H, W), as `decode` returns them.
        name: of the image in messages, as `label` returns it.
        height, width: of the image decoded whole; pixels that were reduced while decoding are fewer.
    """

    pixels: torch.Tensor
    name: str
    height: int
    width: int


def iterate(images: Any) -> tuple[Iterator[Any], bool]:
    """Return an iterator over the images in "one image or a sequence of them", and whether it is one.

    See `as_list`, which builds the list.
    """
    if isinstance(images, torch.Tensor):
        return (iter(images.unbind(0)), False) if images.ndim == 4 else (iter([images]), True)
    if isinstance(images, np.ndarray):
        return _iterate_array(images)
    if isinstance(images, _SINGLE) or hasattr(images, "read") or _is_record(images):
        return iter([images]), True
    if isinstance(images, Mapping) and images and all(isinstance(key, str) for key in images):
        raise _is_row(images)
    if isinstance(images, (Mapping, Set)) or hasattr(images, "columns"):
        raise ImageError(
            f"a {type(images).__name__} has no order of images; pass a list, or one column of a table"
        )
    if hasattr(images, "__array__") and getattr(images, "ndim", 0) > 1:  # an array of another library
        return iter([images]), True
    if isinstance(images, Iterable):
        return iter(images), False
    return iter([images]), True


def _iterate_array(images: np.ndarray) -> tuple[Iterator[Any], bool]:
    if images.dtype.kind not in "OUST" or images.ndim == 0:  # numbers, or a single object: one image
        return iter([images]), True
    if images.ndim == 1:
        return iter(images.tolist()), False
    if images.size and isinstance(images.flat[0], (int, float, np.number)):
        raise ImageError("an array of numbers kept as Python objects; pass array.astype(numpy.uint8)")
    raise ImageError(f"an array of objects needs one dimension, not {images.ndim}; pass array.ravel()")


def as_list(images: Any) -> tuple[list[Any], bool]:
    """List the images in "one image or a sequence of them".

    A str, path, bytes, file object, Pillow image, numeric NumPy array, (C, H, W) tensor, and a dict with
    "bytes" and "path", as Hugging Face's `datasets` has undecoded images, is a single image. A list, tuple,
    iterator, pandas Series, pyarrow column, NumPy array of objects or strings, and each (B, C, H, W) tensor
    is a sequence.

    Args:
        images: one image or a sequence of images.

    Returns:
        The list, and True when `images` was a single image.

    Raises:
        ImageError: for another dict, a set or a table, whose order or meaning is not that of a sequence of
            images.

    Examples:
        >>> as_list("photo.jpg")
        (['photo.jpg'], True)
        >>> as_list(("a.jpg", "b.jpg"))
        (['a.jpg', 'b.jpg'], False)
        >>> items, single = as_list(torch.rand(4, 3, 32, 32))
        >>> len(items), items[0].shape, single
        (4, torch.Size([3, 32, 32]), False)
    """
    iterator, single = iterate(images)
    return list(iterator), single


def decode(image: Any, *, max_pixels: int = MAX_PIXELS) -> torch.Tensor:
    """Decode one image.

    * A path (str or path object), bytes, or a binary file object with an image file of any common format. A
      seekable file object is read from its start, and left where it was. Of an animation the first frame is
      taken. Objects that open like paths, such as `zipfile.Path`, are opened.
    * A Pillow image of any mode; of an open animation the current frame.
    * A NumPy array (H, W) or (H, W, C), with C one of 1 (grey), 2 (grey and alpha), 3 (RGB), 4 (RGB and
      alpha): uint8, uint16, bool, or float in [0, 1]. Channels are in the order red, green, blue: of OpenCV's
      blue, green, red pass ``array[..., ::-1]``. Masked arrays must have no masked elements.
    * A tensor (C, H, W) of the same types, on any device. It is detached.
    * A dict with "bytes" or "path", as `datasets` has undecoded images, and a scalar of pyarrow.

    EXIF orientation is applied wherever present, also to a Pillow image after ``image.rotate()``, which keeps
    the flag: turn images with ``ImageOps.exif_transpose(image)``, or delete the flag with
    ``del image.getexif()[274]``.

    Transparent pixels are laid on white, but an alpha channel of zeros in a BMP counts as unset. An embedded
    ICC profile with other primaries and curves than sRGB is applied, at 8 bits for colours. Grey becomes
    three equal channels. Grey of more than 8 bits, TIFF of any depth, and floats keep their precision; other
    colour files of 16 bits are read at 8 bits (Pillow reads no more). Pillow's mode I counts as 16 bits.
    Floats that leave [0, 1] by no more than 0.001 are clipped. Raw camera files are refused, whatever preview
    they hold.

    Args:
        image: one image.
        max_pixels: maximum height × width; files are checked before they are decoded. A file of more than 16
            bytes per pixel of this maximum, plus 16 MiB, is not read at all.

    Returns:
        A tensor (3, H, W), uint8 where the input has 8 bits and otherwise float32 in [0, 1]. On the input's
        device for tensors, else on the CPU. It may share memory with a tensor given as input.

    Raises:
        MissingImageError: for a path that names no file.
        ImageError: for everything else that cannot be decoded; the message names the input.

    Examples:
        >>> decode(np.zeros((40, 60), dtype=np.uint8)).shape
        torch.Size([3, 40, 60])
        >>> decode(Image.new("RGBA", (8, 8), (0, 0, 0, 0)))[:, 0, 0].tolist()  # transparent
        [255, 255, 255]
        >>> decode(torch.full((3, 8, 8), 200.0))
        Traceback (most recent call last):
        qmamba.errors.ImageError: tensor: values from 200 to 200; float images lie in [0, 1], so divide by 255
    """
    return decode_for(image, max_pixels=max_pixels).pixels


def decode_for(image: Any, least: Least | None = None, *, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Decode one image for a use that needs no more than some size of it.

    Args:
        image: as for `decode`.
        least: returns the least height and width that are of use, from those of the image. A JPEG file is
            then decoded at 1/2, 1/4 or 1/8 of its size if that is no smaller, which takes less time. Nothing
            else is reduced.
        max_pixels: as for `decode`.

    Raises:
        ImageError: as `decode`.
    """
    found = _unwrapped(image)
    if isinstance(found, memoryview) and found.ndim > 1:
        found = np.asarray(found)
    if isinstance(found, _FILES) or hasattr(found, "read") or _is_opener(found):
        file, picture = _from_file(found, max_pixels, least)
        return Decoded(_planes(picture.pixels, file), label(image), picture.height, picture.width)
    pixels = _from_memory(found, max_pixels)
    return Decoded(pixels, label(image), int(pixels.shape[-2]), int(pixels.shape[-1]))


def _from_memory(image: Any, max_pixels: int) -> torch.Tensor:
    """Return the pixels (3, H, W) of an object that has them."""
    if isinstance(image, torch.Tensor):
        return from_tensor(image.detach(), max_pixels)
    if isinstance(image, np.ndarray):
        return from_array(image, max_pixels)
    if isinstance(image, Image.Image):
        name = printable(getattr(image, "filename", "") or f"Pillow image ({image.mode})")
        return _planes(read_image(image, name, max_pixels), name)
    if hasattr(image, "__array__"):
        return from_array(_as_numpy(image), max_pixels)
    raise ImageError(
        f"{type(image).__name__}: not an image; pass a path, bytes, a file, or a Pillow, NumPy or torch image"
    )


def _is_opener(image: Any) -> bool:
    return hasattr(image, "read_bytes") and hasattr(image, "open")


def _from_file(image: Any, max_pixels: int, least: Least | None) -> tuple[str, Picture]:
    """Decode what holds an image file; return its name, too."""
    if isinstance(image, (bytes, bytearray, memoryview)):
        return "bytes", _from_bytes(bytes(image), "bytes", max_pixels, least)
    if isinstance(image, (str, os.PathLike)):
        text = os.fsdecode(image)
        return printable(text), _from_path(text, max_pixels, least)
    if hasattr(image, "read"):
        name = label(image)
        return name, _from_bytes(content(image, name, max_pixels), name, max_pixels, least)
    return printable(image), _from_opener(image, max_pixels, least)


def as_bytes(pixels: torch.Tensor) -> torch.Tensor:
    """Return pixels as uint8: those in [0, 1] are rounded to 0 … 255."""
    return pixels if pixels.dtype == torch.uint8 else (pixels * 255).round().to(torch.uint8)


def thumbnail(pixels: torch.Tensor, longest: int) -> Image.Image:
    """Return decoded pixels as a Pillow image, shrunk where its longer side is above `longest` pixels.

    Args:
        pixels: (3, H, W), uint8 or float in [0, 1], as `decode` gives it.
        longest: maximum of the longer side, in pixels.

    Examples:
        >>> thumbnail(torch.zeros(3, 300, 400), 100).size
        (100, 75)
    """
    picture = Image.fromarray(as_bytes(pixels).permute(1, 2, 0).contiguous().cpu().numpy())
    picture.thumbnail((longest, longest), reducing_gap=3.0)
    return picture


def printable(name: object) -> str:
    """Return the name of an input on one line, whatever characters it has."""
    try:
        text = os.fsdecode(name) if isinstance(name, bytes) else str(name)
    except Exception:  # of any class; a `zipfile.Path` into an archive in memory has no text
        text = type(name).__name__
    return text if text.isprintable() else ascii(text)


def label(image: Any) -> str:
    """Return a short name for an input, for messages and tables: its path if it has one, else its type."""
    if _is_record(image) or hasattr(image, "as_py"):
        record = image.as_py() if hasattr(image, "as_py") else image
        path = record.get("path") if isinstance(record, Mapping) else record
        return printable(path) if isinstance(path, str) and path else type(image).__name__
    if hasattr(image, "read_bytes") and not isinstance(image, os.PathLike):
        return printable(image)
    if isinstance(image, (str, os.PathLike)):
        return printable(os.fsdecode(image))
    name = getattr(image, "filename", None) or getattr(image, "name", None)
    return printable(name) if isinstance(name, (str, bytes)) and name else type(image).__name__


def _from_path(text: str, max_pixels: int, least: Least | None) -> Picture:
    name = printable(text)
    if text.startswith("data:"):
        raise ImageError(f"{name[:40]}…: a data URL; pass the bytes that base64.b64decode makes of it")
    if re.match(r"[a-z][a-z0-9+.-]+://", text):
        raise ImageError(
            f"{name}: nothing is downloaded here; fetch the file first and pass its path or bytes"
        )
    if not text:
        raise ImageError("the path is empty; pass the name of an image file")
    path = Path(text)
    try:
        info = path.stat()
        if stat.S_ISDIR(info.st_mode):
            raise ImageError(f"{name}: a folder, not an image; list the files in it")
        if not stat.S_ISREG(info.st_mode):
            raise ImageError(f"{name}: not a regular file; pass its bytes")
        if info.st_size == 0:
            raise ImageError(f"{name}: the file is empty (zero bytes); save or download it again")
        check_bytes(info.st_size, max_pixels, name)
        with path.open("rb") as stream:
            return read_stream(stream, name, max_pixels, least)
    except ImageError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        advice = "check the path"
        if text == "-":
            advice = "`qmamba score -` reads standard input, and in Python pass sys.stdin.buffer"
        raise MissingImageError(f"{name}: no such file; {advice}") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{name}: the file cannot be read ({reason})") from error


def _is_record(image: Any) -> bool:
    """Return whether a dict holds one image: its bytes, its path, or both."""
    return isinstance(image, Mapping) and bool(image) and set(image) <= {"bytes", "path"}


def _unwrapped(image: Any) -> Any:
    """Unwrap a record of `datasets`, a pyarrow scalar or buffer, or an array of one object."""
    if hasattr(image, "as_py"):
        image = image.as_py()
    elif hasattr(image, "to_pybytes"):
        image = image.to_pybytes()
    elif isinstance(image, np.ndarray) and image.ndim == 0 and image.dtype.kind in "OUST":
        image = image.item()
    if _is_record(image):
        held = image.get("path") if image.get("bytes") is None else image["bytes"]
        if held is None:
            raise ImageError("dict: its bytes and its path are None; give one of them")
        return held
    if isinstance(image, Mapping):
        raise _is_row(image)
    return image


def _is_row(row: Mapping[Any, Any]) -> ImageError:
    keys = ", ".join(map(str, list(row)[:5]))
    return ImageError(f"dict: not an image but a row ({keys}); pass the image in it, such as row['image']")


def _as_numpy(image: Any) -> np.ndarray:
    name = type(image).__name__
    try:
        return np.asarray(image)
    except Exception as error:  # of any library
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{name}: no NumPy array can be made of it ({reason}); pass one") from error


def _from_bytes(data: bytes, name: str, max_pixels: int, least: Least | None) -> Picture:
    if not data:
        raise ImageError(f"{name}: nothing to decode (zero bytes); save or download the image again")
    if len(data) < 1024 and Path(data.decode("latin-1")).suffix.lower() in IMAGE_SUFFIXES:
        raise ImageError(f"{name}: a path, not the contents of a file; pass os.fsdecode(path)")
    check_bytes(len(data), max_pixels, name)
    return read_stream(io.BytesIO(data), name, max_pixels, least)


def _from_opener(path: Any, max_pixels: int, least: Least | None) -> Picture:
    """Decode a path-like object outside the file system, such as `zipfile.Path`."""
    name = printable(path)
    try:
        if hasattr(path, "is_dir") and path.is_dir():
            raise ImageError(f"{name}: a folder, not an image; list the files in it")
        with path.open("rb") as file:
            data = content(file, name, max_pixels)
    except (ImageError, MemoryError):
        raise
    except (FileNotFoundError, KeyError) as error:  # KeyError: of an archive
        raise MissingImageError(f"{name}: no such file; check the path") from error
    except Exception as error:
        raise unreadable(name, error) from error
    return _from_bytes(data, name, max_pixels, least)


def _planes(pixels: np.ndarray, name: str) -> torch.Tensor:
    """Turn (H, W, 3), which no other object shares, into (3, H, W)."""
    planes = np.moveaxis(pixels, 2, 0)
    if planes.dtype == np.uint8:  # a copy, since Pillow's own may not be written to
        return torch.from_numpy(np.array(planes, order="C"))
    return unit_range(torch.from_numpy(np.ascontiguousarray(planes)), name)
