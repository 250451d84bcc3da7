"""Time our models on a CPU, whole and in parts, against Swin-T and other models of Hugging Face.

    pip install "qmamba[benchmarks]" && python benchmarks/speed.py --out speed.json --plot speed.svg
    python benchmarks/speed.py --models lqmamba-t swin-t loda --cases "one 224 crop" "ten 224 crops" \
        --threads 2 --no-parts --out benchmarks/results/speed_loda.json    # table of LoDa in docs/speed.md

Random weights, float32, eager. Models are interleaved within each round, so that slow moments of the machine
affect all of them; ratios are medians over rounds of time ÷ Swin-T's time in the same round. Memory is the
peak of one pass in a separate process, beyond the memory before it. A model that takes images of one size is
left out of the other cases. The backward pass reaches what a model trains: in LoDa not its towers' weights.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import qmamba
from qmamba.models.capabilities import OneSize
from qmamba.models.qmamba.ss2d import SS2D

Forward = Callable[[Tensor], Tensor]
BASE = "swin-t"
CASES = {  # name → batch, height, width
    "one 224 crop": (1, 224, 224),
    "ten 224 crops": (10, 224, 224),
    "384×512": (1, 384, 512),
    "768×1024": (1, 768, 1024),
    "1536×2048": (1, 1536, 2048),
}
MEASURED_MEMORY = (BASE, "lqmamba-t", "lqmamba-n", "loda")
SLOW = {"reference": 10 * 224**2, "vit-s": 768 * 1024}  # maximum pixels for slow models


def models(names: list[str]) -> dict[str, tuple[nn.Module, Forward]]:
    """Return networks in evaluation mode, each with a function from images (B, 3, H, W) to a tensor."""
    return {name: _model(name) for name in names}


def _model(name: str) -> tuple[nn.Module, Forward]:
    import transformers as hf

    torch.manual_seed(0)
    if name.endswith(" compiled"):
        net, forward = _model(name.removesuffix(" compiled"))
        return net, torch.compile(forward, fullgraph=name != "swin-t compiled")
    if name == "swin-t":
        config = hf.SwinConfig(embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7)
        net = hf.SwinModel(config)
    elif name == "convnext-t":
        net = hf.ConvNextModel(hf.ConvNextConfig())
    elif name == "vit-s":
        net = hf.ViTModel(hf.ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536))
        net.eval()
        return net, lambda x: net(pixel_values=x, interpolate_pos_encoding=True).last_hidden_state.mean()
    elif name == "resnet-50":
        net = hf.ResNetModel(hf.ResNetConfig())
    else:
        arch = "lqmamba-t" if name in ("reference", "lqmamba-t torch") else name
        net = qmamba.create_model(arch).eval()
        forced = {"reference": "reference", "lqmamba-t torch": "torch"}.get(name)
        if forced is None:
            return net, lambda x: net(x).mean()
        return net, lambda x: _forced(net, x, forced)
    net.eval()
    return net, lambda x: net(pixel_values=x).last_hidden_state.mean()


def _forced(net: nn.Module, x: Tensor, backend: str) -> Tensor:
    before = os.environ.get("QMAMBA_BACKEND")
    os.environ["QMAMBA_BACKEND"] = backend
    try:
        out: Tensor = net(x).mean()
        return out
    finally:
        os.environ.pop("QMAMBA_BACKEND")
        if before is not None:
            os.environ["QMAMBA_BACKEND"] = before


def images_of(case: tuple[int, int, int]) -> Tensor:
    batch, height, width = case
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def in_turns(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of interleaved runs in each round, after one warm-up round."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            spent = seconds(run)
            if number:
                taken[name].append(spent)
    return taken


def whole_models(nets: dict[str, tuple[nn.Module, Forward]], args: argparse.Namespace) -> dict[str, Any]:
    """Time forward passes of every case, then forward and backward of the ten crops."""
    found: dict[str, Any] = {}
    for title in args.cases:
        batch, height, width = CASES[title]
        images, pixels = images_of(CASES[title]), batch * height * width
        fit = {
            name: forward
            for name, (net, forward) in nets.items()
            if pixels <= SLOW.get(name, pixels) and takes(net, height, width)
        }
        with torch.inference_mode():
            runs = {name: partial(forward, images) for name, forward in fit.items()}
            rounds = args.rounds if pixels < 10**6 else max(2, args.rounds // 2)
            found[title] = _report(title, pixels, in_turns(runs, rounds))
    if args.backward:
        images = images_of(CASES["ten 224 crops"])
        runs = {name: partial(step, *net, images) for name, net in nets.items() if name != "reference"}
        title = "forward + backward, ten 224 crops"
        found[title] = _report(title, images.numel() // 3, in_turns(runs, max(2, args.rounds // 2)))
    return found


def takes(net: nn.Module, height: int, width: int) -> bool:
    """Return whether a network takes images of this size."""
    return not isinstance(net, OneSize) or net.input_size == (height, width)


def step(net: nn.Module, forward: Forward, images: Tensor) -> Tensor:
    net.zero_grad(set_to_none=True)
    out = forward(images)
    out.backward()
    return out


def _report(title: str, pixels: int, taken: dict[str, list[float]]) -> dict[str, Any]:
    rows: dict[str, Any] = {"pixels": pixels}
    print(title)
    for name, times in taken.items():
        row = {"ms": round(1e3 * statistics.median(times), 1)}
        if BASE in taken:
            row["ratio"] = round(statistics.median(t / b for t, b in zip(times, taken[BASE], strict=True)), 3)
        rows[name] = row
        ratio = f"  {row['ratio']:6.2f} × {BASE}" if "ratio" in row else ""
        print(f"  {name:16s} {row['ms']:9.1f} ms{ratio}", flush=True)
    return rows


# Parts


@contextmanager
def timed_parts(net: nn.Module, spent: dict[str, float]) -> Iterator[None]:
    """Accumulate the seconds of the parts of one of our networks, by kind."""
    began: dict[nn.Module, float] = {}
    inside = [False]
    handles = []

    def start(module: nn.Module, _: object) -> None:
        began[module] = time.perf_counter()

    def stop_as(kind: str) -> Callable[..., None]:
        def stop(module: nn.Module, *_: object) -> None:
            took = time.perf_counter() - began[module]
            spent[kind] += took
            if inside[0]:  # a projection within the scan is not counted twice
                spent["scan and gate"] -= took

        return stop

    for name, module in net.named_modules():
        kind = _kind(name, module)
        if kind is not None:
            handles += [module.register_forward_pre_hook(start), module.register_forward_hook(stop_as(kind))]
    plain, plain_conv = SS2D.scan, SS2D._conv_in_place

    def scan(self: SS2D, x: Tensor, out: Tensor | None = None) -> Tensor:
        inside[0], since = True, time.perf_counter()
        y = plain(self, x, out)
        spent["scan and gate"] += time.perf_counter() - since
        inside[0] = False
        return y

    def conv(self: SS2D, x: Tensor) -> None:
        since = time.perf_counter()
        plain_conv(self, x)
        spent["depthwise conv"] += time.perf_counter() - since

    SS2D.scan, SS2D._conv_in_place = scan, conv  # type: ignore[method-assign]
    try:
        yield
    finally:
        SS2D.scan, SS2D._conv_in_place = plain, plain_conv  # type: ignore[method-assign]
        for handle in handles:
            handle.remove()


def _kind(name: str, module: nn.Module) -> str | None:
    if name == "stem":
        return "stem"
    if name.endswith("downsample"):
        return "downsampling"
    if name.endswith("mlp"):
        return "MLP"
    if ".blocks." not in name or ".mlp." in name or ".gate" in name:
        return None
    if isinstance(module, nn.LayerNorm):
        return "norms"
    return "projections" if isinstance(module, nn.Linear) else None


def parts(arch: str, case: tuple[int, int, int], rounds: int) -> dict[str, float]:
    """Return median milliseconds of each kind of part of a forward pass; `rest` is the remainder."""
    net, images = qmamba.create_model(arch).eval(), images_of(case)
    rows: list[dict[str, float]] = []
    with torch.inference_mode():
        for number in range(rounds + 1):
            spent: dict[str, float] = defaultdict(float)
            with timed_parts(net, spent):
                whole = seconds(lambda: net(images))
            spent["rest"] = whole - sum(spent.values())
            if number:
                rows.append({**spent, "whole": whole})
    return {kind: round(1e3 * statistics.median(row[kind] for row in rows), 1) for kind in rows[0]}


# Memory


def peak_memory(name: str, case: tuple[int, int, int], threads: int) -> float:
    """Return the peak MB of a forward pass beyond the memory before it, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (name, case, threads))


def _peak(name: str, case: tuple[int, int, int], threads: int) -> float:
    torch.set_num_threads(threads)
    _, forward = _model(name)
    images = images_of(case)
    with torch.inference_mode():
        forward(torch.randn(1, 3, 224, 224))  # warm up, so that libraries are loaded
        before = _peak_bytes(reset=True)
        forward(images)
    return round((_peak_bytes() - before) / 1e6, 1)


def _peak_bytes(reset: bool = False) -> float:
    """Return the peak memory of this process in bytes; ``reset`` starts a new peak (Linux only)."""
    if sys.platform != "linux":
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    (line,) = (v for v in Path("/proc/self/status").read_text().splitlines() if v.startswith("VmHWM"))
    return 1024 * float(line.split()[1])


# Colours of Okabe and Ito, distinguishable with any colour vision, and a marker for each.
STYLES = {
    "lqmamba-n": ("#009E73", "o-"),
    "lqmamba-t": ("#0072B2", "s-"),
    "lqmamba-t torch": ("#0072B2", "s--"),
    "qmamba-t": ("#56B4E9", "P-"),
    BASE: ("#D55E00", "^-"),
    "resnet-50": ("#666666", "D-"),
    "convnext-t": ("#CC79A7", "v-"),
    "vit-s": ("#000000", "X-"),
    "loda": ("#E69F00", "*-"),
}


def plot(found: dict[str, Any], names: Sequence[str], path: Path) -> None:
    """Plot time against pixels of single images, both logarithmic."""
    import matplotlib
    from matplotlib.figure import Figure

    single = [rows for title, rows in found.items() if title in CASES and CASES[title][0] == 1]
    with matplotlib.rc_context({"svg.hashsalt": "speed", "svg.fonttype": "path", "font.size": 13}):
        figure = Figure(figsize=(5.8, 4.2), layout="constrained")
        axes = figure.subplots()
        for name in names:
            points = [(rows["pixels"], rows[name]["ms"]) for rows in single if name in rows]
            colour, style = STYLES.get(name, ("#444444", "x:"))
            label = name.replace(" torch", ", plain torch")
            axes.loglog(*zip(*points, strict=True), style, color=colour, label=label, linewidth=1.6)
        axes.set(xlabel="pixels of one image", ylabel="milliseconds, forward")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, reverse=True)
        figure.savefig(path, metadata={"Date": None})  # reproducible bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    every = [
        "lqmamba-t",
        "lqmamba-t torch",
        "qmamba-t",
        "lqmamba-n",
        BASE,
        "convnext-t",
        "vit-s",
        "resnet-50",
        "loda",
    ]
    parser.add_argument(
        "--models",
        nargs="+",
        default=every,
        help='also: reference, any of our architectures, and any name followed by " compiled"',
    )
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--backward", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--parts", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path, help="SVG file of a plot; needs matplotlib")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} threads, {args.rounds} rounds, float32")
    report: dict[str, Any] = {"torch": torch.__version__, "threads": args.threads, "rounds": args.rounds}
    torch._dynamo.config.recompile_limit = 64  # dtypes of a model and shapes of all cases
    nets = models(args.models)
    report["models"] = whole_models(nets, args)
    if args.parts:
        report["parts"] = {title: parts("lqmamba-t", CASES[title], args.rounds) for title in args.cases[:2]}
        for title, row in report["parts"].items():
            print(f"parts of lqmamba-t, {title}, ms: " + ", ".join(f"{k} {v}" for k, v in row.items()))
    if args.memory:
        report["memory"] = {}
        for title in args.cases:
            chosen = [
                name
                for name in args.models
                if name in MEASURED_MEMORY and takes(nets[name][0], *CASES[title][1:])
            ]
            row = {name: peak_memory(name, CASES[title], args.threads) for name in chosen}
            report["memory"][title] = row
            print(f"peak memory, {title}, MB: " + ", ".join(f"{k} {v}" for k, v in row.items()), flush=True)
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if args.plot:
        plot(report["models"], args.models, args.plot)


if __name__ == "__main__":
    main()
