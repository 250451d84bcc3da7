"""The C scan against the plain loop: every variant that this CPU runs, odd sizes, threads and forks."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from qmamba.errors import BackendError
from qmamba.ops import Route, cross_scan_routes, local_scan_routes, native, selective_scan
from qmamba.ops.native import build, pool, team
from test_selective_scan import assert_same, make_inputs, run

ROUTES = {
    "cross": cross_scan_routes(),
    "local-2": local_scan_routes(2),
    "local-4": local_scan_routes(4),
    "one": (Route("row"),),
    "reversed only": (Route("column", 3, reverse=True),),
}


VARIANTS = ["avx512", "avx2", "baseline", "neon"]
pytestmark = pytest.mark.usefixtures("library")


def check(grid, routes, *, merge=True, tolerance=2e-5, **options):
    inputs = make_inputs(*grid, routes, dtype=torch.float32, **options)
    truth = {name: t.double() for name, t in inputs.items()}
    assert_same(
        run(inputs, routes, "native", merge=merge), run(truth, routes, "torch", merge=merge), tolerance
    )


@pytest.mark.parametrize("merge", [True, False], ids=["merged", "stacked"])
@pytest.mark.parametrize("routes", ROUTES.values(), ids=ROUTES.keys())
@pytest.mark.parametrize("grid", [(1, 1), (1, 13), (13, 1), (7, 13)], ids=lambda g: f"{g[0]}x{g[1]}")
def test_matches_reference(grid, routes, merge, poisoned):
    inputs = make_inputs(*grid, routes, dtype=torch.float32, channels=17, n=2)
    got = run(inputs, routes, "native", merge=merge)
    assert_same(got, run(inputs, routes, "reference", merge=merge), 2e-5)
    truth = {name: t.double() for name, t in inputs.items()}
    assert_same(got, run(truth, routes, "reference", merge=merge), 2e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("channels", [1, 5, 17, 64, 100, 200])
def test_every_variant_and_width(variant, channels, library, monkeypatch, poisoned):
    if variant not in library.variants:
        pytest.skip(f"this CPU does not run {variant}")
    monkeypatch.setenv("QMAMBA_NATIVE_ISA", variant)
    for rank, n, merge in [(1, 1, True), (2, 3, False), (3, 1, False), (5, 2, True), (19, 1, True)]:
        check((9, 11), local_scan_routes(4), channels=channels, rank=rank, n=n, merge=merge)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("merge", [True, False], ids=["merged", "stacked"])
def test_routes_of_several_chunks(n, merge, poisoned):
    check((47, 53), local_scan_routes(7), channels=33, batch=1, n=n, merge=merge)


def test_long_fades_stay_finite_and_right():
    """A = -4 and Δ up to 1 over 4,096 steps, and A = -0.001."""
    routes = (Route("row"), Route("row", reverse=True))
    for A, bias in [(-4.0, 0.5413), (-4.0, 20.0), (-1e-3, -2.0)]:
        inputs = make_inputs(64, 64, routes, batch=1, channels=3, dtype=torch.float32)
        with torch.no_grad():
            inputs["A"].fill_(A)
            inputs["dt_weight"].mul_(0.1)
            inputs["dt_bias"].fill_(bias)
        got = run(inputs, routes, "native", merge=True)
        assert all(v.isfinite().all() for v in got.values())
        truth = {name: t.double() for name, t in inputs.items()}
        assert_same(got, run(truth, routes, "torch", merge=True), 5e-5)


def step_sizes(pre):
    """softplus as the scan has it: y = Δ·x at the first step, with x = B = C = 1 and D = 0."""
    one = torch.ones(1, 1, 1, 1, 1)
    p, K = pre.numel(), 1
    return selective_scan(
        torch.ones(1, 1, 1, p), one, one, one, dt_weight=torch.zeros(K, p, 1), dt_bias=pre[None],
        A=-torch.ones(K, p, 1), D=torch.zeros(K, p), routes=[Route("row")], backend="native",
    ).flatten()  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_softplus_is_as_exact_as_float32(variant, library, monkeypatch):
    if variant not in library.variants:
        pytest.skip(f"this CPU does not run {variant}")
    monkeypatch.setenv("QMAMBA_NATIVE_ISA", variant)
    pre = torch.cat(
        [torch.linspace(-87, 87, 50_001), torch.linspace(-1, 1, 5_001), torch.tensor([1e4, 3e38])]
    )
    truth = torch.nn.functional.softplus(pre.double(), threshold=1e9)
    truth = torch.where(pre > 100, pre.double(), truth)
    assert ((step_sizes(pre).double() - truth).abs() / truth).max() < 2.5e-7  # two units in the last place
    tiny = step_sizes(torch.tensor([-88.0, -1e4, -3e38]))
    assert (tiny >= 0).all() and (tiny < 2e-38).all()
    assert step_sizes(torch.tensor([float("nan"), 0.0])).isnan().tolist() == [True, False]


def test_huge_step_sizes_give_finite_gradients():
    routes = cross_scan_routes()
    inputs = make_inputs(5, 6, routes, channels=20, dtype=torch.float32)
    with torch.no_grad():
        inputs["dt_bias"].copy_(
            torch.linspace(-1e4, 1e4, inputs["dt_bias"].numel()).view_as(inputs["dt_bias"])
        )
    got = run(inputs, routes, "native", merge=True)
    truth = {name: t.double() for name, t in inputs.items()}
    assert_same(got, run(truth, routes, "torch", merge=True), 2e-5)


def test_nan_in_is_nan_out():
    routes = cross_scan_routes()
    for name in ("x", "dt", "B", "C"):
        inputs = {k: v.detach() for k, v in make_inputs(3, 3, routes, dtype=torch.float32).items()}
        inputs[name][0, 1, 1] = float("nan")
        y = selective_scan(**inputs, routes=routes, backend="native")
        assert y[0, 1, 1].isnan().all() and not y[1].isnan().any()


def llvm_openmp() -> str | None:
    """The path of an OpenMP library with LLVM's functions, which torch has on Windows; loaded here."""
    folders = [Path(sys.prefix, "lib"), *Path("/usr/lib").glob("llvm-*/lib")]
    for path in (folder / name for folder in folders for name in ("libiomp5.so", "libomp.so.5")):
        if path.is_file():
            ctypes.CDLL(str(path))
            return str(path)
    return None


@pytest.fixture(params=["torch's", "llvm's", "python's"])
def whose_threads(request, monkeypatch):
    """Whose threads do the work."""
    if request.param == "python's":
        monkeypatch.setattr(pool, "torch_team", lambda: None)
    elif request.param == "llvm's":
        path = llvm_openmp()
        if path is None:
            pytest.skip("there is no OpenMP library of LLVM's or Intel's here")
        found = team.kmpc_team(path)
        assert found is not None
        monkeypatch.setattr(pool, "torch_team", lambda: found)
    elif team.torch_team() is None:
        pytest.skip("torch's threads cannot be used here")


def test_torchs_threads_are_known_among_others():
    home = Path(torch.__file__).resolve().parent
    own, bundled = str(home / "lib/libgomp.so.1"), str(home.with_name("torch.libs") / "libgomp-1.so")
    others = [str(home.with_name("scikit_learn.libs") / "libgomp-2.so"), "/usr/lib/libgomp.so.1"]
    assert team.of_torch([*others, own]) == own and team.of_torch([bundled, *others]) == bundled
    assert team.of_torch(others[1:]) == others[1]
    assert team.of_torch(others) is None and team.of_torch([]) is None


def test_a_library_that_is_not_loaded_has_no_team(tmp_path):
    for find in (team.gomp_team, team.kmpc_team):
        assert find(str(tmp_path / "libomp.so")) is None
    assert team.kmpc_team("libc.so.6") is None  # loaded, and not an OpenMP library


def test_torchs_threads_are_found_beside_those_of_scikit_learn():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    code = (
        "from qmamba.ops.native.team import torch_openmp, torch_team; alone = bytes(torch_team()); "
        "torch_team.cache_clear(), torch_openmp.cache_clear(); import sklearn.cluster; "
        "assert bytes(torch_team()) == alone"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("merge", [True, False], ids=["merged", "stacked"])
@pytest.mark.parametrize("batch", [1, 3, 12])
def test_same_bits_every_time_and_with_any_number_of_threads(batch, merge, threads, whose_threads):
    routes = local_scan_routes(2)
    inputs = make_inputs(16, 16, routes, batch=batch, channels=200, dtype=torch.float32)
    threads(1)
    want = run(inputs, routes, "native", merge=merge)
    for count in (1, 2, 2, 3):
        threads(count)
        got = run(inputs, routes, "native", merge=merge)
        assert all(torch.equal(got[name], want[name]) for name in want), count


def test_several_callers_at_once(threads, whose_threads):
    threads(2)
    routes = local_scan_routes(2)
    problems = [make_inputs(16, 16, routes, channels=70 + i, dtype=torch.float32, seed=i) for i in range(4)]
    want = [run(p, routes, "native", merge=False) for p in problems]
    wrong = []

    def caller(i):
        for _ in range(5):
            got = run(problems[i], routes, "native", merge=False)
            if not all(torch.equal(got[name], want[i][name]) for name in got):
                wrong.append(i)

    callers = [threading.Thread(target=caller, args=(i,)) for i in range(4)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_has_threads_of_its_own(library_folder):
    """In a process of its own: what is tested here must not depend on what else pytest has started."""
    code = f"""
import os, pathlib, torch
from qmamba.ops import local_scan_routes, native, selective_scan
native.FOLDER = pathlib.Path({str(library_folder)!r})
torch.set_num_threads(2)
routes = local_scan_routes(2)
x, p = torch.ones(4, 16, 16, 128), torch.ones(4, 16, 16, 4, 1)
w = dict(dt_weight=torch.ones(4, 128, 1), dt_bias=torch.zeros(4, 128), A=-torch.ones(4, 128, 1),
         D=torch.ones(4, 128), routes=routes, backend="native")
before = selective_scan(x, p, p, p, **w).numpy().tobytes()
child = os.fork()
if not child:
    os._exit(int(selective_scan(x, p, p, p, **w).numpy().tobytes() != before))
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scans_in_float32(dtype):
    routes = cross_scan_routes()
    inputs = make_inputs(8, 9, routes, dtype=dtype)
    got = run(inputs, routes, "native", merge=True)
    want = run({k: v.float() for k, v in inputs.items()}, routes, "native", merge=True)
    assert got["y"].dtype == dtype
    assert torch.equal(got["y"], want["y"].to(dtype))
    assert got["grad of A"].dtype == dtype


def test_views_are_read_where_they_are(poisoned):
    """dt, B and C as SS2D has them: slices of one projection; x and the cotangent out of order in memory."""
    routes = local_scan_routes(3)
    inputs = {k: v.detach() for k, v in make_inputs(7, 5, routes, channels=17, dtype=torch.float32).items()}
    together = torch.cat([inputs["dt"], inputs["B"], inputs["C"]], -1)
    sliced = dict(zip(("dt", "B", "C"), together.split((2, 1, 1), -1), strict=True))
    sliced["x"] = inputs["x"].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    leaves = {k: v.requires_grad_() for k, v in {**inputs, **sliced}.items()}
    y = selective_scan(**leaves, routes=routes, backend="native")
    cotangent = torch.randn(2, 17, 7, 5, generator=torch.Generator().manual_seed(1)).permute(0, 2, 3, 1)
    got = torch.autograd.grad(y, list(leaves.values()), cotangent)
    plain = {k: v.detach().contiguous().requires_grad_() for k, v in leaves.items()}
    want = selective_scan(**plain, routes=routes, backend="torch")
    torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-5)
    for a, b in zip(got, torch.autograd.grad(want, list(plain.values()), cotangent), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_auto_takes_it_for_float32_only(monkeypatch):
    calls = []
    scan = sys.modules["qmamba.ops.scan"]
    for name in ("torch", "native"):
        monkeypatch.setitem(scan._BACKENDS, name, lambda x, *_, name=name, **__: calls.append(name) or x)
    routes = cross_scan_routes()
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        selective_scan(**make_inputs(2, 2, routes, dtype=dtype), routes=routes)
    monkeypatch.setenv("QMAMBA_BACKEND", "torch")
    selective_scan(**make_inputs(2, 2, routes, dtype=torch.float32), routes=routes)
    assert calls == ["native", "native", "torch", "torch"]


def test_what_is_absent_says_how_to_get_it(tmp_path, monkeypatch):
    routes = cross_scan_routes()
    inputs = make_inputs(2, 2, routes, dtype=torch.float32)
    monkeypatch.setenv("QMAMBA_NATIVE_ISA", "mmx")
    with pytest.raises(BackendError, match="choose one of"):
        selective_scan(**inputs, routes=routes, backend="native")
    monkeypatch.setenv("QMAMBA_BACKEND", "gpu")
    with pytest.raises(BackendError, match="unknown scan backend 'gpu'"):
        selective_scan(**inputs, routes=routes)
    monkeypatch.delenv("QMAMBA_BACKEND")
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    assert selective_scan(**inputs, routes=routes).isfinite().all()  # by torch
    with pytest.raises(BackendError, match=r"qmamba\.ops\.native\.build"):
        selective_scan(**inputs, routes=routes, backend="native")
    Path(tmp_path, build.LIBRARY).write_bytes(b"not a library")
    monkeypatch.setattr(native, "_found", {})
    with pytest.raises(BackendError, match="cannot be loaded"):
        selective_scan(**inputs, routes=routes, backend="native")


def test_a_build_without_a_compiler_fails_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "qmamba.ops.native.build"], capture_output=True, text=True,
        env={**os.environ, "PATH": str(tmp_path), "CC": "no-such-compiler"}, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: no C compiler found")


def test_what_watches_operations_sees_those_of_torch():
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    routes = cross_scan_routes()
    inputs = {k: v.detach() for k, v in make_inputs(2, 3, routes, dtype=torch.float32).items()}
    with Watch():
        watched = selective_scan(**inputs, routes=routes)
    assert len(seen) > 50
    torch.testing.assert_close(watched, selective_scan(**inputs, routes=routes))


def test_export_holds_torch_operations():
    class Scan(torch.nn.Module):
        def forward(self, inputs):
            return selective_scan(**inputs, routes=cross_scan_routes())

    inputs = {k: v.detach() for k, v in make_inputs(2, 3, cross_scan_routes(), dtype=torch.float32).items()}
    exported = torch.export.export(Scan(), (inputs,)).module()
    torch.testing.assert_close(exported(inputs), selective_scan(**inputs, routes=cross_scan_routes()))
