"""Measure memory and time of a scorer as a loss on the CPU, with and without activation checkpointing.

    python benchmarks/loss_memory.py [--model lqmamba-n] [--sides 512 1024] [--threads 1]

Each case runs in a separate process: forward and backward of one image, scored whole. Memory is the growth of
the process's peak (ru_maxrss, Linux); time is the shorter of two runs.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch

import qmamba


def step(scorer: qmamba.Scorer, side: int) -> tuple[float, torch.Tensor]:
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).requires_grad_()
    start = time.perf_counter()
    scorer(image).sum().backward()
    assert image.grad is not None
    return time.perf_counter() - start, image.grad


def peak() -> int:
    """Return the peak memory in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def one_case(model: str, side: int, checkpointing: bool, threads: int) -> dict[str, float]:
    torch.set_num_threads(threads)
    scorer = qmamba.load(model, protocol="whole", checkpointing=checkpointing)
    step(scorer, 64)
    before = peak()
    first, gradient = step(scorer, side)
    grown = (peak() - before) / 1024
    second, _ = step(scorer, side)
    return {"MiB": grown, "s": min(first, second), "gradient": float(gradient.norm())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="lqmamba-n")
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        side, checkpointing = json.loads(options.case)
        print(json.dumps(one_case(options.model, side, checkpointing, options.threads)))
        return
    print("| side | checkpointing | MiB | s | norm of the gradient |\n|---:|---|---:|---:|---:|")
    for side in options.sides:
        for checkpointing in (False, True):
            command = [sys.executable, __file__, "--model", options.model, "--threads", str(options.threads)]
            case = ["--case", json.dumps([side, checkpointing])]
            run = subprocess.run([*command, *case], check=True, capture_output=True, text=True)
            found = json.loads(run.stdout)
            yes = "yes" if checkpointing else "no"
            print(f"| {side} | {yes} | {found['MiB']:.0f} | {found['s']:.1f} | {found['gradient']:.6g} |")


if __name__ == "__main__":
    main()
