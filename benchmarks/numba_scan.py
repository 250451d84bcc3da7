"""Compare the scan's forward pass in numba, the native C kernel and torch; shows why the kernel is C.

    pip install numba && python benchmarks/numba_scan.py

One image, one state, first and third stage of LQMamba-T, merged routes. The numba version is structured like
the C kernel: channels in the inner loop, fused exponentials and softplus, threads over channel blocks,
fastmath.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable

import numba
import numpy as np
import torch

from qmamba.ops import local_scan_routes, selective_scan

BLOCK = 64


@numba.njit(parallel=True, fastmath=True, cache=False)
def scan(order, x, dt, B, C, weight, bias, A, D, y):  # type: ignore[no-untyped-def]
    """Scan x into y (L, D); dt (L, K, R); B, C (L, K); weight (K, R, D); bias, A, D (K, D); order (K, L)."""
    K, L = order.shape
    channels, R = x.shape[1], dt.shape[2]
    for block in numba.prange((channels + BLOCK - 1) // BLOCK):
        first = block * BLOCK
        count = min(BLOCK, channels - first)
        h = np.empty(count, np.float32)
        delta = np.empty(count, np.float32)
        for k in range(K):
            h[:] = 0
            for t in range(L):
                at = order[k, t]
                for d in range(count):
                    delta[d] = bias[k, first + d]
                for r in range(R):
                    rank = dt[at, k, r]
                    for d in range(count):
                        delta[d] += weight[k, r, first + d] * rank
                b, c = B[at, k], C[at, k]
                for d in range(count):
                    v = delta[d]
                    step = max(v, np.float32(0)) + math.log1p(math.exp(-abs(v)))
                    u = x[at, first + d]
                    h[d] = math.exp(step * A[k, first + d]) * h[d] + step * u * b
                    out = h[d] * c + D[k, first + d] * u
                    if k == 0:
                        y[at, first + d] = out
                    else:
                        y[at, first + d] += out


def problem(side: int, channels: int, rank: int, window: int):  # type: ignore[no-untyped-def]
    g = torch.Generator().manual_seed(0)
    routes = local_scan_routes(window)
    K = len(routes)
    grid = (1, side, side)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    tensors = {
        "x": draw(*grid, channels), "dt": draw(*grid, K, rank),
        "B": draw(*grid, K, 1), "C": draw(*grid, K, 1),
        "dt_weight": draw(K, channels, rank) / rank, "dt_bias": draw(K, channels),
        "A": -draw(K, channels, 1).exp(), "D": draw(K, channels),
    }  # fmt: skip
    return tensors, routes


def for_numba(tensors: dict[str, torch.Tensor], routes) -> Callable[[], torch.Tensor]:  # type: ignore[no-untyped-def]
    _, height, width, channels = tensors["x"].shape
    K = len(routes)
    order = np.stack([route.visits(height, width) for route in routes]).astype(np.int32)
    arrays = [
        tensors["x"].view(-1, channels), tensors["dt"].flatten(0, 2), tensors["B"].reshape(-1, K),
        tensors["C"].reshape(-1, K), tensors["dt_weight"].transpose(1, 2).contiguous(), tensors["dt_bias"],
        tensors["A"][..., 0].contiguous(), tensors["D"],
    ]  # fmt: skip
    y = torch.empty(height * width, channels)

    def run() -> torch.Tensor:
        scan(order, *(a.numpy() for a in arrays), y.numpy())
        return y.view(1, height, width, channels)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    numba.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, numba {numba.__version__}, {args.threads} threads")
    for side, channels, rank, window in ((56, 192, 6, 2), (14, 768, 24, 2)):
        tensors, routes = problem(side, channels, rank, window)
        runs = {
            name: (lambda name=name: selective_scan(**tensors, routes=routes, backend=name))  # noqa: B023
            for name in ("native", "torch")
        }
        runs["numba"] = for_numba(tensors, routes)
        began = time.perf_counter()
        got = runs["numba"]()
        compiled = time.perf_counter() - began
        error = (got - runs["native"]()).abs().max().item()
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(args.rounds):
            for name, run in runs.items():
                began = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - began)
        print(
            f"{side}×{side}, {channels} channels, rank {rank}: "
            f"differ by {error:.1e}; first call {compiled:.1f} s"
        )
        for name, taken in times.items():
            ratio = statistics.median(t / n for t, n in zip(taken, times["native"], strict=True))
            print(f"  {name:8s} {1e3 * statistics.median(taken):7.2f} ms  {ratio:5.2f} × native")


if __name__ == "__main__":
    main()
