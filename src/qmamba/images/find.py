"""Expand names (files, folders, patterns) to a list of image files in a stable order."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qmamba.errors import ArgumentError

# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".hif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
    ".jxl", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tif", ".tiff", ".webp",
})
# fmt: on
"""Suffixes of the files that a folder stands for. HEIC and JPEG XL need the extra `heif`, and say so."""
SHARD_SUFFIXES = frozenset({".parquet", ".tar"})
"""Files that hold many images; read by `qmamba.integrations.ray`."""


@dataclass
class Found:
    """The images found.

    Attributes:
        files: in order, each once.
        unreadable: folders that could not be read.
        empty: arguments that gave no file.
    """

    files: list[Path] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)


def natural(path: Path) -> tuple[list[list[tuple[int, int, str]]], str]:
    """Return a sort key that counts: `2.png` before `10.png`, a folder's files together, case last."""
    return [_pieces(part) for part in path.parts], str(path)


def _pieces(name: str) -> list[tuple[int, int, str]]:
    split = re.split(r"([0-9]+)", name.casefold())  # text, digits, text, digits, …
    return [(0, int(p), "") if i % 2 else (1, 0, p) for i, p in enumerate(split) if p]


def find_images(
    arguments: Iterable[str], *, recursive: bool, suffixes: frozenset[str] = IMAGE_SUFFIXES
) -> Found:
    """Expand the names that a user gives.

    A file stands for itself whatever its extension, and so does a name that does not exist. A folder stands
    for the files in it that end in one of `suffixes`, except hidden ones; with `recursive` also for those in
    its sub-folders, and without it a sub-folder that ends so counts as a file. Any other name with `*`, `?`
    or `[` is a pattern, with `**` for any depth, and its matches are treated as if they had been typed. Links
    to sub-folders are not followed, since they may form cycles.

    Raises:
        ArgumentError: a name is empty; as a path it would be the current folder.
    """
    found, seen = Found(), set[str]()
    arguments = list(arguments)
    if "" in arguments:
        raise ArgumentError('a path must not be empty; give "." for the current folder')
    # A single folder has each file once, and millions of names take memory.
    once = len(arguments) == 1 and os.path.isdir(arguments[0])  # noqa: PTH112
    for argument in arguments:
        unreadable = len(found.unreadable)
        is_empty = True
        for path in _expand(argument, recursive, suffixes, found.unreadable):
            is_empty = False
            if not once:
                key = os.path.abspath(path)  # noqa: PTH100 - resolves no links: two names, two images
                if key in seen:
                    continue
                seen.add(key)
            found.files.append(path)
        if is_empty and len(found.unreadable) == unreadable:
            found.empty.append(argument)
    return found


def _expand(
    argument: str, recursive: bool, suffixes: frozenset[str], unreadable: list[str]
) -> Iterator[Path]:
    path = Path(argument)
    if not os.path.lexists(path) and glob.has_magic(argument):
        for match in sorted(map(Path, set(_matches(argument))), key=natural):
            yield from _file_or_folder(match, recursive, suffixes, unreadable)
    else:
        yield from _file_or_folder(path, recursive, suffixes, unreadable)


def _matches(pattern: str) -> Iterator[str]:
    """Yield what matches a pattern. Not `glob` alone: its `**` follows links, and a cycle 40 times."""
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from glob.glob(pattern)  # noqa: PTH207 - Path.glob takes no absolute pattern
        return
    depth = parts.index("**")
    above, below = parts[:depth], parts[depth + 1 :]
    for root in glob.glob(os.path.join(*above)) if above else [""]:  # noqa: PTH118, PTH207
        for folder, folders, files in os.walk(root or os.curdir):
            folders[:] = [name for name in folders if not name.startswith(".")]
            here = "" if folder == os.curdir else folder.removeprefix(os.path.join(os.curdir, ""))  # noqa: PTH118
            if below:
                yield from _matches(os.path.join(glob.escape(here), *below))  # noqa: PTH118
            else:
                yield from (os.path.join(here, name) for name in files if not name.startswith("."))  # noqa: PTH118


def _file_or_folder(
    path: Path, recursive: bool, suffixes: frozenset[str], unreadable: list[str]
) -> Iterator[Path]:
    if not os.path.isdir(path):  # noqa: PTH112 - unlike Path.is_dir, never raises (names that are too long)
        yield path
        return
    yield from _within(path, recursive, suffixes, unreadable)


def _within(folder: Path, recursive: bool, suffixes: frozenset[str], unreadable: list[str]) -> Iterator[Path]:
    """Yield the files in a folder, one folder after the other: only one folder's sort keys are in memory."""
    try:
        with os.scandir(folder) as entries:
            found = [(entry.name, _is_folder(entry), entry.is_symlink()) for entry in entries]
    except OSError as error:
        unreadable.append(str(error.filename or folder))
        return
    found = [entry for entry in found if not entry[0].startswith(".")]
    for name, is_folder, is_link in sorted(found, key=lambda entry: (_pieces(entry[0]), entry[0])):
        if is_folder and recursive:
            if not is_link:
                yield from _within(Path(folder, name), recursive, suffixes, unreadable)
        # A folder named like an image, when not searched, counts as a file: its row says what it is.
        elif os.path.splitext(name)[1].lower() in suffixes:  # noqa: PTH122 - no Path for what is dropped
            yield Path(folder, name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
