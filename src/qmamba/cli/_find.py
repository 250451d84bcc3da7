"""The images that were named on the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from qmamba.cli._shared import USAGE, note
from qmamba.images.find import IMAGE_SUFFIXES, SHARD_SUFFIXES, find_images


def named_images(paths: list[str], recursive: bool, *, shards: bool = False) -> tuple[list[Path], bool]:
    """Return the images to score, and whether every folder could be searched.

    Arguments without images are mentioned on stderr; without any image the program ends.

    Args:
        paths: files, folders and patterns.
        recursive: whether sub-folders are searched.
        shards: whether files that hold many images are included.
    """
    suffixes = IMAGE_SUFFIXES | SHARD_SUFFIXES if shards else IMAGE_SUFFIXES
    found = find_images(paths, recursive=recursive, suffixes=suffixes)
    for name in found.unreadable:
        note(f"the folder {name} cannot be read; check its permissions")
    for name in found.empty:
        note(_why_empty(name, recursive))
    if not found.files:
        note("no images to score")
        raise typer.Exit(USAGE)
    return found.files, not found.unreadable


def _why_empty(name: str, recursive: bool) -> str:
    folder = Path(name)
    if not folder.is_dir():
        return f"nothing matches {name}"
    if recursive:
        return f"no images in {name} or its sub-folders"
    if any(e.is_dir() and not e.is_symlink() and not e.name.startswith(".") for e in folder.iterdir()):
        return f"no images in {name} itself; add --recursive (-r) to search its sub-folders"
    return f"no images in {name}"


def opened(files: list[Path]) -> Iterator[Any]:
    """Yield the files to decode: standard input for `-`, and the others as they are."""
    for path in files:
        is_stdin = str(path) == "-" and not path.exists()
        yield sys.stdin.buffer if is_stdin else path
