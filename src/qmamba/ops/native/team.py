"""The OpenMP library that torch's threads come from. The native kernel works in its team: those threads are
awake already, and a second team would compete with them for the CPU.

=========  =======================================================================
Linux      ``GOMP_parallel`` of libgomp, libomp or libiomp5
macOS      ``GOMP_parallel`` of libomp
Windows    ``__kmpc_fork_call`` of libiomp5md, which has no ``GOMP_parallel``
=========  =======================================================================
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import torch

NAMES = ("libgomp", "libiomp", "libomp")


class Team(ctypes.Structure):
    """``qm_team`` of team.h: the first address, or the other three."""

    _fields_ = [
        (name, ctypes.c_void_p)
        for name in ("gomp_parallel", "global_thread_num", "push_num_threads", "fork_call")
    ]


@lru_cache(maxsize=1)
def torch_team() -> Team | None:
    """Return the functions that start torch's team; None where its OpenMP library is not found."""
    path = torch_openmp()
    if path is None:
        return None
    return kmpc_team(path) if sys.platform == "win32" else gomp_team(path)


@lru_cache(maxsize=1)
def torch_openmp() -> str | None:
    """Return the path, or on Windows the name, of the OpenMP library that torch uses; None if not found."""
    if sys.platform == "win32":
        # Windows resolves what torch imports by name, to the first library of that name.
        return "libiomp5md.dll"
    try:
        loaded = _loaded_on_macos() if sys.platform == "darwin" else _loaded_on_linux()
    except (OSError, AttributeError):
        return None
    return of_torch([path for path in loaded if gomp_team(path) is not None])


def of_torch(libraries: Iterable[str]) -> str | None:
    """Return which of the loaded OpenMP libraries torch uses: the one that came with it, else the only one.

    There may be others, since scikit-learn, say, brings its own.
    """
    home = Path(torch.__file__).resolve().parent
    loaded = list(libraries)
    folders = (home, home.with_name("torch.libs"))
    own = [p for p in loaded if any(Path(p).resolve().is_relative_to(folder) for folder in folders)]
    chosen = own or loaded
    return chosen[0] if len(chosen) == 1 else None


def gomp_team(path: str) -> Team | None:
    """Return the team of a loaded library; None where it is not loaded or has no ``GOMP_parallel``."""
    try:
        return Team(_address(opened(path), "GOMP_parallel"))
    except (OSError, AttributeError):
        return None


def kmpc_team(path: str) -> Team | None:
    """Return the team of a loaded library of LLVM's or Intel's; None where it is not loaded, or another's."""
    names = ("__kmpc_global_thread_num", "__kmpc_push_num_threads", "__kmpc_fork_call")
    try:
        library = opened(path)
        return Team(None, *(_address(library, name) for name in names))
    except (OSError, AttributeError):
        return None


def opened(path: str) -> ctypes.CDLL:
    """Open a library that is loaded already; OSError where it is not."""
    if sys.platform == "win32":
        handle_of = ctypes.WinDLL("kernel32").GetModuleHandleW
        handle_of.argtypes, handle_of.restype = [ctypes.c_wchar_p], ctypes.c_void_p
        handle = handle_of(path)
        if handle is None:
            raise OSError(f"{path} is not loaded")
        return ctypes.CDLL(path, handle=handle)
    return ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW)


def _address(library: ctypes.CDLL, name: str) -> int | None:
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value


def _loaded_on_linux() -> set[str]:
    lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    paths = {line.split(maxsplit=5)[5] for line in lines if line.count("/")}
    return {path for path in paths if Path(path).name.startswith(NAMES)}


def _loaded_on_macos() -> set[str]:
    dyld = ctypes.CDLL(None)
    dyld._dyld_get_image_name.restype = ctypes.c_char_p
    paths = {os.fsdecode(dyld._dyld_get_image_name(i) or b"") for i in range(dyld._dyld_image_count())}
    return {path for path in paths if Path(path).name.startswith(NAMES)}
