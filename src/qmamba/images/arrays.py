"""Convert NumPy arrays and tensors to planes (3, H, W)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from qmamba.errors import ImageError
from qmamba.images.pillow import check_size, read_image

_OVERSHOOT = 1e-3  # tolerated excess over [0, 1] from resampling and float rounding; clipped silently
_CHANNELS = (1, 2, 3, 4)


def from_array(array: np.ndarray, max_pixels: int) -> torch.Tensor:
    """Decode an array (H, W) or (H, W, C); `qmamba.images.decode` says what it may hold."""
    name = "array"
    values = _plain(array, name)
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[2] not in _CHANNELS:
        raise ImageError(f"{name}: {_shape_advice(array.shape, '(H, W) or (H, W, C)')}")
    check_size(values.shape[0], values.shape[1], max_pixels, name)
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:  # of either byte order
        values = values.astype(np.float32) / np.float32(65535)
    elif values.dtype == np.bool_:
        values = values.astype(np.uint8) * np.uint8(255)
    elif values.dtype.kind == "f":
        with np.errstate(over="ignore"):  # a float64 beyond float32 is out of range anyway
            values = values.astype(np.float32)
    elif values.dtype != np.uint8:
        raise ImageError(f"{name}: {_type_advice(values.dtype)}")
    # order="C" also undoes negative strides and foreign byte orders, which torch cannot hold.
    planes = torch.from_numpy(np.array(np.moveaxis(values, 2, 0), order="C", copy=True))
    return _three_channels(planes if planes.dtype == torch.uint8 else unit_range(planes, name))


def _plain(array: np.ndarray, name: str) -> np.ndarray:
    """Return the values of an array of any subclass; ImageError for those that have none."""
    if isinstance(array, np.ma.MaskedArray):
        hidden = int(np.ma.getmaskarray(array).sum())
        if hidden:
            raise ImageError(
                f"{name}: {hidden} masked elements have no value; pass array.filled(value) with one to show"
            )
        array = np.ma.getdata(array)
    if array.dtype.names:
        raise ImageError(
            f"{name}: its elements have fields ({', '.join(array.dtype.names)}); pass "
            "numpy.lib.recfunctions.structured_to_unstructured(array)"
        )
    if array.dtype.kind == "O":
        raise ImageError(
            f"{name}: its elements are Python objects; pass array.astype(numpy.uint8) if they are numbers, "
            "or each of them by itself"
        )
    return np.asarray(array)


def from_tensor(tensor: torch.Tensor, max_pixels: int) -> torch.Tensor:
    """Decode a tensor (C, H, W); `qmamba.images.decode` says what it may hold."""
    name = "tensor"
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise ImageError(f"{name}: only dense tensors hold images; call .to_dense() or .dequantize()")
    if tensor.is_meta:
        raise ImageError(f"{name}: a tensor on the device 'meta' has no pixels; pass one with data")
    if tensor.ndim != 3 or tensor.shape[0] not in _CHANNELS:
        raise ImageError(f"{name}: {_shape_advice(tuple(tensor.shape), '(C, H, W)')}")
    check_size(tensor.shape[1], tensor.shape[2], max_pixels, name)
    if tensor.dtype == torch.uint8:
        return _three_channels(tensor)
    if tensor.dtype == torch.bool:
        return _three_channels(tensor.to(torch.uint8) * 255)
    if tensor.dtype == torch.uint16:
        return _three_channels(tensor.to(torch.float32) / 65535)
    if tensor.dtype.is_floating_point:
        return _three_channels(unit_range(tensor.to(torch.float32), name))
    raise ImageError(f"{name}: {_type_advice(tensor.dtype)}")


def _three_channels(planes: torch.Tensor) -> torch.Tensor:
    """Return (3, H, W) of (1 … 4, H, W): grey is repeated, alpha (the last of 2 or 4) is laid on white."""
    if planes.shape[0] in (1, 3):
        return planes.expand(3, -1, -1).contiguous()
    if planes.dtype == torch.uint8:
        # Through Pillow, so that an array scores as the file it was read from.
        image = Image.fromarray(planes.permute(1, 2, 0).contiguous().cpu().numpy())
        pixels = read_image(image, "tensor", image.width * image.height)
        return torch.from_numpy(np.moveaxis(pixels, 2, 0).copy()).to(planes.device)
    colours, alpha = planes[:-1], planes[-1:]
    return (colours * alpha + (1 - alpha)).expand(3, -1, -1).contiguous()


def unit_range(values: torch.Tensor, name: str) -> torch.Tensor:
    """Return floats in [0, 1]; those that leave it by rounding are clipped, others are an ImageError."""
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
    given = f"shape {tuple(shape)} is not one image {wanted} with 1 to 4 channels"
    if len(shape) == 4:
        return f"{given}; pass the images one by one in a list"
    if len(shape) == 3 and wanted.startswith("(C") and shape[2] in _CHANNELS:
        return f"{given}; channels come first in a tensor, so call .permute(2, 0, 1)"
    if len(shape) == 3 and wanted.startswith("(H") and shape[0] in _CHANNELS:
        return f"{given}; channels come last in an array, so call .transpose(1, 2, 0)"
    if len(shape) == 3:
        return f"{given}; pass three of its bands, as red, green and blue"
    return given + ("; call .unsqueeze(0) on a grey image" if len(shape) == 2 else "")


def _type_advice(dtype: Any) -> str:
    name = str(dtype).removeprefix("torch.")
    return f"type {name} is ambiguous; convert it to uint8, uint16 or float in [0, 1]"
