"""How long LQMamba-T and QMamba-T take on a processor, beside Swin-T of about as many multiply-adds.

    pip install "qmamba[benchmarks]" && python benchmarks/cpu_vs_swin.py

Random weights, float32, eager. The models take turns within each round, so that a slow moment of the machine
hits all of them; the figure to read is the median ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import SwinConfig, SwinModel

from qmamba import create_model


def swin_t() -> Callable[[torch.Tensor], object]:
    config = SwinConfig(embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7)
    model = SwinModel(config).eval()
    return lambda images: model(pixel_values=images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--crops", type=int, nargs="+", default=[1, 10], help="224×224 crops in one pass")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--archs", nargs="+", default=["lqmamba-t", "qmamba-t"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    models = {"swin-t": swin_t(), **{arch: create_model(arch).eval() for arch in args.archs}}
    print(f"torch {torch.__version__}, {args.threads} threads, {args.rounds} rounds, float32")
    for crops in args.crops:
        images = torch.randn(crops, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        times: dict[str, list[float]] = {name: [] for name in models}
        with torch.inference_mode():
            for repeat in range(args.rounds + 1):
                for name, model in models.items():
                    began = time.perf_counter()
                    model(images)
                    if repeat:  # the first round warms up
                        times[name].append(time.perf_counter() - began)
        for name, taken in times.items():
            ratio = statistics.median(t / s for t, s in zip(taken, times["swin-t"], strict=True))
            print(
                f"{crops:3d} crops {name:10s} {1e3 * statistics.median(taken):8.1f} ms {ratio:5.2f} × swin-t"
            )


if __name__ == "__main__":
    main()
