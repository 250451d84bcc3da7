"""Compare the crops per second of the data loader with those of a network in training.

    python benchmarks/loader.py --data-root DATA --set biq2021 --models lqmamba-n lqmamba-t --workers 0 1 2

The loader decodes a photograph for each crop, resizes it to the size of its set, crops and flips it, as in
training. The network runs whole steps (forward, backward, AdamW) on prepared batches. The two are interleaved
over the rounds; medians are reported. ``--device cuda`` puts the network on a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from qmamba.models import create_model
from qmamba.train.losses import smooth_l1
from qmamba.train.networks import interface_of
from qmamba.train.optimisers import parameter_groups
from qmamba.train.paper import PaperRecipe
from qmamba.train.paper.sets import Crops, read_set, split_set


def crops_of(name: str, root: Path, batch: int, cache: Path | None) -> Crops:
    """Return the crops of a set's training fold."""
    recipe = PaperRecipe(task="single", name="loader", arch="lqmamba-n", data=(name,), batch=batch, epochs=99)
    images = split_set(name, read_set(name, root), recipe, 0, cache=cache)
    return Crops([images], recipe, seed=0)


def loading(crops: Crops, workers: int, batches: int) -> float:
    """Return crops per second of the loader, without the first batch, during which workers start."""
    loader = DataLoader(crops, batch_size=crops.batch, num_workers=workers)
    taken = iter(loader)
    next(taken)
    began = time.perf_counter()
    count = sum(len(mos) for _, mos in islice(taken, batches))
    return count / (time.perf_counter() - began)


def learning(arch: str, batch: int, size: int, steps: int, device: str) -> float:
    """Return crops per second of training steps, after one warm-up step."""
    torch.manual_seed(0)
    network = create_model(arch).to(device).train()
    interface = interface_of(arch)
    optimiser = torch.optim.AdamW(parameter_groups(network, torch.nn.ModuleList(), 0.05), lr=1e-4)
    pixels = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8, device=device)
    mos = torch.rand(batch, device=device)
    began = 0.0
    for step in range(steps + 1):
        if step == 1:
            _wait(device)
            began = time.perf_counter()
        optimiser.zero_grad()
        smooth_l1(interface.see(network, pixels).raw, mos).backward()
        optimiser.step()
    _wait(device)
    return steps * batch / (time.perf_counter() - began)


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="see `qmamba reproduce`")
    parser.add_argument("--set", default="biq2021", help="data set in --data-root")
    parser.add_argument("--cache", type=Path, help="see `qmamba reproduce`")
    parser.add_argument("--models", nargs="+", default=["lqmamba-n", "lqmamba-t"])
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=6, help="batches of the loader per round")
    parser.add_argument("--steps", type=int, default=2, help="steps of the network per round")
    parser.add_argument("--device", default="cpu", help="device of the network")
    parser.add_argument("--out", type=Path, help="write medians to this JSON file")
    args = parser.parse_args()
    crops = crops_of(args.set, args.data_root, args.batch, args.cache)
    found: dict[str, Any] = {}
    for _ in range(args.rounds):
        for workers in args.workers:
            speed = loading(crops, workers, args.batches)
            found.setdefault(f"loader, {workers} workers", []).append(speed)
        for arch in args.models:
            speed = learning(arch, args.batch, crops.recipe.crop, args.steps, args.device)
            found.setdefault(f"{arch} on {args.device}", []).append(speed)
    medians = {name: round(statistics.median(speeds), 1) for name, speeds in found.items()}
    for name, speed in medians.items():
        print(f"{name:24s} {speed:8.1f} crops/s")
    if args.out is not None:
        args.out.write_text(json.dumps({"set": args.set, "batch": args.batch, **medians}, indent=2) + "\n")


if __name__ == "__main__":
    main()
