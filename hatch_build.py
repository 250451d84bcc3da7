"""Brings the native kernels when asked to: ``QMAMBA_NATIVE=1 pip install .``, or building a wheel with it.

Without the variable the wheel is pure Python, and building it needs no compiler.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = Path("src", "qmamba", "ops", "native")


class NativeKernels(BuildHookInterface):  # type: ignore[type-arg]
    """One library of plain C for each platform, whatever the version of Python or torch."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if not _asked():
            return
        build = _module(Path(self.root) / NATIVE / "build.py")
        if version == "editable":
            build.build()  # in its place
            return
        library = build.build(self._place())
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform()}"
        build_data["force_include"][str(library)] = f"qmamba/ops/native/{library.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if _asked():
            shutil.rmtree(self._place(), ignore_errors=True)

    def _place(self) -> Path:
        return Path(self.directory, "native").absolute()


def _asked() -> bool:
    return os.environ.get("QMAMBA_NATIVE") == "1"


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("qmamba_native_build", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _platform() -> str:
    """The platform's tag. A Linux wheel made here runs where glibc is no older than here."""
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")
