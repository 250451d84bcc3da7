"""A small TIFF writer: any photometric interpretation, number of bits, planar configuration, byte order."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Compress = Callable[[bytes], bytes]
NONE, LZW, DEFLATE, PACKBITS = 1, 5, 8, 32773
_CODES = {"B": 1, "H": 3, "I": 4, "Q": 16}


def pack(samples: np.ndarray, bits: int, kind: str = "u", order: str = "<") -> bytes:
    """Pack rows of samples (rows, n): whole bytes in the byte order, other depths packed, each row padded."""
    if bits in (8, 16, 32, 64):
        return samples.astype(f"{order}{kind}{bits // 8}").tobytes()
    shifts = np.arange(bits - 1, -1, -1)
    digits = samples.astype(np.int64)[..., None] >> shifts & 1
    return np.packbits(digits.reshape(len(samples), -1).astype(np.uint8), axis=1).tobytes()


def pack_bits(data: bytes) -> bytes:
    """Return PackBits, literal runs only."""
    return b"".join(
        bytes([len(run) - 1]) + run for run in (data[i : i + 128] for i in range(0, len(data), 128))
    )


def lzw(data: bytes) -> bytes:
    """Return LZW whose table is cleared before its codes need more than nine bits."""
    codes = [256]
    for i, byte in enumerate(data):
        if i and i % 250 == 0:
            codes.append(256)
        codes.append(byte)
    codes.append(257)
    return np.packbits(
        np.array([[code >> b & 1 for b in range(8, -1, -1)] for code in codes], np.uint8)
    ).tobytes()


COMPRESS: Mapping[int, Compress] = {NONE: bytes, LZW: lzw, DEFLATE: zlib.compress, PACKBITS: pack_bits}


def differences(samples: np.ndarray, bits: int) -> np.ndarray:
    """Return what predictor 2 stores: what a row adds to the pixel before, modulo the depth."""
    wide = samples.astype(np.int64)
    return np.diff(wide, axis=1, prepend=np.zeros_like(wide[:, :1])) % (1 << bits)


def tiff(
    samples: np.ndarray,
    photometric: int,
    *,
    bits: int = 8,
    kind: str = "u",
    planar: int = 1,
    order: str = "<",
    compression: int = NONE,
    predictor: int = 1,
    rows: int | None = None,
    tile: tuple[int, int] | None = None,
    fill_order: int = 1,
    big: bool = False,
    tags: Mapping[int, tuple[str, Any]] | None = None,
) -> bytes:
    """Return a file of one image.

    Args:
        samples: (height, width, samples per pixel), integers of that many bits or, with kind "f", floats.
        photometric: the number of the photometric interpretation.
        bits: of each sample.
        kind: "u", "i" (two's complement) or "f".
        planar: 1, samples of a pixel together; 2, planes one after the other.
        order: "<" or ">".
        compression, predictor, fill_order: the numbers that the format gives them.
        rows: of a strip; by default a single strip per plane.
        tile: rows and columns of tiles, in place of strips.
        big: BigTIFF.
        tags: further fields, or in place of others: number to (struct's letter, value or values).
    """
    height, width, count = samples.shape
    parts = [samples] if planar == 1 else [samples[..., i : i + 1] for i in range(count)]
    high, wide = tile or (rows or height, width)
    blocks = []
    for part in parts:
        for top, left in itertools.product(range(0, height, high), range(0, width, wide)):
            block = part[top : top + high, left : left + wide]
            if tile:
                missing = [(0, high - block.shape[0]), (0, wide - block.shape[1]), (0, 0)]
                block = np.pad(block, missing, mode="edge")
            blocks.append(_encoded(block, bits, kind, order, compression, predictor, fill_order))
    fields: dict[int, tuple[str, Any]] = {
        256: ("I", width), 257: ("I", height), 258: ("H", [bits] * count), 259: ("H", compression),
        262: ("H", photometric), 277: ("H", count), 284: ("H", planar),
    }  # fmt: skip
    if kind != "u":
        fields[339] = ("H", [{"i": 2, "f": 3}[kind]] * count)
    if predictor != 1:
        fields[317] = ("H", predictor)
    if fill_order != 1:
        fields[266] = ("H", fill_order)
    fields |= {322: ("I", wide), 323: ("I", high)} if tile else {278: ("I", high)}
    offsets, lengths = (324, 325) if tile else (273, 279)
    fields |= {offsets: ("I", [0] * len(blocks)), lengths: ("I", [len(block) for block in blocks])}
    return _assemble(fields | dict(tags or {}), offsets, blocks, order, big)


def _encoded(
    block: np.ndarray, bits: int, kind: str, order: str, compression: int, predictor: int, fill_order: int
) -> bytes:
    """Return a strip or tile (rows, columns, samples) as the file has it."""
    if predictor == 2:
        block = differences(block, bits)
    data = pack(block.reshape(len(block), -1), bits, kind, order)
    if predictor == 3:
        data = _by_bytes(block, bits)
    data = COMPRESS[compression](data)
    if fill_order == 2:
        bits_of_data = np.unpackbits(np.frombuffer(data, np.uint8))
        data = np.packbits(bits_of_data, bitorder="little").tobytes()
    return data


def _by_bytes(block: np.ndarray, bits: int) -> bytes:
    """Return what predictor 3 stores: each row's most significant bytes first, then their differences."""
    high, wide, count = block.shape
    rows = block.reshape(high, -1).astype(f">f{bits // 8}").view(np.uint8).reshape(high, wide * count, -1)
    planes = rows.transpose(0, 2, 1).reshape(high, -1, count)
    return differences(planes, 8).astype(np.uint8).tobytes()


def _assemble(
    fields: dict[int, tuple[str, Any]], offsets: int, blocks: list[bytes], order: str, big: bool
) -> bytes:
    """Put together header, directory, values that do not fit in it, and the pixels."""
    letter, room, head = ("Q", 8, 16) if big else ("I", 4, 8)
    values = {tag: (letter, np.ravel(value).tolist()) for tag, (letter, value) in sorted(fields.items())}
    table = head + (8 if big else 2) + (20 if big else 12) * len(values) + room
    raw = {tag: _raw(letter, numbers, order) for tag, (letter, numbers) in values.items()}
    places, at = {}, table
    for tag, data in raw.items():
        if len(data) > room:
            places[tag] = at
            at += len(data) + len(data) % 2
    starts = []
    for block in blocks:
        starts.append(at)
        at += len(block)
    if offsets in raw:
        raw[offsets] = _raw(values[offsets][0], starts[: len(values[offsets][1])], order)
    mark = b"II" if order == "<" else b"MM"
    if big:
        out = mark + struct.pack(order + "HHHQ", 43, 8, 0, 16) + struct.pack(order + "Q", len(values))
    else:
        out = mark + struct.pack(order + "HI", 42, 8) + struct.pack(order + "H", len(values))
    for tag, (kind, numbers) in values.items():
        data = struct.pack(order + letter, places[tag]) if tag in places else raw[tag].ljust(room, b"\0")
        out += struct.pack(order + "HH" + letter, tag, _CODES[kind], len(numbers)) + data
    out += struct.pack(order + letter, 0)
    out += b"".join(raw[tag] + b"\0" * (len(raw[tag]) % 2) for tag in places)
    return out + b"".join(blocks)


def _raw(letter: str, numbers: list[int], order: str) -> bytes:
    return struct.pack(f"{order}{len(numbers)}{letter}", *numbers)
