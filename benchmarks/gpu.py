r"""Time the Triton scan and whole models on a GPU.

    python benchmarks/gpu.py --out gpu.json

Reports medians over rounds in which the candidates are interleaved. The scan is compared with a device copy:
bytes counted once (x, dt, B and C in, y out; backward also the cotangent in and the gradients out) over the
time, as a share of the bandwidth of copying a large tensor. Its baseline, written here from scratch, has the
layout of published code: four permuted copies of the features, Δ expanded in memory, and one scan kernel.
Whole models are compared with Hugging Face's Swin-T, with random weights, in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import qmamba
from qmamba.ops import cross_scan_routes, local_scan_routes, selective_scan
from qmamba.ops.backend import no_mamba_ssm

ROUNDS = 20
STAGES = {"stage 1": (56, 192, 6), "stage 2": (28, 384, 12)}  # of lqmamba-t at 224: side, channels, rank
IMAGES = {"224": (32, 224, 224), "768×1024": (1, 768, 1024)}
SCANS = {"cross, merged": (cross_scan_routes(), True), "windows, apart": (local_scan_routes(7), False)}
Call = Callable[[], Any]


def milliseconds(calls: dict[str, Call], rounds: int = ROUNDS) -> dict[str, float]:
    """Return median times of interleaved calls, after three warm-up rounds."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds + 3):
        for name, call in calls.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            if i >= 3:
                spent[name].append(start.elapsed_time(end))
    return {name: statistics.median(times) for name, times in spent.items()}


def peak(call: Call) -> int:
    """Return the peak bytes allocated during a call, beyond those before it."""
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def bandwidth() -> float:
    """Return the bandwidth of copying 1 GiB, in bytes per second read and written."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / milliseconds({"copy": lambda: target.copy_(source)})["copy"] * 1e3


# --- the scan ----------------------------------------------------------------------------------------------


def arguments(side: int, D: int, R: int, K: int, dtype: torch.dtype, batch: int = 32) -> dict[str, Tensor]:
    """Return random arguments of the op; dt, B and C are views of one projection, as in models."""
    g = torch.Generator(device="cuda").manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device="cuda")

    packed = draw(batch, side, side, K, R + 2).to(dtype)
    dt, B, C = torch.split(packed, [R, 1, 1], -1)
    return {
        "x": draw(batch, side, side, D).to(dtype), "dt": dt, "B": B, "C": C,
        "dt_weight": draw(K, D, R) / R**0.5, "dt_bias": draw(K, D) - 3, "A": -draw(K, D, 1).exp(),
        "D": draw(K, D),
    }  # fmt: skip


def scan_rows(copied: float) -> Iterator[dict[str, Any]]:
    """Yield shares of the copy bandwidth, and the baseline's times, of the scan at batch 32."""
    from gpu_baseline import scan_of_copies

    for stage, (side, D, R) in STAGES.items():
        for dtype in (torch.bfloat16, torch.float32):
            for what, (routes, merge) in SCANS.items():
                args = arguments(side, D, R, len(routes), dtype)
                leaves = {name: t.detach().requires_grad_() for name, t in args.items()}

                def forward(
                    args: dict[str, Tensor] = args,
                    routes: Any = routes,
                    merge: bool = merge,
                    backend: str = "triton",
                ) -> Tensor:
                    return selective_scan(**args, routes=routes, merge=merge, backend=backend)

                y = forward()
                cotangent = torch.randn_like(y)

                def both(leaves: Any = leaves, cotangent: Tensor = cotangent, run: Any = forward) -> None:
                    torch.autograd.grad(run(leaves), list(leaves.values()), cotangent)

                calls: dict[str, Call] = {"forward": forward, "forward + backward": both}
                if merge:
                    calls["baseline"] = lambda args=args, routes=routes: scan_of_copies(args, routes)
                    difference = (y - scan_of_copies(args, routes)).abs().max() / y.abs().max()
                    assert difference < 2e-2, f"scan and baseline differ by {difference:.1e}"
                if no_mamba_ssm() is None:
                    calls |= {
                        "mamba-ssm": partial(forward, args, routes, merge, "mamba-ssm"),
                        "mamba-ssm, forward + backward": partial(
                            both, run=partial(forward, routes=routes, merge=merge, backend="mamba-ssm")
                        ),
                    }
                took = milliseconds(calls)
                read = sum(args[name].numel() * args[name].element_size() for name in ("x", "dt", "B", "C"))
                once = read + y.numel() * y.element_size()
                yield {
                    "stage": stage, "scan": what, "dtype": str(dtype).removeprefix("torch."), "ms": took,
                    "forward, share of copy": once / took["forward"] * 1e3 / copied,
                    "forward + backward, share of copy": (2 * once + read) / took["forward + backward"] * 1e3
                    / copied,
                    "bytes at most": {name: peak(call) for name, call in calls.items()},
                }  # fmt: skip


# --- whole models ------------------------------------------------------------------------------------------


def networks() -> dict[str, tuple[nn.Module, Callable[[Tensor], Tensor]]]:
    """Return lqmamba-t and Swin-T, eager and compiled, each with a function from images to a tensor."""
    import transformers as hf

    torch.manual_seed(0)
    ours = qmamba.create_model("lqmamba-t").cuda().bfloat16()
    config = hf.SwinConfig(embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7)
    swin = hf.SwinModel(config).cuda().bfloat16()

    def rate(x: Tensor) -> Tensor:
        return ours(x).mean()

    def feel(x: Tensor) -> Tensor:
        return swin(pixel_values=x).last_hidden_state.mean()

    return {
        "lqmamba-t": (ours, rate),
        "swin-t": (swin, feel),
        "lqmamba-t compiled": (ours, torch.compile(rate)),
        "swin-t compiled": (swin, torch.compile(feel)),
    }


def model_rows() -> Iterator[dict[str, Any]]:
    """Yield times of inference and training steps, and ratios to Swin-T's."""
    nets = networks()
    for title, shape in IMAGES.items():
        batch, height, width = shape
        x = torch.rand(batch, 3, height, width, device="cuda", dtype=torch.bfloat16)
        x = x.contiguous(memory_format=torch.channels_last)
        for step in ("inference", "training step"):
            calls = {name: _step(step, *net, x) for name, net in nets.items()}
            took = milliseconds(calls)
            yield {
                "image": title, "batch": batch, "step": step, "ms": took,
                "ratio, eager": took["lqmamba-t"] / took["swin-t"],
                "ratio, compiled": took["lqmamba-t compiled"] / took["swin-t compiled"],
            }  # fmt: skip


def _step(kind: str, net: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Call:
    def infer() -> None:
        with torch.inference_mode():
            forward(x)

    def learn() -> None:
        net.zero_grad(set_to_none=True)
        forward(x).backward()

    if kind == "inference":
        net.eval()
        return infer
    net.train()
    return learn


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="write all results to this JSON file")
    args = parser.parse_args()
    reason = next(b.note for b in qmamba.backends() if b.name == "triton")
    if not torch.cuda.is_available():
        sys.exit(f"cannot measure here: {reason}")
    copied = bandwidth()
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(), "torch": torch.__version__, "copy, bytes a second": copied,
        "scan": [], "models": [],
    }  # fmt: skip
    for part, rows in {"scan": scan_rows(copied), "models": model_rows()}.items():
        for row in rows:
            print(json.dumps(row), file=sys.stderr)
            report[part].append(row)
            if args.out:  # saved after each row, since compiling takes long and a run may be interrupted
                args.out.write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
