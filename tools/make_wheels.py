"""Build the wheels: ``python tools/make_wheels.py FOLDER [TAG ...]``.

Without tags, one for each platform that ``ZIG_TARGETS`` names, all compiled here by ziglang, and the pure
one. hatch_build.py does the work; the variable QMAMBA_NATIVE tells it which platform.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from qmamba.ops.native.build import ZIG_TARGETS

ROOT = Path(__file__).resolve().parents[1]
PURE = "any"


def build_wheel(folder: Path, tag: str) -> Path:
    """Build the wheel of one platform tag, or the pure one, and return its path.

    Raises:
        SystemExit: The build failed; the message is what it printed.
    """
    before = time.time()
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder.resolve())],
        cwd=ROOT,
        env=os.environ | {"QMAMBA_NATIVE": "0" if tag == PURE else tag},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"the wheel for {tag} could not be built:\n{done.stdout}{done.stderr}")
    wheel = max(folder.glob(f"qmamba-*-none-{tag}.whl"), key=lambda path: path.stat().st_mtime)
    print(f"{wheel}  {wheel.stat().st_size / 1e6:.1f} MB, {time.time() - before:.0f} s", flush=True)
    return wheel


def main() -> None:
    parser = argparse.ArgumentParser(description="Build wheels with the native kernel for many platforms.")
    parser.add_argument("folder", type=Path, help="where the wheels go")
    parser.add_argument("tags", nargs="*", metavar="TAG", help=f"of {', '.join([*ZIG_TARGETS, PURE])}")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for tag in options.tags or [*ZIG_TARGETS, PURE]:
        build_wheel(options.folder, tag)


if __name__ == "__main__":
    main()
