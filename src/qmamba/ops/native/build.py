"""Compile the native kernel with a C compiler: ``python -m qmamba.ops.native.build``.

Nothing of qmamba and nothing beyond the standard library is imported, so that the build hook and the Makefile
can run this file by itself.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
LIBRARIES = {"darwin": "libqmamba.dylib", "win32": "qmamba.dll"}  # by sys.platform
LIBRARY = LIBRARIES.get(sys.platform, "libqmamba.so")
LOSS = "scores take about twice as long on a CPU"  # without the kernel
NO_COMPILER = (
    "install gcc or clang, name a compiler in the variable CC, or run `pip install ziglang`"
    if sys.platform != "win32"
    else "run `pip install ziglang`, or name Clang's command in the variable CC"
)

COMPILE = (
    "-O3", "-g0", "-std=gnu11", "-fvisibility=hidden",
    "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math",
)  # fmt: skip
X86_VARIANTS = {
    "avx512": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"),
    "avx2": ("-mavx2", "-mfma"),
}
KERNELS = ("scan.c", "gate.c")  # compiled once for each variant
COMMON = ("dispatch.c",)  # and once
MACOS = "11.0"  # the oldest that runs on Apple's own CPUs

# The platform tags of the wheels, and what zig calls their platforms.
ZIG_TARGETS = {
    "manylinux_2_17_x86_64": "x86_64-linux-gnu.2.17",
    "manylinux_2_17_aarch64": "aarch64-linux-gnu.2.17",
    "musllinux_1_2_x86_64": "x86_64-linux-musl",
    "macosx_11_0_arm64": f"aarch64-macos.{MACOS}",
    "macosx_11_0_x86_64": f"x86_64-macos.{MACOS}",
    "win_amd64": "x86_64-windows-gnu",
}


class BuildError(RuntimeError):
    """The library could not be built; the message is one line that says why."""


class Toolchain(NamedTuple):
    """A compiler, and the platform that it compiles for."""

    command: tuple[str, ...]
    system: str  # as sys.platform has it
    x86: bool  # 64 bits of it
    musl: bool = False

    @property
    def file_name(self) -> str:
        return LIBRARIES.get(self.system, "libqmamba.so")

    @property
    def compile_flags(self) -> tuple[str, ...]:
        return COMPILE if self.system == "win32" else (*COMPILE, "-fPIC")

    @property
    def link_flags(self) -> tuple[str, ...]:
        if self.system == "darwin":
            return ("-shared", f"-Wl,-install_name,@rpath/{self.file_name}")
        # Distributions call musl's libc by different names; the process has it, whatever its name.
        return ("-shared", "-s", "-nostdlib") if self.musl else ("-shared", "-s")

    @property
    def variants(self) -> dict[str, tuple[str, ...]]:
        return {**(X86_VARIANTS if self.x86 else {}), "baseline": ()}


def build(folder: Path = HERE, platform_tag: str | None = None) -> Path:
    """Compile the library into a folder and return its path.

    Args:
        folder: Made if it does not exist. A library that is there is replaced in one step, so that a process
            that has loaded it keeps what it has.
        platform_tag: One of ``ZIG_TARGETS``, compiled for by ziglang; by default this machine.

    Raises:
        BuildError: There is no compiler, it reports an error, or the folder cannot be written to.
    """
    toolchain = _here() if platform_tag is None else _cross(platform_tag)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            return _compile(toolchain, Path(scratch)).replace(folder / toolchain.file_name)
    except OSError as error:
        raise BuildError(f"the native kernel cannot be written: {error}") from error


def is_current(folder: Path = HERE) -> bool:
    """Return whether a folder has a library that is newer than all of its source."""
    sources = [path for path in HERE.iterdir() if path.suffix in (".c", ".h") or path.name == "build.py"]
    library = folder / LIBRARY
    return library.is_file() and library.stat().st_mtime >= max(path.stat().st_mtime for path in sources)


def compiler() -> list[str] | None:
    """Return the command of the C compiler: ``$CC``, else the first of cc, gcc, clang, zig and ziglang.

    On Windows only zig is looked for: GCC misaligns the stack there for vectors of 32 bytes and more, and
    Clang wants the libraries of Visual Studio.
    """
    asked = shlex.split(os.environ.get("CC", ""))
    names = ["zig"] if sys.platform == "win32" else ["cc", "gcc", "clang", "zig"]
    for command in [asked] if asked else [[name] for name in names]:
        path = shutil.which(command[0])
        if path is not None:
            return [*_zig(path)] if command == ["zig"] else [path, *command[1:]]
    if not asked and importlib.util.find_spec("ziglang") is not None:
        return [*_zig(sys.executable, "-m", "ziglang")]
    return None


def _zig(*zig: str, target: str = "native") -> tuple[str, ...]:
    """Return the command of zig's C compiler for the baseline; its default is this CPU's instructions."""
    return (*zig, "cc", "-target", target, "-mcpu=baseline")


def _here() -> Toolchain:
    cc = compiler()
    if cc is None:
        raise BuildError(f"no C compiler found: {NO_COMPILER}")
    machine = platform.machine()
    if sys.platform == "darwin" and "-target" not in cc:
        cc += ["-arch", machine, f"-mmacosx-version-min={MACOS}"]
    return Toolchain(tuple(cc), sys.platform, machine.lower() in ("x86_64", "amd64"))


def _cross(platform_tag: str) -> Toolchain:
    if platform_tag not in ZIG_TARGETS:
        raise BuildError(f"no platform {platform_tag!r}: choose one of {', '.join(ZIG_TARGETS)}")
    if importlib.util.find_spec("ziglang") is None:
        raise BuildError(f"ziglang, which compiles for {platform_tag}, is missing: run `pip install ziglang`")
    target = ZIG_TARGETS[platform_tag]
    system = {"linux": "linux", "macos": "darwin", "windows": "win32"}[target.split("-")[1].split(".")[0]]
    command = _zig(sys.executable, "-m", "ziglang", target=target)
    return Toolchain(command, system, target.startswith("x86_64"), target.endswith("musl"))


def _compile(toolchain: Toolchain, folder: Path) -> Path:
    cc = [*toolchain.command, *toolchain.compile_flags]
    objects = [folder / f"{source}.o" for source in COMMON]
    commands = [
        [*cc, "-c", str(HERE / source), "-o", str(target)]
        for source, target in zip(COMMON, objects, strict=True)
    ]
    for variant, flags in toolchain.variants.items():
        for source in KERNELS:
            objects.append(folder / f"{source}.{variant}.o")
            commands.append(
                [*cc, *flags, f"-DQM_SUFFIX={variant}", "-c", str(HERE / source), "-o", str(objects[-1])]
            )
    library = folder / toolchain.file_name
    _run_together(commands)
    _run_together([[*toolchain.command, *toolchain.link_flags, *map(str, objects), "-o", str(library)]])
    return library


def _run_together(commands: list[list[str]]) -> None:
    running = [
        subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for c in commands
    ]
    outputs = [process.communicate()[0] for process in running]
    for process, output in zip(running, outputs, strict=True):
        if process.returncode:
            lines = [line for line in output.splitlines() if "error" in line] or output.splitlines() or ["?"]
            raise BuildError(f"the C compiler {commands[0][0]} failed: {lines[0]}")


def main() -> int:
    """Build the library in place; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m qmamba.ops.native.build",
        description=f"Compile the native kernel in place. Without it {LOSS}.",
    )
    parser.add_argument(
        "--optional",
        action="store_true",
        help="build it only if it is missing or old; print one line that says what is lost if that fails; "
        "do nothing if the variable QMAMBA_NATIVE is 0",
    )
    optional = parser.parse_args().optional
    if optional and os.environ.get("QMAMBA_NATIVE") == "0":
        return 1
    if optional and is_current():
        return 0
    try:
        print(build())
    except BuildError as error:
        prefix = f"no native kernel, so {LOSS}" if optional else "error"
        print(f"{prefix}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
