"""Compare adapters: their cost, and the paper's tables on your own rated photographs.

    python benchmarks/adapters.py cost --out cost.json
    python benchmarks/adapters.py table --data stills.csv --table 3 --seeds 0 1 2 --runs runs/stills
    python benchmarks/adapters.py table --data stills.csv --table 9 --runs runs/stills --out found.json

``cost`` measures, for each method on one base: the number of trained parameters, the time of the forward pass
relative to the plain network (interleaved, medians of ratios over the rounds), and, in a separate process,
the time of a training step and the peak memory of training beyond the process's memory before it.

``table`` runs `qmamba.train.adapt` for each row of a table and each seed: 3 and 8 compare methods, 9 the
number of prompts, 10 their size. A manifest without folds is split again for each seed: a fifth for testing
and a fifth of the rest held out, by reference if there are references (``benchmarks/adapter_domains.py``
makes such manifests). Finished runs are not repeated. Seconds are those of the training steps.

Results are merged into the file of ``--out``: under "cost", or under the manifest's name and the table's
number (with the learning rate, if given), where rows keep the seeds of earlier runs. ``srcc_held_out`` is the
best value on the held-out part, which selects the epoch and can select the learning rate.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import qmamba
from qmamba.adapters import create, list_methods, read_adapter_config
from qmamba.data import Rated, read_manifest
from qmamba.data.splitting import make_splits
from qmamba.models.qmamba import QMamba
from qmamba.train import AdaptRecipe, adapt

TABLES: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {  # row → method, options
    "3": {name: (name, {}) for name in ("linear-probe", "full", "style-prompt", "style-prompt-r")},
    "8": {name: (name, {}) for name in ("ssf", "crossattn-prompt", "conv-prompt", "lora", "style-prompt")},
    "9": {f"N={n}": ("style-prompt", {"prompts": n}) for n in (1, 2, 4, 6, 8, 10)},
    "10": {
        str(size): ("style-prompt", {"size": size}) for size in ((1, 1), (7, 7), (14, 14), (28, 28), "layer")
    },
}

MEASURED = ("srcc_before", "srcc_after", "plcc_before", "plcc_after", "seconds", "srcc_held_out")


def network_of(base: str) -> QMamba:
    """Return a base of an architecture with random weights, on which costs do not depend."""
    torch.manual_seed(0)
    return qmamba.create_model(base).eval().requires_grad_(False)


def forward_ratio(network: QMamba, method: str, size: int, batch: int, rounds: int, device: str) -> float:
    """Return the time of the adapted forward pass over that of the plain one, median over rounds."""
    adapter = create(method, network).eval()
    images = torch.randn(batch, 3, size, size, device=device)

    def seconds(adapted: bool) -> float:
        began = time.perf_counter()
        _ = adapter(network, images) if adapted else network(images)
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    ratios = []
    with torch.inference_mode():
        for i in range(rounds + 2):
            # The order alternates, so that slow moments affect both alike.
            first = seconds(i % 2 == 0)
            second = seconds(i % 2 == 1)
            ratios.append(first / second if i % 2 == 0 else second / first)
    return statistics.median(ratios[2:])


def training(base: str, method: str, size: int, batch: int, steps: int, device: str) -> dict[str, float]:
    """Return the seconds of a step, and the peak memory in MiB beyond that before; nothing is cached."""
    network = network_of(base).to(device)
    images = torch.randn(batch, 3, size, size, device=device)
    with torch.inference_mode():
        network(images)  # warm up, so that one-time allocations are not measured
    held = _held(device)
    adapter = create(method, network).train()
    optimiser = torch.optim.AdamW(adapter.parameters(), lr=1e-4)
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        optimiser.zero_grad()
        adapter(network, images).square().mean().backward()
        optimiser.step()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return {"step_seconds": min(times), "step_mb": (_held(device) - held) / 2**20}


def _held(device: str) -> float:
    """Return the peak memory so far, in bytes."""
    if device != "cpu":
        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cost(
    base: str, methods: list[str], *, size: int, batch: int, rounds: int, steps: int, device: str
) -> dict[str, dict[str, float]]:
    """Return all measurements of each method."""
    network = network_of(base).to(device)
    rows: dict[str, dict[str, float]] = {}
    for method in methods:
        adapter = create(method, network)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            trained = pool.apply(training, (base, method, size, batch, steps, device))
        ratio = forward_ratio(network, method, size, batch, rounds, device)
        rows[method] = {**adapter.size._asdict(), "forward": ratio, **trained}
        print(
            f"{method:18s} {adapter.size.trained:>11,d} {adapter.size.stored:>11,d} {ratio:8.3f} "
            f"{trained['step_seconds']:8.3f} s {trained['step_mb']:8.0f} MB",
            flush=True,
        )
    return rows


def divided(ratings: list[Rated], seed: int) -> list[Rated]:
    """Return photographs with folds; without folds, a fifth of them or of their references become "test"."""
    if any(r.fold for r in ratings):
        return ratings
    return make_splits(ratings, count=1, seed=seed)[0].of(ratings)


def table(
    rows: dict[str, tuple[str, dict[str, Any]]],
    base: str,
    ratings: list[Rated],
    runs: Path,
    seeds: list[int],
    recipe: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    """Run each row of a table with each seed, and print means over the seeds.

    Returns:
        For each row its number of parameters, and lists over the seeds: SRCC and PLCC before and after, and
        the seconds of the steps.
    """
    network, found = qmamba.load(base).base(), {}
    for row, (method, options) in rows.items():
        adapter = create(method, network, **options)
        line: dict[str, Any] = {
            "trained": adapter.size.trained, "lr": recipe["lr"] or adapter.lr, "seeds": seeds,
        }  # fmt: skip
        for key in MEASURED:
            line[key] = []
        for seed in seeds:
            out = runs / f"{row.replace(' ', '')}-{seed}"
            folder = adapt(
                base, divided(ratings, seed), out, method=method, options=options,
                recipe=AdaptRecipe(seed=seed, **recipe),
            )  # fmt: skip
            log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
            before, after = read_adapter_config(folder).results.values()
            for metric in ("srcc", "plcc"):
                line[f"{metric}_before"].append(before[metric])
                line[f"{metric}_after"].append(after[metric])
            line["seconds"].append(round(sum(entry.get("seconds", 0) for entry in log), 1))
            line["srcc_held_out"].append(max(entry.get("val_srcc", -1.0) for entry in log))
        means = "  ".join(f"{key} {statistics.mean(line[key]):,.4g}" for key in MEASURED)
        print(f"{row:18s} trained {line['trained']:,}  {means}", flush=True)
        found[row] = line
    return found


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("cost", "table"))
    parser.add_argument("--base", default="lqmamba-n", help="architecture for cost, model for table")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--methods", nargs="+", default=list_methods(), help="methods of cost")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path, help="manifest for table")
    parser.add_argument("--runs", type=Path, default=Path("runs/adapters"))
    parser.add_argument("--table", choices=tuple(TABLES), default="3")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--crops", type=int, default=5)
    parser.add_argument("--lr", type=float, help="peak learning rate; by default the method's own")
    parser.add_argument("--rows", nargs="+", help="rows of the table; by default all")
    parser.add_argument("--precision", default="float32")
    options = parser.parse_args(arguments)
    rows = TABLES[options.table]
    if unknown := [row for row in options.rows or () if row not in rows]:
        parser.error(f"--rows of table {options.table} must be among {', '.join(rows)}, got {unknown[0]!r}")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and save."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.what == "cost":
        found = cost(
            options.base, options.methods, size=options.size, batch=options.batch, rounds=options.rounds,
            steps=options.steps, device=options.device,
        )  # fmt: skip
        place = ["cost"]
    else:
        recipe = {key: getattr(options, key) for key in ("epochs", "crops", "precision", "lr")}
        rows, ratings = TABLES[options.table], read_manifest(options.data)
        rows = {row: rows[row] for row in options.rows or rows}
        found = table(rows, options.base, ratings, options.runs, options.seeds, recipe)
        place = [options.data.stem, options.table + (f", lr {options.lr:g}" if options.lr else "")]
    if options.out:
        put(options.out, place, found)


def put(file: Path, place: list[str], found: dict[str, Any]) -> None:
    """Merge results into a JSON file, under nested keys."""
    whole = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    at = whole
    for key in place[:-1]:
        at = at.setdefault(key, {})
    before = at.get(place[-1], {})
    at[place[-1]] = {**before, **{row: joined(before.get(row, {}), line) for row, line in found.items()}}
    file.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def joined(before: dict[str, Any], line: dict[str, Any]) -> dict[str, Any]:
    """Return a row merged with its earlier seeds, except those measured again, sorted by seed."""
    kept = [i for i, seed in enumerate(before.get("seeds", ())) if seed not in line.get("seeds", ())]
    if not kept:
        return line
    seeds = [before["seeds"][i] for i in kept] + line["seeds"]
    order = sorted(range(len(seeds)), key=seeds.__getitem__)
    both = {
        key: [before[key][i] for i in kept] + line[key] for key in MEASURED if key in before and key in line
    }
    columns = {key: [column[i] for i in order] for key, column in both.items()}
    return {"trained": line["trained"], "lr": line["lr"], "seeds": [seeds[i] for i in order], **columns}


if __name__ == "__main__":
    main()
