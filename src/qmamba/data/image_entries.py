"""JSON files that hold a list of entries about images, whatever an entry is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

from ..errors import DataSetError


class AboutImage(Protocol):
    """What an entry becomes."""

    @property
    def path(self) -> Path:
        """Path of the image."""
        ...


T = TypeVar("T", bound=AboutImage)


def read_entries(
    file: str | Path, images: str | Path | None, what: str, make: Callable[[Any, str, Path], T]
) -> list[T]:
    """Read a JSON list, one object for each entry, and check that the images exist.

    Args:
        file: JSON.
        images: folder that the paths of images are relative to; by default that of the file.
        what: the entries, in the plural, for errors.
        make: called with an entry, its name for errors, and the folder of the images.

    Raises:
        DataSetError: the file cannot be read or holds no list, an error of ``make``, or images are missing.
    """
    file = Path(file)
    root = file.parent if images is None else Path(images)
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataSetError(f"{file} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise DataSetError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise DataSetError(f"{file} must hold a list of {what}, got {shown(entries)}")
    found = [make(entry, f"{file}: entry {i}", root) for i, entry in enumerate(entries)]
    missing = [each.path for each in found if not each.path.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataSetError(f"{missing[0]}{more} of {file} do not exist; give the folder of the images")
    return found


def path_below(root: Path, image: Any, where: str) -> Path:
    """Return the path of an image in a folder; one that leads out of it is refused."""
    text = image if isinstance(image, str) else ""
    if not text or PurePosixPath(text).is_absolute() or ".." in Path(text).parts:
        raise DataSetError(f"{where} must be a path below the folder of images, got {shown(image)}")
    return root / text


def shown(value: Any) -> str:
    """Return a value as errors show it, cut after 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
