"""From whatever a user calls an image to a (3, H, W) tensor.

`decode` turns one input into pixels; `as_list` tells one image from a sequence of images. Both are safe to
call from several threads, and neither changes a global setting of Pillow, numpy or torch.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch
from PIL import Image

from qmamba.errors import ImageError, MissingImageError
from qmamba.images.pillow import check_bytes, check_size, read_image, read_stream

ImageInput: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray | torch.Tensor
"""One image. See `decode` for what each kind may hold."""

MAX_PIXELS = 50_000_000
"""Images with more pixels than this are refused unless `max_pixels` says otherwise."""

_SINGLE = (str, bytes, bytearray, memoryview, os.PathLike, Image.Image)
_OVERSHOOT = 1e-3  # what resampling and float arithmetic leave outside [0, 1]; clipped without a word


def iterate(images: Any) -> tuple[Iterator[Any], bool]:
    """What `as_list` does, without building the list: an iterator, and whether it is over a single image."""
    if isinstance(images, torch.Tensor):
        return (iter(images.unbind(0)), False) if images.ndim == 4 else (iter([images]), True)
    if isinstance(images, np.ndarray):
        if images.dtype.kind not in "OUST":  # numbers: one image
            return iter([images]), True
        if images.ndim == 1:
            return iter(images.tolist()), False
        raise ImageError(f"an array of objects needs one dimension, not {images.ndim}; pass array.ravel()")
    if isinstance(images, _SINGLE) or hasattr(images, "read"):
        return iter([images]), True
    if isinstance(images, (Mapping, Set)) or hasattr(images, "columns"):
        raise ImageError(
            f"a {type(images).__name__} has no order of images; pass a list, or one column of a table"
        )
    if isinstance(images, Iterable):
        return iter(images), False
    return iter([images]), True


def as_list(images: Any) -> tuple[list[Any], bool]:
    """List the images in "one image or a sequence of them".

    A str, path, bytes, file object, Pillow image, numeric numpy array and (C, H, W) tensor is a single
    image. A list, tuple, iterator, pandas Series, numpy array of objects or strings, and each (B, C, H, W)
    tensor is a sequence.

    Args:
        images: one image or a sequence of images.

    Returns:
        The list, and True when `images` was a single image.

    Raises:
        ImageError: for a dict, set or table, whose order or meaning is not that of a sequence of images.

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
    """Pixels of one image.

    * A path (str or path object), bytes, or a binary file object with an image file of any common format. A
      seekable file object is read from its start, and left where it was. Of an animation the first frame is
      taken.
    * A Pillow image of any mode; of an open animation the current frame.
    * A numpy array (H, W) or (H, W, C), with C one of 1 (grey), 3 (RGB), 4 (RGB and alpha): uint8, uint16,
      bool, or float in [0, 1].
    * A tensor (C, H, W) of the same types, on any device. It is detached.

    EXIF orientation is applied. Transparent pixels are laid on white. An embedded ICC profile other than
    sRGB is applied to 8-bit RGB and CMYK images. Grey becomes three equal channels. Grey files of 16 bits
    are divided by 65535; colour files of 16 bits lose their low bytes (Pillow reads no more). Pillow's mode
    I counts as 16 bits. Floats that leave [0, 1] by no more than 0.001 are clipped.

    Args:
        image: one image.
        max_pixels: the most pixels, height × width, that are accepted; files are checked before they are
            decoded. A file of more than 16 bytes for each of them, and 16 MiB besides, is not read at all.

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
    if isinstance(image, torch.Tensor):
        return _from_tensor(image.detach(), max_pixels)
    if isinstance(image, np.ndarray):
        return _from_array(image, max_pixels)
    if isinstance(image, Image.Image):
        name = getattr(image, "filename", "") or f"Pillow image ({image.mode})"
        return _planes(read_image(image, printable(name), max_pixels), printable(name))
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _from_bytes(bytes(image), "bytes", max_pixels)
    if isinstance(image, (str, os.PathLike)):
        return _from_path(os.fsdecode(image), max_pixels)
    if hasattr(image, "read"):
        return _from_file(image, max_pixels)
    raise ImageError(
        f"{type(image).__name__}: not an image; pass a path, bytes, a file, or a Pillow, numpy or torch image"
    )


def as_bytes(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels as uint8: those in [0, 1] are rounded to 0 … 255."""
    return pixels if pixels.dtype == torch.uint8 else (pixels * 255).round().to(torch.uint8)


def thumbnail(pixels: torch.Tensor, longest: int) -> Image.Image:
    """A picture of decoded pixels, to look at: shrunk where its longer side is above `longest` pixels.

    Args:
        pixels: (3, H, W), uint8 or float in [0, 1], as `decode` gives it.
        longest: pixels of the longer side, at most.

    Examples:
        >>> thumbnail(torch.zeros(3, 300, 400), 100).size
        (100, 75)
    """
    picture = Image.fromarray(as_bytes(pixels).permute(1, 2, 0).contiguous().cpu().numpy())
    picture.thumbnail((longest, longest), reducing_gap=3.0)
    return picture


def printable(name: object) -> str:
    """The name of an input on one line, whatever characters it has."""
    text = os.fsdecode(name) if isinstance(name, bytes) else str(name)
    return text if text.isprintable() else ascii(text)


def label(image: Any) -> str:
    """A short name for an input, for messages and tables: its path if it has one, else what kind it is."""
    if isinstance(image, (str, os.PathLike)):
        return printable(os.fsdecode(image))
    name = getattr(image, "filename", None) or getattr(image, "name", None)
    return printable(name) if isinstance(name, (str, bytes)) and name else type(image).__name__


def _from_path(text: str, max_pixels: int) -> torch.Tensor:
    name = printable(text)
    if text.startswith(("http://", "https://")):
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
            return _planes(read_stream(stream, name, max_pixels), name)
    except ImageError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingImageError(f"{name}: no such file; check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{name}: the file cannot be read ({reason})") from error


def _from_bytes(data: bytes, name: str, max_pixels: int) -> torch.Tensor:
    if not data:
        raise ImageError(f"{name}: nothing to decode (zero bytes); save or download the image again")
    return _planes(read_stream(io.BytesIO(data), name, max_pixels), name)


def _from_file(file: Any, max_pixels: int) -> torch.Tensor:
    name = label(file)
    try:
        if getattr(file, "seekable", lambda: False)():
            # From the start, so that a buffer just written to works, and a second call gives the same score.
            position = file.tell()
            file.seek(0)
            data = file.read()
            file.seek(position)
        else:
            data = file.read()
    except MemoryError:
        raise
    except Exception as error:
        # Objects that read from archives, sockets and clouds fail with errors of their own.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{name}: the file object cannot be read ({reason})") from error
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise ImageError(
            f"{name}: the file object gives {type(data).__name__}, not bytes; open it in mode 'rb'"
        )
    return _from_bytes(bytes(data), name, max_pixels)


def _planes(pixels: np.ndarray, name: str) -> torch.Tensor:
    """(H, W, 3) that nobody else holds, to (3, H, W)."""
    planes = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    return planes if planes.dtype == torch.uint8 else _unit_range(planes, name)


def _from_array(array: np.ndarray, max_pixels: int) -> torch.Tensor:
    name = "array"
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise ImageError(f"{name}: {_shape_advice(array.shape, '(H, W) or (H, W, C)')}")
    check_size(array.shape[0], array.shape[1], max_pixels, name)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:  # of either byte order
        values = array.astype(np.float32) / np.float32(65535)
    elif array.dtype == np.bool_:
        values = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype == np.uint8:
        values = array
    elif array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # a float64 beyond float32 is out of range anyway
            values = array.astype(np.float32)
    else:
        raise ImageError(f"{name}: {_type_advice(array.dtype)}")
    # ascontiguousarray also undoes negative strides and foreign byte orders, which torch cannot hold.
    planes = torch.from_numpy(np.array(np.moveaxis(values, 2, 0), order="C", copy=True))
    return _three_channels(planes if planes.dtype == torch.uint8 else _unit_range(planes, name))


def _from_tensor(tensor: torch.Tensor, max_pixels: int) -> torch.Tensor:
    name = "tensor"
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise ImageError(f"{name}: only dense tensors hold images; call .to_dense() or .dequantize()")
    if tensor.is_meta:
        raise ImageError(f"{name}: a tensor on the device 'meta' has no pixels; pass one with data")
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4):
        raise ImageError(f"{name}: {_shape_advice(tuple(tensor.shape), '(C, H, W)')}")
    check_size(tensor.shape[1], tensor.shape[2], max_pixels, name)
    if tensor.dtype == torch.uint8:
        return _three_channels(tensor)
    if tensor.dtype == torch.bool:
        return _three_channels(tensor.to(torch.uint8) * 255)
    if tensor.dtype == torch.uint16:
        return _three_channels(tensor.to(torch.float32) / 65535)
    if tensor.dtype.is_floating_point:
        return _three_channels(_unit_range(tensor.to(torch.float32), name))
    raise ImageError(f"{name}: {_type_advice(tensor.dtype)}")


def _three_channels(planes: torch.Tensor) -> torch.Tensor:
    """(1 | 3 | 4, H, W) to (3, H, W): grey is repeated, alpha is laid on white."""
    if planes.shape[0] == 4:
        if planes.dtype == torch.uint8:
            # Through Pillow, so that an array scores as the file it was read from.
            rgba = Image.fromarray(planes.permute(1, 2, 0).contiguous().cpu().numpy())
            pixels = read_image(rgba, "tensor", rgba.width * rgba.height)
            return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().to(planes.device)
        return planes[:3] * planes[3:] + (1 - planes[3:])
    return planes.expand(3, -1, -1).contiguous()


def _unit_range(values: torch.Tensor, name: str) -> torch.Tensor:
    low, high = (float(bound) for bound in values.aminmax())
    if low != low or high != high:
        raise ImageError(f"{name}: the image has NaN values; replace or drop them")
    if low < -_OVERSHOOT or high > 1 + _OVERSHOOT:
        advice = "divide by 255" if 1 < high <= 255 and low >= 0 else "scale it to that range"
        raise ImageError(
            f"{name}: values from {low:.4g} to {high:.4g}; float images lie in [0, 1], so {advice}"
        )
    return values.clamp(0, 1) if low < 0 or high > 1 else values


def _shape_advice(shape: tuple[int, ...], wanted: str) -> str:
    given = f"shape {tuple(shape)} is not one image {wanted} with 1, 3 or 4 channels"
    if len(shape) == 4:
        return f"{given}; pass the images one by one in a list"
    if len(shape) == 3 and wanted.startswith("(C") and shape[2] in (1, 3, 4):
        return f"{given}; channels come first in a tensor, so call .permute(2, 0, 1)"
    if len(shape) == 3 and wanted.startswith("(H") and shape[0] in (1, 3, 4):
        return f"{given}; channels come last in an array, so call .transpose(1, 2, 0)"
    return given + ("; call .unsqueeze(0) on a grey image" if len(shape) == 2 else "")


def _type_advice(dtype: object) -> str:
    name = str(dtype).removeprefix("torch.")
    return f"type {name} is ambiguous; convert it to uint8, uint16 or float in [0, 1]"
