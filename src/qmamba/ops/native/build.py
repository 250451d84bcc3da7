"""Compile the native kernels with the system's C compiler: ``python -m qmamba.ops.native.build``.

Only the standard library is used, and nothing of qmamba is imported, so that a build hook can run this file
on its own.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIBRARY = "libqmamba.dylib" if sys.platform == "darwin" else "libqmamba.so"
FLAGS = (
    "-O3", "-std=gnu11", "-fPIC", "-fvisibility=hidden",
    "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math",
)  # fmt: skip
X86_VARIANTS = {
    "avx512": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"),
    "avx2": ("-mavx2", "-mfma"),
}
KERNELS = ("scan.c", "gate.c")  # compiled once for each variant
COMMON = ("dispatch.c",)  # and once


class BuildError(RuntimeError):
    """The library could not be built; the message is one line that says why."""


def compiler() -> list[str] | None:
    """The command of the C compiler: ``$CC``, or the first of cc, gcc and clang that is there."""
    asked = shlex.split(os.environ.get("CC", ""))
    for command in [asked] if asked else [["cc"], ["gcc"], ["clang"]]:
        found = shutil.which(command[0])
        if found is not None:
            return [found, *command[1:]]
    return None


def build(folder: Path = HERE) -> Path:
    """Compile the library into a folder; returns its path.

    Raises:
        BuildError: there is no compiler, or it reports an error.
    """
    cc = compiler()
    if cc is None:
        raise BuildError("no C compiler found: install gcc or clang, or name one in the variable CC")
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    variants: dict[str, tuple[str, ...]] = {**(X86_VARIANTS if x86 else {}), "baseline": ()}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        objects = [Path(place, f"{source}.o") for source in COMMON]
        commands = [
            [*cc, *FLAGS, "-c", str(HERE / source), "-o", str(target)]
            for source, target in zip(COMMON, objects, strict=True)
        ]
        for suffix, flags in variants.items():
            for source in KERNELS:
                objects.append(Path(place, f"{source}.{suffix}.o"))
                commands.append(
                    [*cc, *FLAGS, *flags, f"-DQM_SUFFIX={suffix}", "-c", str(HERE / source),
                     "-o", str(objects[-1])]
                )  # fmt: skip
        library = Path(place, LIBRARY)
        _run_together(commands)
        _run_together([[*cc, "-shared", *map(str, objects), "-o", str(library)]])
        return library.replace(folder / LIBRARY)  # at once: a process that has the old one keeps it


def _run_together(commands: list[list[str]]) -> None:
    running = [
        subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for c in commands
    ]
    for process in running:
        output, _ = process.communicate()
        if process.returncode:
            for other in running:
                other.wait()
            lines = [line for line in output.splitlines() if "error" in line] or output.splitlines() or ["?"]
            raise BuildError(f"the C compiler {commands[0][0]} failed: {lines[0]}")


def main() -> int:
    try:
        print(build())
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
