"""What is installed: a light import, and a pure-Python wheel that has all it needs."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import qmamba
from qmamba.ops.native.build import compiler

SOURCE = Path(qmamba.__file__).parents[1]
ROOT = SOURCE.parent
HEAVY = (
    "accelerate", "huggingface_hub", "imagehash", "mamba_ssm", "matplotlib", "openpyxl", "pandas", "pyarrow",
    "ray", "requests", "scipy", "sklearn", "timm", "torchmetrics", "torchvision", "tqdm", "transformers",
    "triton", "typer",
)  # fmt: skip
ALLOWED_SECONDS = 0.3


def python(code: str) -> str:
    path = os.pathsep.join(p for p in (str(SOURCE), os.environ.get("PYTHONPATH")) if p)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_brings_nothing_heavy() -> None:
    """Readers of data sets, recipes, training, features and pictures import their libraries when used."""
    code = f"""
import sys, torch
before = set(sys.modules)  # torch's own dependencies are not counted
for line in ("import qmamba", "import qmamba.data, qmamba.data.duplicates", "import qmamba.train.paper",
             "from qmamba.analysis import features, maps, tsne"):
    exec(line)
    loaded = {{name.partition('.')[0] for name in set(sys.modules) - before}}
    print(line, *sorted(loaded & set({HEAVY!r})), sep=": ")
"""
    lines = python(code).splitlines()
    assert len(lines) == 4 and [line for line in lines if ": " in line] == []


def test_import_time() -> None:
    """CPU seconds of `import qmamba` once torch is imported: the minimum, since noise only adds."""
    code = "import time, torch; t = time.process_time(); import qmamba; print(time.process_time() - t)"
    seconds: list[float] = []
    while len(seconds) < 5 and min(seconds, default=float("inf")) > ALLOWED_SECONDS:
        seconds.append(float(python(code)))
    assert min(seconds) <= ALLOWED_SECONDS, seconds


def test_a_first_score_imports_no_compiler() -> None:
    """torch's compiler takes two CPU seconds to import."""
    code = """
import sys, numpy, qmamba
qmamba.score(numpy.zeros((64, 64, 3), "uint8"))
print("torch._dynamo" in sys.modules)
"""
    assert python(code) == "False"


def test_the_citation_file_names_the_library_and_the_paper() -> None:
    import yaml  # a dependency of huggingface_hub

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["title"].startswith("qmamba")
    assert citation["license"] == "Apache-2.0"
    paper = citation["preferred-citation"]
    assert paper["title"].startswith("QMamba: ") and len(paper["authors"]) == 5 and paper["year"] == 2025


def test_import_leaves_random_state_and_settings_alone() -> None:
    code = """
import random, warnings
import numpy, torch
def state():
    return (torch.random.get_rng_state().tolist(), random.getstate(), str(numpy.random.get_state()),
            torch.get_num_threads(), torch.get_default_dtype(), torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic, torch.are_deterministic_algorithms_enabled(),
            len(warnings.filters))
before = state()
import qmamba
print(before == state())
"""
    assert python(code) == "True"


def build(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Build a wheel into a folder."""
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("the sources are not here: this is an installed package")
    pytest.importorskip("hatchling", reason="the build backend is not installed")
    plain = {name: value for name, value in os.environ.items() if name != "QMAMBA_NATIVE"}
    return subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env=plain | environment,
        check=False,
    )


def build_wheel(folder: Path, **environment: str) -> Path:
    done = build(folder, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.iterdir()
    return wheel


def test_a_wheel(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, QMAMBA_NATIVE="0")
    assert wheel.name.endswith("-py3-none-any.whl"), "the wheel must be pure Python"
    assert wheel.stat().st_size <= 12 * 2**20
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "qmamba/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    unwanted = (".so", ".dylib", ".pyd", ".dll", ".pyc", ".pt", ".pth", ".pkl")
    assert not [name for name in names if name.endswith(unwanted)]
    assert not [name for name in names if name.split("/")[0] in ("tests", "tools", "docs", "examples")]
    models = qmamba.list_models()
    assert models, "the package must come with at least one model"
    for model in models:
        assert "qmamba/analysis/report/template.html" in names
        for file in ("config.json", "model.safetensors", "README.md"):
            assert f"qmamba/weights/{model}/{file}" in names


def test_a_wheel_has_the_native_kernel_without_being_asked(tmp_path: Path) -> None:
    if compiler() is None:
        pytest.skip("no C compiler here")
    wheel = build_wheel(tmp_path / "dist")
    assert "-py3-none-" in wheel.name and not wheel.name.endswith("-any.whl")
    assert wheel.stat().st_size <= 12 * 2**20
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    code = f"""
import sys; sys.path.insert(0, {str(tmp_path / "installed")!r})
import os, torch, qmamba
from qmamba.ops import native
assert native.load().path.parent.is_relative_to({str(tmp_path / "installed")!r})
os.environ["QMAMBA_BACKEND"] = "native"
image = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))
fast = qmamba.score(image)
os.environ["QMAMBA_BACKEND"] = "torch"
print(abs(fast - qmamba.score(image)) < 1e-5)
"""
    assert python(code) == "True"


def test_a_wheel_without_a_compiler(tmp_path: Path) -> None:
    nothing = {"CC": "no-such-compiler", "PATH": str(tmp_path)}
    done = build(tmp_path / "dist", **nothing)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "native kernel" in line]
    assert len(lines) == 1 and "twice as long" in lines[0] and "no C compiler found" in lines[0]
    for asked, says in [("1", "no C compiler found"), ("beos_x86_64", "choose one of manylinux_2_17_x86_64")]:
        refused = build(tmp_path / "refused", QMAMBA_NATIVE=asked, **nothing)
        assert refused.returncode != 0 and says in refused.stderr and not [*tmp_path.glob("refused/*")]


def test_version_is_stated_once() -> None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        installed = version("qmamba")
    except PackageNotFoundError:
        pytest.skip("qmamba is imported from its sources, not installed")
    assert installed == qmamba.__version__


def test_no_name_shadows_a_module() -> None:
    """`import qmamba.train.x` gives the module x, not a function that its package calls x."""
    code = """
import importlib, pkgutil, types, qmamba
for found in pkgutil.walk_packages(qmamba.__path__, "qmamba."):
    package, _, name = found.name.rpartition(".")
    if name.startswith(("__main__", "lib", "triton_")):
        continue
    importlib.import_module(found.name)
    if not isinstance(getattr(importlib.import_module(package), name), types.ModuleType):
        print(found.name)
"""
    assert python(code) == ""
