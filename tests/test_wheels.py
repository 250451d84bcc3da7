"""What builds and checks the wheels of all platforms."""

from __future__ import annotations

import dataclasses
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qmamba.ops.native import Library, build, team

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / "tools"


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module check_wheels, which knows the others."""
    if not TOOLS.is_dir():
        pytest.skip("the tools are not here: this is an installed package")
    monkeypatch.syspath_prepend(str(TOOLS))
    import check_wheels

    return check_wheels


def test_the_kernel_outside_python(tools: Any, library: Library, tmp_path: Path) -> None:
    """In one thread and in torch's team: results, and the same bits; and a wrong result is noticed."""
    compiler = build.compiler()
    if compiler is None:
        pytest.skip("no C compiler here")
    program, cases = tmp_path / "run_kernel", tmp_path / "cases.bin"
    command = [*compiler, "-O1", f"-I{build.HERE}", str(TOOLS / "run_kernel.c"), "-o", str(program)]
    subprocess.run([*command, *(["-ldl", "-lm"] if sys.platform == "linux" else [])], check=True)
    count = tools.kernel_cases.write(cases)
    assert count == 40
    openmp = [team.of_torch(team._loaded_on_linux()) or ""] if sys.platform == "linux" else []

    def run() -> subprocess.CompletedProcess[str]:
        arguments = [str(program), str(library.path), str(cases), *filter(None, openmp)]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)

    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(library.variants)
    assert all("40 of 40 cases right" in line for line in lines)

    data = cases.read_bytes()  # the last number is what the last gradient should end in
    (last,) = struct.unpack("<f", data[-4:])
    cases.write_bytes(data[:-4] + struct.pack("<f", last + 0.01))
    done = run()
    assert done.returncode == 1 and done.stdout.count("39 of 40 cases right") == len(lines)


def test_what_a_library_may_need(tools: Any) -> None:
    good = tools.Binary(
        "x86_64", frozenset(tools.EXPORTS), frozenset({"libc.so.6"}), frozenset({"memcpy"}), "2.14", False
    )

    def wrong(tag: str = "manylinux_2_17_x86_64", **changes: Any) -> int:
        report = tools.Report()
        tools.check_binary(dataclasses.replace(good, **changes), tag, report)
        return int(report.wrong)

    assert wrong() == 0
    assert wrong(needed=frozenset({"libc.so.6", "libgomp.so.1"})) == 1
    assert wrong(exports=good.exports | {"helper"}) == wrong(exports=good.exports - {"qm_abi"}) == 1
    assert wrong(undefined=frozenset({"memcpy", "expf"})) == 1
    assert wrong(oldest="2.28") == wrong(machine="aarch64") == 1
    assert wrong("musllinux_1_2_x86_64") == 1 and wrong("musllinux_1_2_x86_64", needed=frozenset()) == 0
    system = frozenset({"/usr/lib/libSystem.B.dylib"})
    apple = {"needed": system, "machine": "aarch64", "oldest": "11.0"}
    assert wrong("macosx_11_0_arm64", **apple) == 1 and wrong("macosx_11_0_arm64", **apple, signed=True) == 0


def test_a_library_of_linux_is_read(tools: Any, library: Library) -> None:
    pytest.importorskip("elftools", reason="pyelftools is not installed")
    if sys.platform != "linux":
        pytest.skip("not on Linux")
    binary = tools.read(library.path)
    assert binary.exports >= tools.EXPORTS and "libc.so.6" in binary.needed and "memcpy" in binary.undefined


def test_what_is_no_library_is_refused(tools: Any, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"#!/bin/sh")
    with pytest.raises(ValueError, match="neither ELF"):
        tools.read(tmp_path / "x")


def test_other_platforms_need_ziglang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(build.BuildError, match="choose one of manylinux"):
        build.build(tmp_path, "beos_x86_64")
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(build.BuildError, match="pip install ziglang"):
        build.build(tmp_path, "win_amd64")


def test_an_unwritable_folder_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(build.BuildError, match="cannot be written"):
        build.build(tmp_path / "file")


def test_ziglang_is_the_last_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: object())
    command = build.compiler()
    assert command is not None and command[:4] == [sys.executable, "-m", "ziglang", "cc"]
    assert "-mcpu=baseline" in command  # or zig takes what this CPU has for what all have
    monkeypatch.setenv("CC", "no-such-compiler -m64")
    assert build.compiler() is None


@pytest.mark.slow
def test_all_wheels(tools: Any, tmp_path: Path) -> None:
    """Whole, as `make wheels` does it; then with a damaged signature."""
    for module in ("ziglang", "hatchling", "auditwheel", "elftools", "macholib", "pefile"):
        pytest.importorskip(module, reason='pip install ".[wheels]" brings it')
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    for name in ("make_wheels.py", "check_wheels.py"):
        command = [sys.executable, str(TOOLS / name), str(tmp_path / "dist")]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("all right\n") and len(list((tmp_path / "dist").iterdir())) == 7
    shutil.rmtree(tmp_path / "dist")

    library = build.build(tmp_path, "macosx_11_0_arm64")
    assert tools.read(library).signed
    data = bytearray(library.read_bytes())
    data[0x4000] ^= 1
    library.write_bytes(data)
    assert not tools.read(library).signed
