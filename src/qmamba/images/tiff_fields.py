"""TIFF: the fields of an image, from a file or as Pillow has read them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

_TYPES = {1: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_MAX_FIELDS, _MAX_FIELD_BYTES = 4096, 1 << 26


class Fields:
    """The fields of one image of a file, by tag."""

    def __contains__(self, tag: int) -> bool:
        raise NotImplementedError

    def raw(self, tag: int) -> bytes:
        """Return the bytes of a field; empty where it is missing."""
        raise NotImplementedError

    def numbers(self, tag: int, *default: int) -> tuple[int, ...]:
        """Return the integers of a field, or the default where it is missing or of another type."""
        raise NotImplementedError

    def number(self, tag: int, default: int) -> int:
        """Return the first integer of a field."""
        return self.numbers(tag, default)[0]


class Directory(Fields):
    """An image file directory in a file.

    Args:
        stream: the file.
        order: "<" or ">".
        is_big: with 64-bit offsets.
        offset: of the directory.

    Attributes:
        offset, next: offsets of this directory and of the following one, 0 for none.

    Raises:
        ValueError, struct.error: damaged beyond reading.
    """

    def __init__(self, stream: IO[bytes], order: str, is_big: bool, offset: int) -> None:
        self._stream, self._order, self.offset = stream, order, offset
        count, entry, letter = ("Q", 20, "Q") if is_big else ("H", 12, "I")
        room = struct.calcsize(letter)
        stream.seek(offset)
        (fields,) = struct.unpack(order + count, stream.read(struct.calcsize(count)))
        if fields > _MAX_FIELDS:
            raise ValueError(f"{fields} fields")
        table = stream.read(entry * fields)
        if len(table) < entry * fields:
            raise ValueError("the directory is cut off")
        link = stream.read(room)  # some writers leave it out at the end of a file
        self.next = struct.unpack(order + letter, link)[0] if len(link) == room else 0
        self._fields: dict[int, tuple[int, int, bytes]] = {}
        for start in range(0, len(table), entry):
            tag, kind = struct.unpack(order + "HH", table[start : start + 4])
            (number,) = struct.unpack(order + letter, table[start + 4 : start + entry - room])
            self._fields.setdefault(tag, (kind, number, table[start + entry - room : start + entry]))

    def __contains__(self, tag: int) -> bool:
        return tag in self._fields

    def raw(self, tag: int) -> bytes:
        kind, number, value = self._fields.get(tag, (1, 0, b""))
        size = number * struct.calcsize(_TYPES[kind]) if kind in _TYPES else 0
        if size <= len(value):
            return value[:size]
        if size > _MAX_FIELD_BYTES:
            raise ValueError(f"field {tag} has {size} bytes")
        self._stream.seek(struct.unpack(self._order + ("Q" if len(value) == 8 else "I"), value)[0])
        data = self._stream.read(size)
        if len(data) < size:
            raise ValueError(f"field {tag} is cut off")
        return data

    def numbers(self, tag: int, *default: int) -> tuple[int, ...]:
        data = self.raw(tag)
        if not data:
            return default
        letter = _TYPES[self._fields[tag][0]]
        return tuple(np.frombuffer(data, np.dtype(self._order + letter)).tolist())

    @property
    def is_reduced(self) -> bool:
        """Whether this is a smaller version of another image of the file, or a mask of one."""
        return bool(self.number(254, 0) & 5) or self.number(255, 1) == 2


class PillowFields(Fields):
    """The fields that Pillow has read of an open image, `TiffImageFile.tag_v2`."""

    def __init__(self, tags: Mapping[int, Any]) -> None:
        self._tags = tags

    def __contains__(self, tag: int) -> bool:
        return tag in self._tags

    def raw(self, tag: int) -> bytes:
        value = self._tags.get(tag, b"")
        return value if isinstance(value, bytes) else b""

    def numbers(self, tag: int, *default: int) -> tuple[int, ...]:
        value = self._tags.get(tag)
        values = tuple(value) if isinstance(value, (tuple, bytes)) else (value,)
        return values if values and all(isinstance(each, int) for each in values) else default
