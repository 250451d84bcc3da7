"""Check the wheels that make_wheels.py built: ``python tools/check_wheels.py FOLDER``.

Of each: its size and tags, what its library exports and needs, and for Linux auditwheel's opinion. Then each
library runs outside Python (run_kernel.c) and is compared with the reference's results in float64: those for
Linux on x86-64 as they are, and by qemu as on an old CPU; Linux on Arm by qemu; Windows by Wine. What cannot
be run here is said. The exit code is 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import kernel_cases
from binaries import Binary, read
from make_wheels import PURE, ROOT
from qmamba.ops.native.build import MACOS, ZIG_TARGETS
from qmamba.version import __version__

PHOTO = ROOT / "examples/coffee.jpg"
SECONDS = 600  # of a run, whose first by Wine sets Wine up
LARGEST = 12 * 2**20  # bytes of a wheel
SUFFIXES = (".so", ".dylib", ".dll")
EXPORTS = {
    "qm_abi", "qm_variant", "qm_runs", "qm_scan_size", "qm_gate_size", "qm_scan_scratch", "qm_scan_run",
    "qm_gate_run",
}  # fmt: skip
OF_THE_LINKER = {"_mh_dylib_header", "__dso_handle"}  # which zig exports from every library for macOS
LIBC = {"memcpy", "memset", "memmove", "bzero", "__bzero", "__memcpy_chk", "dyld_stub_binder"}


class Allowed(NamedTuple):
    """What a platform's library may need."""

    machine: str
    needed: tuple[str, ...]  # names of libraries, or how they begin
    oldest: str


ALLOWED = {
    "manylinux_2_17_x86_64": Allowed("x86_64", ("libc.so.6",), "2.17"),
    "manylinux_2_17_aarch64": Allowed("aarch64", ("libc.so.6",), "2.17"),
    "musllinux_1_2_x86_64": Allowed("x86_64", (), ""),
    "macosx_11_0_arm64": Allowed("aarch64", ("/usr/lib/libSystem.B.dylib",), MACOS),
    "macosx_11_0_x86_64": Allowed("x86_64", ("/usr/lib/libSystem.B.dylib",), MACOS),
    "win_amd64": Allowed("x86_64", ("kernel32.dll", "api-ms-win-crt-"), ""),
}


@dataclass(frozen=True)
class Runner:
    """How programs of a platform run on Linux on x86-64."""

    name: str
    command: tuple[str, ...]  # before the program
    needs: tuple[Path, ...] = ()  # files that must be there
    packages: str = ""  # of Debian, that bring what is missing


RUNNERS = {
    "manylinux_2_17_x86_64": (
        Runner("here", ()),
        Runner("by qemu, as a Nehalem", ("qemu-x86_64", "-cpu", "Nehalem"), packages="qemu-user"),
    ),
    "musllinux_1_2_x86_64": (Runner("here", (), (Path("/lib/ld-musl-x86_64.so.1"),), "musl"),),
    "manylinux_2_17_aarch64": (
        Runner(
            "by qemu",
            ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"),
            (Path("/usr/aarch64-linux-gnu/lib/libc.so.6"),),
            "qemu-user, libc6-arm64-cross",
        ),
    ),
    "win_amd64": (Runner("by Wine", ("wine",), packages="wine"),),
}


class Report:
    """Prints a line for each finding, and counts those that are wrong."""

    def __init__(self) -> None:
        self.wrong = 0

    def say(self, line: str) -> None:
        print(f"  {line}", flush=True)

    def expect(self, right: bool, line: str) -> None:
        self.wrong += not right
        self.say(line if right else f"WRONG: {line}")


# --- what a wheel holds ---


def check_wheel(wheel: Path, tag: str, report: Report) -> bytes:
    """Check what a wheel holds; return its library, empty if it has none."""
    size = wheel.stat().st_size
    report.expect(size <= LARGEST, f"{size / 1e6:.1f} MB")
    with zipfile.ZipFile(wheel) as archive:
        libraries = [name for name in archive.namelist() if name.endswith(SUFFIXES)]
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/WHEEL"))
        lines = archive.read(metadata).decode().splitlines()
        pure = "Root-Is-Purelib: true" in lines
        report.expect(f"Tag: py3-none-{tag}" in lines and pure == (tag == PURE), f"tag py3-none-{tag}")
        if tag == PURE:
            report.expect(not libraries, "no library")
            return b""
        report.expect(len(libraries) == 1, ", ".join(libraries) or "no library")
        return archive.read(libraries[0]) if libraries else b""


def check_binary(binary: Binary, tag: str, report: Report) -> None:
    """Check what a library exports and needs."""
    allowed, macos = ALLOWED[tag], tag.startswith("macosx")
    report.expect(binary.machine == allowed.machine, f"for {binary.machine}")
    strange = (binary.exports - (OF_THE_LINKER if macos else set())) ^ EXPORTS
    report.expect(not strange, f"exports {', '.join(sorted(strange)) or f'the {len(EXPORTS)} functions'}")
    others = [name for name in binary.needed if not name.startswith(allowed.needed)]
    report.expect(not others, f"needs {', '.join(sorted(others or binary.needed)) or 'no library'}")
    if not tag.startswith("win"):
        beyond = binary.undefined - LIBC
        report.expect(not beyond, f"takes {', '.join(sorted(beyond or binary.undefined))} from it")
    if allowed.oldest:
        fits = _version(binary.oldest) <= _version(allowed.oldest)
        report.expect(fits, f"runs from {'macOS' if macos else 'glibc'} {binary.oldest}")
    if macos and allowed.machine == "aarch64":
        report.expect(binary.signed, "signed, ad hoc, with the right hashes")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part)


def check_by_auditwheel(wheel: Path, tag: str, report: Report) -> None:
    """Ask auditwheel which platforms a wheel for Linux is for."""
    command = [sys.executable, "-m", "auditwheel", "show", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    named = " ".join(done.stdout.split()).partition("following platform tag: ")[2].split('"')[1:2]
    report.expect(named == [tag], f"auditwheel: {', '.join(named) or done.stderr[-500:]}")


# --- what a library does ---


def check_runs(library: Path, tag: str, cases: Path, report: Report) -> None:
    """Run a library against the reference, in all ways that there are here."""
    runners = RUNNERS.get(tag, ())
    if not runners or (sys.platform, platform.machine()) != ("linux", "x86_64"):
        report.say(f"not run: nothing here runs {tag}")
        return
    program = compile_run_kernel(library.parent, tag)
    for runner in runners:
        programs_there = all(shutil.which(name) is not None for name in runner.command[:1])
        if not programs_there or not all(path.exists() for path in runner.needs):
            report.say(f"not run {runner.name}: install Debian's {runner.packages}")
            continue
        try:
            done = subprocess.run(
                [*runner.command, f"./{program.name}", f"./{library.name}", cases.name],
                cwd=library.parent,
                capture_output=True,
                text=True,
                check=False,
                timeout=SECONDS,
                env=os.environ | {"WINEDEBUG": "-all"},
            )
        except subprocess.TimeoutExpired:
            report.expect(False, f"run {runner.name}: no end after {SECONDS} s")
            continue
        lines = [line.strip() for line in done.stdout.splitlines()] or done.stderr.splitlines()[-1:]
        report.expect(done.returncode == 0 and bool(lines), f"run {runner.name}: {'; '.join(lines)}")


def compile_run_kernel(folder: Path, tag: str) -> Path:
    """Compile run_kernel.c for a platform and return the program's path."""
    program = folder / ("run_kernel.exe" if tag.startswith("win") else "run_kernel")
    flags = {"musllinux_1_2_x86_64": ["-dynamic"], "win_amd64": []}.get(tag, ["-ldl", "-lm"])
    command = [
        sys.executable, "-m", "ziglang", "cc", "-target", ZIG_TARGETS[tag], "-mcpu=baseline", "-O2", "-g0",
        f"-I{ROOT / 'src/qmamba/ops/native'}", str(ROOT / "tools/run_kernel.c"), "-o", str(program), *flags,
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return program


SCORES = """
import os, qmamba
from qmamba.ops import native
assert native.load().path.is_relative_to({folder!r}), native.load().path
os.environ["QMAMBA_BACKEND"] = "native"
fast = qmamba.score({photo!r})
os.environ["QMAMBA_BACKEND"] = "torch"
print(abs(fast - qmamba.score({photo!r})))
"""


def check_scores(wheel: Path, report: Report) -> None:
    """Score with the package that a wheel for this machine holds, by its kernel and by plain torch."""
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        done = subprocess.run(
            [sys.executable, "-c", SCORES.format(folder=folder, photo=str(PHOTO))],
            env=os.environ | {"PYTHONPATH": folder},
            capture_output=True,
            text=True,
            check=False,
        )
    moved = float(done.stdout) if done.returncode == 0 else float("nan")
    report.expect(moved < 1e-5, f"a score is {moved:.1e} from plain torch's{done.stderr[-500:]}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the wheels of this version in a folder.")
    parser.add_argument("folder", type=Path, help="that make_wheels.py filled")
    folder, report = parser.parse_args().folder, Report()
    with tempfile.TemporaryDirectory() as scratch:
        cases = Path(scratch, "cases.bin")
        kernel_cases.write(cases)
        for tag in [PURE, *ZIG_TARGETS]:
            wheel = folder / f"qmamba-{__version__}-py3-none-{tag}.whl"
            print(wheel.name)
            if not wheel.is_file():
                report.expect(False, "is not there")
                continue
            data = check_wheel(wheel, tag, report)
            if not data:
                continue
            place = Path(scratch, tag)
            place.mkdir()
            library = place / ("qmamba.dll" if tag.startswith("win") else "library")
            library.write_bytes(data)
            shutil.copy(cases, place)
            check_binary(read(library), tag, report)
            if "linux" in tag:
                check_by_auditwheel(wheel, tag, report)
            check_runs(library, tag, cases, report)
            if tag == "manylinux_2_17_x86_64" and platform.machine() == "x86_64":
                check_scores(wheel, report)
    print("all right" if not report.wrong else f"{report.wrong} wrong")
    return int(report.wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
