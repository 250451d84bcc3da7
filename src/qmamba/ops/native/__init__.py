"""The native kernel: scan and route gate in C, found and loaded on first use, and optional.

Wheels carry it, and installations from source compile it where there is a C compiler;
``python -m qmamba.ops.native.build`` adds it later. One library holds a variant for each instruction set, and
the best that the CPU can run is taken; ``QMAMBA_NATIVE_ISA`` (``avx512``, ``avx2``, ``baseline``; ``neon`` on
Arm) picks another.
"""

from __future__ import annotations

import ctypes
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from ...errors import BackendError

ABI = 6  # of dispatch.c
HOW_TO_GET_IT = "run `python -m qmamba.ops.native.build`, which needs a C compiler"


@dataclass(frozen=True)
class Library:
    """The loaded library and its variants."""

    functions: ctypes.CDLL
    path: Path
    variants: tuple[str, ...]  # that this CPU can run, best first
    indices: tuple[int, ...]  # of the variants, as the library counts them

    def variant(self, name: str | None = None) -> int:
        """Return the index of a variant, by default of the best or of the one that QMAMBA_NATIVE_ISA names.

        Raises:
            BackendError: The CPU cannot run it, or there is none of that name.
        """
        name = name or os.environ.get("QMAMBA_NATIVE_ISA") or self.variants[0]
        if name not in self.variants:
            raise BackendError(
                f"no native kernel {name!r} for this CPU: choose one of {', '.join(self.variants)}"
            )
        return self.indices[self.variants.index(name)]


FOLDER = Path(__file__).resolve().parent  # where the library is looked for
_lock = threading.Lock()
_found: dict[Path, Library | str] = {}  # the library, or why it cannot be used


def load() -> Library:
    """Return the library.

    Raises:
        BackendError: It is not there, or is from another version.
    """
    library = _look(FOLDER)
    if isinstance(library, str):
        raise BackendError(library)
    return library


def available() -> bool:
    """Return whether the library is there and usable; the answer is kept."""
    return not isinstance(_look(FOLDER), str)


def _look(folder: Path) -> Library | str:
    found = _found.get(folder)
    if found is None:
        with _lock:
            found = _found.get(folder)
            if found is None:
                from .build import LIBRARY  # here, so that the build can be run as a module

                found = _found[folder] = _open(folder / LIBRARY)
    return found


def _open(path: Path) -> Library | str:
    from .build import LOSS

    lost = f"{LOSS}: {HOW_TO_GET_IT}"
    if not path.is_file():
        return f"the native kernel is not built, and without it {lost}"
    try:
        functions = ctypes.CDLL(str(path))
        abi = functions.qm_abi()
    except (OSError, AttributeError) as error:
        return f"the native kernel cannot be loaded ({error}), and without it {lost}"
    if abi != ABI:
        return f"the native kernel was built for another version of qmamba, and without it {lost}"
    functions.qm_variant.restype = ctypes.c_char_p
    variants, indices, i = [], [], 0
    while (name := functions.qm_variant(i)) is not None:
        if functions.qm_runs(i):
            variants.append(name.decode())
            indices.append(i)
        i += 1
    functions.qm_scan_scratch.restype = ctypes.c_int64
    functions.qm_scan_scratch.argtypes = [ctypes.c_int, ctypes.c_void_p]
    whole, address, threads = ctypes.c_int, ctypes.c_void_p, ctypes.c_uint
    functions.qm_scan_run.restype = functions.qm_gate_run.restype = None
    functions.qm_scan_run.argtypes = [whole, address, whole, address, threads, address]
    functions.qm_gate_run.argtypes = [whole, address, whole, threads, address]
    return Library(functions, path, tuple(variants), tuple(indices))
