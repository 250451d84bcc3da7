"""How long our models take on a processor, whole and in parts, beside Swin-T and others of Hugging Face.

    pip install "qmamba[benchmarks]" && python benchmarks/speed.py --out speed.json --plot speed.svg

Random weights, float32, eager. The models take turns within each round, so that a slow moment of the machine
hits all of them; ratios are medians over the rounds of time ÷ Swin-T's time in the same round. Memory is what
a process of its own needs at most for one pass, beyond what it holds before.
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
SLOW = {"reference": 10 * 224**2, "vit-s": 768 * 1024}  # the most pixels that these are given


def models(names: list[str]) -> dict[str, tuple[nn.Module, Forward]]:
    """Networks in evaluation mode, each with a function of images (B, 3, H, W) to a tensor."""
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
    """Seconds of each run in each round, after one to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            spent = seconds(run)
            if number:
                taken[name].append(spent)
    return taken


def whole_models(nets: dict[str, tuple[nn.Module, Forward]], args: argparse.Namespace) -> dict[str, Any]:
    """Forward passes of every case, then forward and backward of the ten crops."""
    found: dict[str, Any] = {}
    for title in args.cases:
        batch, height, width = CASES[title]
        images, pixels = images_of(CASES[title]), batch * height * width
        fit = {name: f for name, (_, f) in nets.items() if pixels <= SLOW.get(name, pixels)}
        with torch.inference_mode():
            runs = {name: partial(forward, images) for name, forward in fit.items()}
            rounds = args.rounds if pixels < 10**6 else max(2, args.rounds // 2)
            found[title] = _told(title, pixels, in_turns(runs, rounds))
    if args.backward:
        images = images_of(CASES["ten 224 crops"])
        runs = {name: partial(step, *net, images) for name, net in nets.items() if name != "reference"}
        title = "forward + backward, ten 224 crops"
        found[title] = _told(title, images.numel() // 3, in_turns(runs, max(2, args.rounds // 2)))
    return found


def step(net: nn.Module, forward: Forward, images: Tensor) -> Tensor:
    net.zero_grad(set_to_none=True)
    out = forward(images)
    out.backward()
    return out


def _told(title: str, pixels: int, taken: dict[str, list[float]]) -> dict[str, Any]:
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
    """Add up the seconds of the parts of one of our networks, by kind."""
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
    """Median milliseconds of each kind of part of a forward pass; `rest` is what is left of the whole."""
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
    """MB that a forward pass needs beyond what the process held before it."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (name, case, threads))


def _peak(name: str, case: tuple[int, int, int], threads: int) -> float:
    torch.set_num_threads(threads)
    _, forward = _model(name)
    images = images_of(case)
    with torch.inference_mode():
        forward(torch.randn(1, 3, 224, 224))  # libraries are loaded by then
        before = _most_held(forget=True)
        forward(images)
    return round((_most_held() - before) / 1e6, 1)


def _most_held(forget: bool = False) -> float:
    """Bytes that this process has held at most; with ``forget``, from now on, which only Linux can."""
    if sys.platform != "linux":
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    (line,) = (v for v in Path("/proc/self/status").read_text().splitlines() if v.startswith("VmHWM"))
    return 1024 * float(line.split()[1])


# Colours of Okabe and Ito, which people with any colour vision can tell apart, each with a marker of its own.
STYLES = {
    "lqmamba-n": ("#009E73", "o-"),
    "lqmamba-t": ("#0072B2", "s-"),
    "lqmamba-t torch": ("#0072B2", "s--"),
    "qmamba-t": ("#56B4E9", "P-"),
    BASE: ("#D55E00", "^-"),
    "resnet-50": ("#666666", "D-"),
    "convnext-t": ("#CC79A7", "v-"),
    "vit-s": ("#000000", "X-"),
}


def plot(found: dict[str, Any], names: Sequence[str], path: Path) -> None:
    """Time against pixels of single images, both logarithmic."""
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
        figure.savefig(path, metadata={"Date": None})  # the same bytes for the same numbers


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
    ]
    parser.add_argument(
        "--models",
        nargs="+",
        default=every,
        help='also: reference, any of our archs, and any name with " compiled" after it',
    )
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--backward", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--parts", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path, help="an .svg; needs matplotlib")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} threads, {args.rounds} rounds, float32")
    report: dict[str, Any] = {"torch": torch.__version__, "threads": args.threads, "rounds": args.rounds}
    torch._dynamo.config.recompile_limit = 64  # types of one model and shapes of every case
    report["models"] = whole_models(models(args.models), args)
    if args.parts:
        report["parts"] = {title: parts("lqmamba-t", CASES[title], args.rounds) for title in args.cases[:2]}
        for title, row in report["parts"].items():
            print(f"parts of lqmamba-t, {title}, ms: " + ", ".join(f"{k} {v}" for k, v in row.items()))
    if args.memory:
        report["memory"] = {}
        for title in args.cases:
            chosen = [n for n in args.models if n in (BASE, "lqmamba-t", "lqmamba-n")]
            row = {name: peak_memory(name, CASES[title], args.threads) for name in chosen}
            report["memory"][title] = row
            print(f"peak memory, {title}, MB: " + ", ".join(f"{k} {v}" for k, v in row.items()), flush=True)
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if args.plot:
        plot(report["models"], args.models, args.plot)


if __name__ == "__main__":
    main()
