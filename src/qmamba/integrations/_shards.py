"""Read images from parquet and tar files; a damaged image never loses the others."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ..errors import ImageError, ScoresError
from ..images import printable
from ..images.find import IMAGE_SUFFIXES
from ..images.pillow import check_bytes

_ROWS = 16  # rows of a parquet file in memory at a time


class Member(NamedTuple):
    """An image in a shard, or why it cannot be read: exactly one of `image` and `error` is not None.

    Attributes:
        place: zero-based index of the image in its shard.
        name: name of the image in the shard, or None.
        image: bytes of an image file, or a path.
        error: reason on one line.
    """

    place: int
    name: str | None
    image: bytes | str | None
    error: str | None


def members(path: str, done: set[int], *, column: str | None, max_pixels: int) -> Iterator[Member]:
    """Yield the images of a parquet or tar file, in order, except those already done.

    An image that cannot be read is a member with an error, and so is the point where a damaged shard ends.
    The number of images is the last index plus one.

    Args:
        path: a file whose name ends in .parquet or .tar.
        done: indices to skip without reading.
        column: column of a parquet file; by default "image", or the only one that can hold images.
        max_pixels: tar members larger than an image of this many pixels needs are not read.
    """
    if path.lower().endswith(".tar"):
        return _of_tar(path, done, max_pixels)
    return _of_parquet(path, done, column)


def _of_tar(path: str, done: set[int], max_pixels: int) -> Iterator[Member]:
    index = 0
    try:
        # Opened here, so that the bytes after the last member can be checked.
        with Path(path).open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for info in archive:
                archive.members.clear()  # type: ignore[attr-defined]  # the list would grow with the archive
                if not info.isreg() or PurePosixPath(info.name).suffix.lower() not in IMAGE_SUFFIXES:
                    continue
                if index not in done:
                    where = f"{printable(path)}, {printable(info.name)}"
                    yield _of_archive(archive, info, index, where, max_pixels)
                index += 1
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError("invalid data after the last member")
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        yield Member(index, None, None, _unreadable(printable(path), f" after {index} images", error))


def _of_archive(
    archive: tarfile.TarFile, info: tarfile.TarInfo, index: int, where: str, max_pixels: int
) -> Member:
    # Bytes of a name that are not UTF-8 are escaped, as they are in paths.
    name = info.name.encode("utf-8", "surrogateescape").decode(errors="backslashreplace")
    try:
        check_bytes(info.size, max_pixels, where)
        content = archive.extractfile(info)
        data = b"" if content is None else content.read()
    except ImageError as error:
        return Member(index, name, None, str(error))
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        return Member(index, name, None, _unreadable(where, "", error))
    return Member(index, name, data, None)


def _of_parquet(path: str, done: set[int], column: str | None) -> Iterator[Member]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    failures = (OSError, ValueError, KeyError, ArrowException)
    try:
        file = ParquetFile(path)
        chosen = _column_of(file.schema_arrow, column)
    except (*failures, ScoresError) as error:
        yield Member(0, None, None, _unreadable(printable(path), "", error))
        return
    with file:
        index = 0
        for group in range(file.num_row_groups):
            end = index + file.metadata.row_group(group).num_rows
            if done.issuperset(range(index, end)):
                index = end
                continue
            try:
                for batch in file.iter_batches(_ROWS, row_groups=[group], columns=[chosen]):
                    for value in batch.column(0).to_pylist():
                        if index not in done:
                            yield _of_cell(path, index, value)
                        index += 1
            except failures as error:
                reason = _unreadable(printable(path), f" in rows {index} to {end - 1}", error)
                yield from (Member(i, None, None, reason) for i in range(index, end) if i not in done)
                index = end


def _of_cell(path: str, index: int, value: Any) -> Member:
    """Return the member of a cell: bytes, a path, or a dict of both as in Hugging Face datasets."""
    name = None
    if isinstance(value, dict):
        name, data = value.get("path"), value.get("bytes")
        value = name if data is None else data
    if not isinstance(value, (bytes, str)):
        return Member(index, name, None, f"{printable(path)}, row {index}: no image in this row")
    return Member(index, name, value, None)


def _column_of(schema: Any, column: str | None) -> str:
    import pyarrow

    wanted = column or "image"
    if wanted in schema.names:
        return wanted
    binary = (pyarrow.types.is_binary, pyarrow.types.is_large_binary)
    candidates = [
        field.name
        for field in schema
        if any(kind(field.type) for kind in binary)
        or (pyarrow.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
    ]
    if column is not None or len(candidates) != 1:
        raise ScoresError(f"no column {wanted!r}; pass column=, one of {', '.join(schema.names)}")
    return str(candidates[0])


def _unreadable(where: str, place: str, error: Exception) -> str:
    reason = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
    return f"{where}: cannot be read{place} ({reason})"
