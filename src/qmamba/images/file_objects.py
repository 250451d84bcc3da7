"""Read objects that hold an image file: open files, streams, members of archives."""

from __future__ import annotations

from typing import Any

from qmamba.errors import ImageError
from qmamba.images.pillow import max_bytes

_PIECE = 1 << 22  # bytes read at a time


def content(file: Any, name: str, max_pixels: int) -> bytes:
    """Return all bytes of a file object, which is left where it was if it can seek."""
    try:
        position = _rewound(file)
        try:
            pieces = _pieces(file, max_bytes(max_pixels))
        finally:
            if position is not None:
                file.seek(position)
    except MemoryError:
        raise
    except Exception as error:
        # Objects that read from archives, sockets and clouds fail with errors of their own.
        raise unreadable(name, error) from error
    for piece in pieces:
        if not isinstance(piece, (bytes, bytearray, memoryview)):
            advice = "open it in mode 'rb'" + (", or pass its .buffer" if hasattr(file, "buffer") else "")
            raise ImageError(f"{name}: the file object gives {type(piece).__name__}, not bytes; {advice}")
    return b"".join(pieces)


def _rewound(file: Any) -> int | None:
    """Go to the start of a file object that can seek; return where it was.

    So a buffer just written to works, and a second call gives the same score. Not all that can seek have a
    `seekable` (mmap before Python 3.13).
    """
    can_seek = hasattr(file, "seek") and hasattr(file, "tell")
    if not (file.seekable() if hasattr(file, "seekable") else can_seek):
        return None
    position: int = file.tell()
    file.seek(0)
    return position


def _pieces(file: Any, limit: int) -> list[Any]:
    """Read a file object to its end, or until it has more bytes than the limit."""
    try:
        piece = file.read(_PIECE)
    except TypeError:  # its `read` takes no size
        return [file.read()]
    pieces, size = [piece], 0
    while piece and size <= limit:
        size += len(piece)
        piece = file.read(_PIECE)
        if piece:
            pieces.append(piece)
    return pieces


def unreadable(name: str, error: Exception) -> ImageError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ImageError(f"{name}: the file object cannot be read ({reason})")
