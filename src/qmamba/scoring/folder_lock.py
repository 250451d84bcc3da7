"""One writer per folder: a lock file that the operating system frees when its process ends."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from qmamba.errors import ScoresError

NAME = ".qmamba.lock"  # readers of parquet folders skip names that begin with a dot
_BUSY = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


class FolderLock:
    """The only writer of a folder, from its creation until `release`.

    Args:
        folder: is created if it does not exist.

    Raises:
        ScoresError: another process or object holds the lock, or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: int | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # A holder that releases removes the file: one that was opened before must be opened again.
            while self._file is None:
                self._file = self._open()
        except OSError as error:
            raise ScoresError(f"{folder}: cannot write scores ({error.strerror or error})") from error

    def _open(self) -> int | None:
        path = self._folder / NAME
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(file)
            if path.exists() and os.path.samestat(path.stat(), os.fstat(file)):
                return file
        except OSError as error:
            os.close(file)
            if error.errno in _BUSY:
                raise ScoresError(
                    f"{self._folder}: another process is writing scores here; wait for it, or give another "
                    "folder"
                ) from error
            raise
        os.close(file)
        return None

    def release(self) -> None:
        """Let others write; remove the folder if nothing was written to it."""
        if self._file is None:
            return
        if sys.platform != "win32":  # Windows removes no file that is open
            (self._folder / NAME).unlink(missing_ok=True)
        os.close(self._file)
        self._file = None
        if sys.platform == "win32":
            (self._folder / NAME).unlink(missing_ok=True)
        try:
            self._folder.rmdir()
        except OSError:  # it holds scores
            return

    def __del__(self) -> None:
        if self._file is not None:
            os.close(self._file)


def _lock(file: int) -> None:
    """Lock an open file, or raise OSError at once; file systems without locks are left unlocked."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY:
            raise
