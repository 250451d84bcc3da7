"""From what was typed (files, folders, patterns) to a list of image files in a stable order."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import typer

from qmamba.cli._shared import USAGE, note

# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
    ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tif", ".tiff", ".webp",
})
# fmt: on


@dataclass
class Found:
    """The files to score, in order and each once; unreadable folders; arguments that gave none."""

    files: list[Path] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)


def natural(path: Path) -> tuple[list[list[tuple[int, int, str]]], str]:
    """A sort key that counts: `2.png` before `10.png`, a folder's files together, case as a last resort."""

    def pieces(name: str) -> list[tuple[int, int, str]]:
        split = re.split(r"([0-9]+)", name.casefold())  # text, digits, text, digits, …
        return [(0, int(p), "") if i % 2 else (1, 0, p) for i, p in enumerate(split) if p]

    return [pieces(part) for part in path.parts], str(path)


def find_images(arguments: Iterable[str], *, recursive: bool) -> Found:
    """Expand the arguments of the command line.

    A file stands for itself whatever its extension, and so does a name that is not there (it gets a row that
    says so). A folder stands for the images in it, by extension, without hidden ones; with `recursive`, its
    sub-folders' too. Else, `*`, `?` or `[` make it a pattern, with `**` for any depth, and what matches is
    treated as if it had been typed. Neither follows links to folders that it meets on its way down, which
    may lead round in circles.
    """
    found = Found()
    seen: set[str] = set()
    for argument in arguments:
        unreadable = len(found.unreadable)
        paths = list(_expand(argument, recursive, found.unreadable))
        if not paths and len(found.unreadable) == unreadable:
            found.empty.append(argument)
        for path in paths:
            key = os.path.abspath(path)  # noqa: PTH100 - resolves no links: two names of a file are two images
            if key not in seen:
                seen.add(key)
                found.files.append(path)
    return found


def named_images(paths: list[str], recursive: bool) -> tuple[list[Path], bool]:
    """The images to score, and whether everything that was named could be searched.

    What gave no images is mentioned on stderr; without any image the program ends.
    """
    found = find_images(paths, recursive=recursive)
    for name in found.unreadable:
        note(f"the folder {name} cannot be read; check its permissions")
    hint = "" if recursive else "; add --recursive to look into sub-folders"
    for name in found.empty:
        note(f"no images in {name}{hint}" if Path(name).is_dir() else f"nothing matches {name}")
    if not found.files:
        note("no images to score")
        raise typer.Exit(USAGE)
    return found.files, not found.unreadable


def _expand(argument: str, recursive: bool, unreadable: list[str]) -> Iterator[Path]:
    path = Path(argument)
    if not os.path.lexists(path) and glob.has_magic(argument):
        for match in sorted(map(Path, set(_matches(argument))), key=natural):
            yield from _file_or_folder(match, recursive, unreadable)
    else:
        yield from _file_or_folder(path, recursive, unreadable)


def _matches(pattern: str) -> Iterator[str]:
    """What matches a pattern. Not `glob` alone: its `**` follows links, forty times round each circle."""
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


def _file_or_folder(path: Path, recursive: bool, unreadable: list[str]) -> Iterator[Path]:
    if not os.path.isdir(path):  # noqa: PTH112 - unlike Path.is_dir, never raises (names that are too long)
        yield path
        return
    images: list[Path] = []
    for folder, folders, files in os.walk(path, onerror=lambda e: unreadable.append(str(e.filename or path))):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        images += [
            Path(folder, name)
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES
        ]
    yield from sorted(images, key=natural)
