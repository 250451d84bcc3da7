"""Triton's kernels without a GPU, and which implementation of the scan runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from qmamba.errors import BackendError
from qmamba.ops import backend, cross_scan_routes, local_scan_routes, selective_scan
from qmamba.ops.scan.triton import pairs
from test_selective_scan import make_inputs


def version(module):
    return tuple(map(int, module.__version__.split(".")[:2]))


def test_kernels_under_the_interpreter():
    triton = pytest.importorskip("triton", reason="the kernels need triton, which is on Linux only")
    if version(triton) < (3, 7) and version(np) >= (2, 4):
        pytest.skip(f"the interpreter of triton {triton.__version__} needs NumPy before 2.4")
    tests = Path(__file__).with_name("interpreted_triton.py")
    env = {k: v for k, v in os.environ.items() if k != "QMAMBA_BACKEND"} | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tests.parent)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout


def resources(tmp_path, *options):
    """What the benchmark says that kernels take."""
    pytest.importorskip("triton", reason="kernels need triton, which is on Linux only")
    script = Path(__file__).parents[1] / "benchmarks" / "gpu_resources.py"
    file = tmp_path / "resources.json"
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {
        "TRITON_CACHE_DIR": str(tmp_path)
    }
    command = [sys.executable, str(script), *options, "--json", str(file)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(file.read_text())


def check_forward(usages):
    forward = [u for u in usages if u["kernel"].startswith("forward") and u["target"].startswith("sm_")]
    assert forward and all(u["spilled"] == 0 for u in forward), forward


def test_kernels_compile_without_a_gpu(tmp_path):
    usages = resources(tmp_path, "--targets", "sm_90", "--ranks", "24", "--dtypes", "bf16")
    assert len({u["kernel"] for u in usages}) == 15
    counted = {u["kernel"] for u in usages if u["instructions"]}  # the scan's but for the carries
    assert len(counted) == 10 and not any(name.startswith(("gate", "carries")) for name in counted)
    check_forward(usages)


@pytest.mark.slow
def test_all_that_dispatch_can_pick_compiles(tmp_path):
    options = ["--dtypes", "fp32", "bf16", "fp16"]
    usages = resources(tmp_path, *options)
    assert {u["target"] for u in usages} == {"sm_80", "sm_90", "gfx942"}
    check_forward(usages)
    check_forward(resources(tmp_path, "--targets", "sm_75", "--ranks", "6", "48", "--dtypes", "fp16", "fp32"))
    resources(tmp_path, "--ranks", "4", "--states", "3", "16", "--dtypes", "bf16")


def test_routes_are_paired():
    routes = local_scan_routes(2)
    assert [pair[:2] for pair in pairs(routes)] == [(0, 2), (1, 3)]
    assert [pair[:2] for pair in pairs([routes[2], routes[0], routes[2]])] == [(1, 0), (-1, 2)]


# --- which implementation runs ------------------------------------------------------------------------------


def on_gpu(dtype=torch.float32):
    return SimpleNamespace(is_cuda=True, dtype=dtype)


def test_a_gpu_gets_triton(monkeypatch):
    monkeypatch.delenv("QMAMBA_BACKEND", raising=False)
    monkeypatch.setattr(backend, "_triton_missing", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    backend._falls_back.cache_clear()
    assert backend.choose([on_gpu()]) == "triton"
    assert backend.choose([on_gpu(torch.bfloat16)]) == "triton"
    assert backend.choose([on_gpu()], "torch") == "torch"
    with pytest.warns(UserWarning, match=r"plain torch on the GPU.*float64"):
        assert backend.choose([on_gpu(torch.float64)]) == "torch"
    assert backend.choose([on_gpu(torch.float64)]) == "torch"  # warned of once: warnings are errors here


def test_a_gpu_without_triton_falls_back_with_a_warning(monkeypatch):
    monkeypatch.delenv("QMAMBA_BACKEND", raising=False)
    monkeypatch.setattr(backend, "_triton_missing", lambda: "triton is not installed")
    backend._falls_back.cache_clear()
    with pytest.warns(UserWarning, match="triton is not installed"):
        assert backend.choose([on_gpu()]) == "torch"


def test_triton_that_is_asked_for_and_cannot_be_used_is_an_error(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    inputs = make_inputs(2, 2, cross_scan_routes(), dtype=torch.float32)
    with pytest.raises(BackendError, match="the triton backend cannot be used"):
        selective_scan(**inputs, routes=cross_scan_routes(), backend="triton")
    monkeypatch.setenv("QMAMBA_BACKEND", "triton")
    with pytest.raises(BackendError, match="the triton backend cannot be used"):
        selective_scan(**inputs, routes=cross_scan_routes())


def test_backends_say_why_triton_is_not_there(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    row = next(b for b in backend.backends() if b.name == "triton")
    assert not row.usable and row.note in ("torch sees no GPU", "triton is not installed")
