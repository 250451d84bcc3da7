"""Files that hold many images, read so that what is damaged in one costs nothing else: parquet and tar."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ..errors import ImageError, ScoresError
from ..images import printable
from ..images.find import IMAGE_SUFFIXES
from ..images.pillow import check_bytes

_ROWS = 16  # of a parquet file that are in memory together


class Member(NamedTuple):
    """An image in a file of many, or why it cannot be had: exactly one of `image` and `error` is not None.

    Attributes:
        place: its number among the images of the file.
        name: its name there, if it has one.
        image: bytes of an image file, or a path.
        error: one line.
    """

    place: int
    name: str | None
    image: bytes | str | None
    error: str | None


def members(path: str, done: set[int], *, column: str | None, max_pixels: int) -> Iterator[Member]:
    """The images of a parquet or tar file, in order, without those that are done.

    What cannot be read is a member with an error: an image, or a place behind which there is nothing more.
    Their number is one more than the last index.

    Args:
        path: ends in .parquet or .tar.
        done: indices that are passed over without being read; the last index still counts.
        column: of a parquet file; by default "image", or the only one that can hold images.
        max_pixels: a member of a tar file larger than an image of so many pixels needs is not read.
    """
    if path.lower().endswith(".tar"):
        return _of_tar(path, done, max_pixels)
    return _of_parquet(path, done, column)


def _of_tar(path: str, done: set[int], max_pixels: int) -> Iterator[Member]:
    index = 0
    try:
        # Opened here, so that what lies behind the last member can be looked at.
        with Path(path).open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for info in archive:
                archive.members.clear()  # type: ignore[attr-defined]  # it would grow with the archive
                if not info.isreg() or PurePosixPath(info.name).suffix.lower() not in IMAGE_SUFFIXES:
                    continue
                if index not in done:
                    where = f"{printable(path)}, {printable(info.name)}"
                    yield _of_archive(archive, info, index, where, max_pixels)
                index += 1
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError("what follows is no member")
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
    """A cell holds bytes, a path, or both as Hugging Face's data sets have them."""
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
    holds = [
        field.name
        for field in schema
        if any(kind(field.type) for kind in binary)
        or (pyarrow.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
    ]
    if column is not None or len(holds) != 1:
        raise ScoresError(f"no column {wanted!r}; its columns: {', '.join(schema.names)}")
    return str(holds[0])


def _unreadable(where: str, place: str, error: Exception) -> str:
    reason = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
    return f"{where}: cannot be read{place} ({reason})"
