"""Add the native kernel to wheels and editable installations, if there is a C compiler.

The environment variable ``QMAMBA_NATIVE`` overrides this: ``0`` omits the kernel, ``1`` fails without a
compiler, and a platform tag such as ``manylinux_2_17_aarch64`` cross-compiles for that platform with ziglang.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = Path("src", "qmamba", "ops", "native")


class NativeKernel(BuildHookInterface):  # type: ignore[type-arg]
    """Build one plain C library per platform, independent of the versions of Python and torch."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        setting = os.environ.get("QMAMBA_NATIVE", "")
        if setting == "0":
            return
        build = _module(Path(self.root) / NATIVE / "build.py")
        tag = None if setting in ("", "1") else setting
        try:
            if version == "editable":
                if not build.is_current():
                    build.build()  # in place
                return
            library = build.build(self._scratch(), tag)
        except build.BuildError as error:
            if setting:
                self.app.abort(f"no native kernel: {error}")
            self.app.display_warning(f"no native kernel, so {build.LOSS}: {error}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{tag or _platform_tag(build.MACOS)}"
        build_data["force_include"][str(library)] = f"qmamba/ops/native/{library.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        shutil.rmtree(self._scratch(), ignore_errors=True)

    def _scratch(self) -> Path:
        return Path(self.directory, f"native-{os.getpid()}").absolute()


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("qmamba_native_build", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _platform_tag(macos: str) -> str:
    """Return this machine's platform tag. A wheel built here on Linux needs the same glibc or a newer one."""
    if sys.platform == "darwin":  # the interpreter may be a universal binary; the library is not
        return f"macosx_{macos.replace('.', '_')}_{platform.machine()}"
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")
