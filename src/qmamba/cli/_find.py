"""The images that were named on the command line."""

from __future__ import annotations

from pathlib import Path

import typer

from qmamba.cli._shared import USAGE, note
from qmamba.images.find import IMAGE_SUFFIXES, SHARD_SUFFIXES, find_images


def named_images(paths: list[str], recursive: bool, *, shards: bool = False) -> tuple[list[Path], bool]:
    """The images to score, and whether everything that was named could be searched.

    With `shards` also files that hold many images.

    What gave no images is mentioned on stderr; without any image the program ends.
    """
    suffixes = IMAGE_SUFFIXES | SHARD_SUFFIXES if shards else IMAGE_SUFFIXES
    found = find_images(paths, recursive=recursive, suffixes=suffixes)
    for name in found.unreadable:
        note(f"the folder {name} cannot be read; check its permissions")
    hint = "" if recursive else "; add --recursive to look into sub-folders"
    for name in found.empty:
        note(f"no images in {name}{hint}" if Path(name).is_dir() else f"nothing matches {name}")
    if not found.files:
        note("no images to score")
        raise typer.Exit(USAGE)
    return found.files, not found.unreadable
