"""Scores in a folder of parquet files, written in parts, so that an interrupted run can be resumed."""

from __future__ import annotations

import io
import json
import os
import time
import uuid
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from qmamba.checkpoints.safetensors_file import replace_file
from qmamba.errors import ScoresError
from qmamba.scoring.folder_lock import FolderLock

if TYPE_CHECKING:
    from qmamba.scoring.scorer import Scorer

PART_ROWS, PART_SECONDS = 2000, 60.0
"""A part is written when it has this many rows, or this many seconds after the last one."""

_SETTINGS = b"qmamba"  # key of the files' metadata


@dataclass(frozen=True)
class Place:
    """Identity of an image: its file, and in a file of many images its zero-based index and its name.

    Two places are the same image when path and index are equal.
    """

    path: bytes
    index: int | None = None
    member: str | None = None


def absolute(path: Path) -> Path:
    """Return the name by which rows know a file, whatever folder a run was started from.

    Links keep their names, since two names are two images; `..` is resolved as the system does.
    """
    return path.parent.resolve() / path.name if ".." in path.parts else path.absolute()


def settings_of(scorer: Scorer, max_pixels: int | None) -> dict[str, Any]:
    """Return all that decides scores and errors, ready for JSON; rows of two runs may mix if it is equal."""
    from qmamba.images import MAX_PIXELS

    config = scorer.adapter_config
    return {
        "model": scorer.name,
        "weights_sha256": scorer.base_sha256(),
        "adapter": None if config is None else [config.method, config.weights_sha256],
        "calibration": scorer.calibration.to_dict(),
        "preprocessing": scorer.config.preprocessing.to_dict(),
        "protocol": scorer.protocol.to_dict(),
        "dtype": str(next(scorer.parameters()).dtype).removeprefix("torch."),
        "max_pixels": MAX_PIXELS if max_pixels is None else max_pixels,
        **({"draft": True} if scorer.draft else {}),  # folders of earlier versions have no such entry
    }


class ScoreParts:
    """A folder of parquet files with one row per image.

    Columns: `path` (absolute, text; bytes of a name that are not UTF-8 are escaped), `index` and `member`
    (zero-based index and name of an image in a file of many, else null), `score` (float32) and `error`
    (text), of which one is null, and `path_bytes` (null unless the path is not UTF-8).

    Each file is written completely or not at all. The end of the context writes the rows that are left, also
    after an error, and lets other processes write to the folder.

    Args:
        folder: is created if it does not exist, and removed again if there was no row to write.
        settings: of `settings_of`.
        resume: continue with the rows of earlier runs; otherwise a folder with parts is refused.

    Attributes:
        rows, failed: number of rows, and of those with an error, including those of earlier runs.

    Raises:
        ScoresError: another process writes to the folder; parts are damaged, or of other settings; pyarrow is
            not installed; the folder is a file.
    """

    def __init__(
        self, folder: str | os.PathLike[str], settings: dict[str, Any], *, resume: bool = True
    ) -> None:
        self._arrow, self._parquet = _pyarrow()
        self.folder = Path(folder)
        self.rows = self.failed = 0
        self._settings = json.dumps(settings, sort_keys=True)
        self._files: set[bytes] = set()
        self._members: dict[bytes, set[int]] = defaultdict(set)
        self._waiting: list[dict[str, Any]] = []
        self._written = time.monotonic()
        if self.folder.exists() and not self.folder.is_dir():
            raise ScoresError(f"{self.folder}: must be a folder, got a file; give a folder for the scores")
        self._lock = FolderLock(self.folder)  # before reading: nobody may add rows after it
        try:
            parts = sorted(self.folder.glob("*.parquet"))
            if parts and not resume:
                raise ScoresError(f"{self.folder}: holds scores already; give another folder, or resume")
            self._next = len(parts)
            for part in parts:
                self._read(part)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> ScoreParts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.flush()
        finally:
            self._lock.release()

    def __contains__(self, place: Place) -> bool:
        """Return whether an image has a row."""
        return place.path in self._files if place.index is None else place.index in self.done_in(place.path)

    def done_in(self, path: bytes) -> set[int]:
        """Return the indices of those images in a file of many that have rows."""
        return self._members.get(path, set())

    def add(self, place: Place, score: float | None, error: str | None) -> bool:
        """Add a row, which is written later with others; return False if the image has one already."""
        if place in self:
            return False
        self._mark(place.path, place.index)
        text, exact = _text_of(place.path)
        self._waiting.append(
            {**asdict(place), "path": text, "score": score, "error": error, "path_bytes": exact}
        )
        self.rows += 1
        self.failed += error is not None
        if len(self._waiting) >= PART_ROWS or time.monotonic() - self._written >= PART_SECONDS:
            self.flush()
        return True

    def flush(self) -> None:
        """Write the rows that are not written yet.

        Raises:
            ScoresError: the folder cannot be written.
        """
        if not self._waiting:
            return
        table = self._arrow.Table.from_pylist(self._waiting, schema=self._schema())
        buffer = io.BytesIO()
        self._parquet.write_table(table, buffer, compression="zstd")
        # A unique name: no run overwrites another's part.
        name = f"part-{self._next:06d}-{uuid.uuid4().hex[:8]}.parquet"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(self.folder / name, buffer.getvalue())
        except OSError as error:
            raise ScoresError(f"{self.folder}: cannot write scores ({error.strerror or error})") from error
        self._next += 1
        self._waiting.clear()
        self._written = time.monotonic()

    def _mark(self, path: bytes, index: int | None) -> None:
        if index is None:
            self._files.add(path)
        else:
            self._members[path].add(index)

    def _schema(self) -> Any:
        a = self._arrow
        columns = [
            ("path", a.string()), ("index", a.int64()), ("member", a.string()),
            ("score", a.float32()), ("error", a.string()), ("path_bytes", a.binary()),
        ]  # fmt: skip
        return a.schema(columns, metadata={_SETTINGS: self._settings.encode()})

    def _read(self, part: Path) -> None:
        try:
            with self._parquet.ParquetFile(part) as file:
                settings = (file.schema_arrow.metadata or {}).get(_SETTINGS, b"").decode()
                table = file.read(["path", "index", "error", "path_bytes"])
        except (OSError, ValueError, KeyError, self._arrow.ArrowException) as error:
            raise ScoresError(
                f"{part}: damaged, or not a file of scores; delete it, and its images are scored again"
            ) from error
        if settings != self._settings:
            why = _difference(settings, self._settings)
            raise ScoresError(f"{self.folder}: {why}; give another folder for these scores")
        for path, index, exact in zip(
            *(table[name].to_pylist() for name in ("path", "index", "path_bytes")), strict=True
        ):
            self._mark(path.encode() if exact is None else exact, index)
        self.rows += len(table)
        self.failed += len(table) - table["error"].null_count


def _text_of(path: bytes) -> tuple[str, bytes | None]:
    """Return a path as text, and its bytes where they are not UTF-8."""
    try:
        return path.decode(), None
    except UnicodeDecodeError:
        return path.decode(errors="backslashreplace"), path


def _difference(theirs: str, ours: str) -> str:
    """Return which setting differs between the rows in the folder and this run."""
    if not theirs:
        return "holds other parquet files"
    before, now = json.loads(theirs), json.loads(ours)
    key = next((key for key in now if before.get(key) != now[key]), "format")
    shown = [repr(side.get(key)) for side in (before, now)]
    change = f"{key} was {shown[0]} and is {shown[1]}" if max(map(len, shown)) <= 70 else f"{key} differs"
    return f"its scores were made with other settings ({change})"


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ScoresError('parquet needs pyarrow: pip install "qmamba[parquet]"') from error
    return pyarrow, pyarrow.parquet
