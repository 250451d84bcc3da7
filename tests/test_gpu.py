"""The kernels on a GPU, at sizes of real models, against float64. `make gpu-check` runs this."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
import torch

import qmamba
from qmamba.ops import cross_scan_routes, local_scan_routes, selective_scan
from test_gated_scan import check as check_gated
from test_gated_scan import make as make_gated
from test_selective_scan import make_inputs

if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU", allow_module_level=True)
ROUTES = {"cross": cross_scan_routes(), "windows": local_scan_routes(7)}
SIZES = [  # batch, height, width, channels, rank
    (128, 56, 56, 192, 6),
    (32, 28, 28, 384, 12),
    (128, 14, 14, 768, 24),
    (128, 7, 7, 2048, 64),
    (4, 112, 112, 256, 8),
    (1, 192, 256, 192, 6),
]
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}  # of the largest magnitude


@pytest.fixture(autouse=True)
def poison():
    """Outputs are NaN where they are not written."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def on_gpu(inputs, dtype):
    halves = ("x", "dt", "B", "C")  # weights stay float32, as under autocast
    return {
        name: t.detach().cuda().to(dtype if name in halves else torch.float32) for name, t in inputs.items()
    }


def outcome(inputs, routes, backend, merge):
    leaves = {name: t.requires_grad_() for name, t in inputs.items()}
    y = selective_scan(**leaves, routes=routes, merge=merge, backend=backend)
    g = torch.Generator(device="cuda").manual_seed(1)
    cotangent = torch.randn(y.shape, generator=g, device="cuda").to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, list(leaves.values()), cotangent)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("merge", [True, False], ids=["merged", "apart"])
@pytest.mark.parametrize("routes", ROUTES.values(), ids=ROUTES.keys())
@pytest.mark.parametrize("size", SIZES, ids=lambda s: "x".join(map(str, s)))
def test_forward_and_gradients_at_real_sizes(size, routes, merge, dtype):
    """Some images of a batch suffice for the truth: images know nothing of each other, but for the weights,
    whose gradients are compared over all images in the smaller batches."""
    batch, height, width, channels, rank = size
    subset = min(batch, 4)
    inputs = on_gpu(make_inputs(height, width, routes, batch=subset, channels=channels, rank=rank), dtype)
    exact = {name: t.double() for name, t in inputs.items()}
    want = outcome(exact, routes, "torch", merge)
    got = outcome(inputs, routes, "triton", merge)
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert (a.double() - b).abs().max() <= TOLERANCE[dtype] * max(b.abs().max().item(), 0.1), i
    if batch > subset:
        grids = [name for name in inputs if name in ("x", "dt", "B", "C")]
        many = {
            name: t.detach().repeat(batch // subset, *[1] * (t.ndim - 1)) if name in grids else t.detach()
            for name, t in inputs.items()
        }
        y = selective_scan(**many, routes=routes, merge=merge, backend="triton")
        assert torch.equal(y[:subset], y[-subset:]) and y.isfinite().all()


def test_the_plain_loop_agrees_on_a_gpu():
    routes = cross_scan_routes()
    inputs = on_gpu(make_inputs(56, 56, routes, batch=2, channels=192, rank=6), torch.float32)
    want = selective_scan(**{n: t.double() for n, t in inputs.items()}, routes=routes, backend="reference")
    got = selective_scan(**inputs, routes=routes, backend="triton")
    assert (got.double() - want).abs().max() <= 2e-5 * want.abs().max()


@pytest.mark.parametrize("grid", [(56, 56), (7, 13)], ids=lambda g: f"{g[0]}x{g[1]}")
def test_scan_and_gate_together(grid):
    routes = local_scan_routes(7)
    check_gated([t.cuda() for t in make_gated(grid, routes, channels=192, rank=6)], routes, tolerance=1e-4)


def test_same_input_same_bits():
    routes = local_scan_routes(7)
    inputs = on_gpu(make_inputs(56, 56, routes, batch=4, channels=192, rank=6), torch.bfloat16)
    first, second = (outcome(inputs, routes, "triton", False) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_a_gpu_gets_triton_by_itself():
    assert next(b for b in qmamba.backends() if b.name == "triton").usable
    scorer = qmamba.load().cuda()
    image = torch.rand(3, 300, 400)
    on_card = scorer.score(image)
    assert abs(on_card - qmamba.load().score(image)) < 1e-3


@pytest.mark.parametrize("arch", ["lqmamba-n", "qmamba-t"])
def test_compiled_whole(arch):
    net = qmamba.create_model(arch, drop_path=0.0).cuda().eval()
    x = torch.rand(2, 3, 224, 224, device="cuda")
    eager = net(x)
    compiled = torch.compile(net, fullgraph=True)(x)
    torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_training_with_autocast_stays_finite(dtype):
    torch.manual_seed(0)
    net = qmamba.create_model("lqmamba-n").cuda().train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    x, mos = torch.rand(16, 3, 224, 224, device="cuda"), torch.rand(16, 1, device="cuda")
    losses = []
    for _ in range(200):
        optimiser.zero_grad()
        with torch.autocast("cuda", dtype):
            loss = torch.nn.functional.smooth_l1_loss(net(x).float(), mos)
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        losses.append(loss.item())
    assert all(torch.isfinite(torch.tensor(losses))) and losses[-1] < losses[0]
    assert all(p.isfinite().all() for p in net.parameters())


def test_compute_sanitizer_finds_nothing():
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if tool is None:
        pytest.skip("compute-sanitizer is not installed: it comes with the CUDA toolkit")
    command = [tool, "--error-exitcode", "1", sys.executable, __file__]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


if __name__ == "__main__":  # what compute-sanitizer watches
    for routes in ROUTES.values():
        for merge in (True, False):
            inputs = on_gpu(make_inputs(7, 13, routes, batch=2, channels=37, rank=3), torch.float32)
            outcome(inputs, routes, "triton", merge)
