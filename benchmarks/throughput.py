"""Measure images per second and peak memory: decoding, scoring, both with one thread and all, both by Ray.

    pip install "qmamba[ray]" && python benchmarks/throughput.py --docs

The images are 2,000 JPEG files of 0.3 to 12 megapixels, resized from the photographs in examples/ (40
distinct ones, under 2,000 names). Each measurement runs in a separate process for a share of --minutes, over
the files in a fixed random order; the first few are not counted. Memory is the total resident memory of a
measurement's processes, sampled four times a second; shared memory counts for each process.
Results go to --out, and with --docs into docs/scale.md, extrapolated to a million images.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import qmamba
from _docs import replace_part, table
from qmamba.images import decode

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "throughput.json"
SIZES = {(640, 480): 12, (1024, 768): 10, (1920, 1080): 10, (3000, 2000): 6, (4000, 3000): 2}
WARM = 8  # first images, which are not counted
# Measurements, and their shares of the time.
PARTS = {
    "decoding alone, 1 thread": 1.0,
    "decoding alone, 2 threads": 1.0,
    "scoring alone": 1.5,
    "both, 1 thread": 2.0,
    "both, all threads": 2.0,
    "Ray, 1 actor of 1 CPU": 3.0,
    "Ray, 2 actors of 1 CPU": 3.0,
}
MACHINES = {"a laptop of 8 cores": 8, "a server of 64 cores": 64}


def make_files(folder: Path, count: int) -> list[Path]:
    """Make JPEG files of mixed sizes, the same in every run."""
    rng, photos = random.Random(0), sorted((HERE.parent / "examples").glob("*.jpg"))
    made = []
    for (width, height), times in SIZES.items():
        for n in range(times):
            photo = Image.open(photos[n % len(photos)]).convert("RGB")
            made.append(folder / f"source-{width}-{n}.jpeg")
            photo.resize((width, height), Image.Resampling.BICUBIC).save(made[-1], quality=88)
    data = folder / "data"
    data.mkdir()
    for n in range(count):
        os.link(made[n % len(made)], data / f"{n:05d}.jpg")
    files = sorted(data.iterdir())
    rng.shuffle(files)
    return files


# --- measurements, each in a separate process ---


def rate(done: Iterator[Any], seconds: float) -> dict[str, float]:
    """Return the images per second of an iterator, without the first few."""
    for _ in range(WARM):
        next(done)
    began, count = time.perf_counter(), 0
    for _ in done:
        count += 1
        if time.perf_counter() - began > seconds:
            break
    spent = time.perf_counter() - began
    return {"images": count, "seconds": round(spent, 2), "per_second": round(count / spent, 3)}


def decoding(files: list[Path], threads: int, seconds: float) -> dict[str, float]:
    def each() -> Iterator[Any]:
        with ThreadPoolExecutor(threads) as pool:
            for start in range(0, len(files), 2 * threads):
                for pixels in pool.map(decode, files[start : start + 2 * threads]):
                    yield pixels.shape

    return rate(each(), seconds)


def scoring(files: list[Path], seconds: float, device: str) -> dict[str, float]:
    scorer = qmamba.load(device=device)
    pixels = [decode(path) for path in files[:24]]
    return rate((scorer.score(pixels[n % len(pixels)]) for n in range(len(files))), seconds)


def both(files: list[Path], seconds: float, device: str) -> dict[str, float]:
    scorer = qmamba.load(device=device)
    return rate((result for _, result in scorer.iter_scores(files)), seconds)


def both_with_one_thread(files: list[Path], seconds: float, device: str) -> dict[str, float]:
    """Measure the time outside of the model, too, by hooks, which images one after the other can have."""
    torch.set_num_threads(1)
    scorer = qmamba.load(device=device)
    spent, began = [0.0], [0.0]

    def start(*_: Any) -> None:
        began[0] = time.perf_counter()

    def stop(*_: Any) -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        spent[0] += time.perf_counter() - began[0]

    scorer.network.register_forward_pre_hook(start)
    scorer.network.register_forward_hook(stop)

    def each() -> Iterator[Any]:
        for index, result in scorer.iter_scores(files):
            if index == WARM - 1:
                spent[0] = 0.0
            yield result

    found = rate(each(), seconds)
    return found | {"not_the_model": round(1 - spent[0] / found["seconds"], 3)}


def by_ray(files: list[Path], actors: int, seconds: float, expected: float) -> dict[str, float]:
    from qmamba.integrations.ray import AT_ONCE, score_to_parquet

    together = AT_ONCE * actors
    chosen = files[: together * max(5, int(expected * seconds / together))]
    times: list[float] = []

    def record(rows: int) -> None:
        times.extend([time.perf_counter()] * rows)

    with tempfile.TemporaryDirectory() as folder:
        score_to_parquet(chosen, Path(folder, "scores"), actors=actors, done=record)
    # Rows arrive in blocks, and the first arrive late, since an actor gets its next block before its rows are
    # fetched. So count from the second block to the last.
    first = min(2 * together, len(times) // 2) - 1
    count, spent = len(times) - 1 - first, times[-1] - times[first]
    return {"images": count, "seconds": round(spent, 2), "per_second": round(count / max(spent, 1e-6), 3)}


def measure(part: str, files: list[Path], seconds: float, device: str, expected: float) -> dict[str, float]:
    number = int(next(digit for digit in part if digit.isdigit())) if any(c.isdigit() for c in part) else 1
    if part.startswith("decoding"):
        return decoding(files, number, seconds)
    if part.startswith("scoring"):
        return scoring(files, seconds, device)
    if part.startswith("both"):
        return (both_with_one_thread if "1" in part else both)(files, seconds, device)
    return by_ray(files, number, seconds, expected * number)


class Memory(threading.Thread):
    """Peak resident memory of this process and its descendants together, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0

    def run(self) -> None:
        while True:
            self.peak = max(self.peak, self._now())
            time.sleep(0.25)

    def _now(self) -> int:
        parents, memory = {}, {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                    parents[int(entry.name)] = int(fields[1])
                    memory[int(entry.name)] = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
                except OSError:
                    continue
        ours = {os.getpid()}
        while children := {pid for pid, parent in parents.items() if parent in ours} - ours:
            ours |= children
        return sum(memory.get(pid, 0) for pid in ours)


# --- the run, and its report ---


def run_part(part: str, listing: Path, seconds: float, args: argparse.Namespace, expected: float) -> Any:
    command = [sys.executable, __file__, "--part", part, "--listing", str(listing), "--device", args.device]
    command += ["--seconds", str(seconds), "--expected", str(expected)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"{part}: failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}", flush=True)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def machine(device: str) -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")]
    gpu = torch.cuda.get_device_name() if device.startswith("cuda") else None
    return {
        "cores": len(os.sched_getaffinity(0)), "cpu": models[0] if models else platform.processor(),
        "gpu": gpu, "python": platform.python_version(), "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def rows_of(run: dict[str, Any]) -> list[list[str]]:
    rows = []
    for part, found in run["parts"].items():
        if found is None:
            rows.append([part, "not measured", "", "", ""])
            continue
        share = f"{found['not_the_model']:.0%}" if "not_the_model" in found else ""
        memory = f"{found['memory'] / 2**20:,.0f}"
        rows.append([part, f"{found['images']:,.0f}", f"{found['per_second']:.2f}", memory, share])
    return rows


def hours(per_second: float) -> str:
    whole = 1e6 / per_second / 3600
    return f"{whole:,.0f} h" if whole >= 2 else f"{60 * whole:,.0f} min"


def written(runs: dict[str, Any]) -> str:
    """Return the generated part of the page."""
    text = ""
    head = ["", "images", "images per second", "peak memory, MiB", "of the time not the model"]
    costs = []
    for device, run in runs.items():
        about, parts = run["machine"], run["parts"]
        best = max(found["per_second"] for part, found in parts.items() if found and part[0] in "bR")
        where = about["gpu"] or f"{about['cores']} cores of {about['cpu']}"
        option = "" if device == "cpu" else f" --device {device}"
        text += f"Measured on {where}, torch {about['torch']}, {about['date']}, by "
        text += f"`python benchmarks/throughput.py{option} --docs`:\n\n{table(head, rows_of(run))}\n"
        one, two = (found for part, found in parts.items() if part.startswith("Ray"))
        if one and two:
            text += f"Two actors get {two['per_second'] / one['per_second']:.2f} times as far as one.\n\n"
        costs.append([f"{where}, as measured", f"{best:.2f}", hours(best)])
        for name, cores in MACHINES.items() if device == "cpu" else ():
            more = best / about["cores"] * cores
            costs.append([f"{name}: **extrapolated**, in proportion to cores", f"{more:.1f}", hours(more)])
    if not any(run["machine"]["gpu"] for run in runs.values()):
        costs.append(["a GPU", "not measured", "not measured"])
    costs_head = ["", "images per second", "time"]
    return f"{text}A million such images, from the best rate above:\n\n{table(costs_head, costs)}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--minutes", type=float, default=7.0, help="total minutes of all measurements")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--docs", action="store_true", help="write the tables into docs/scale.md")
    for inner in ("--part", "--listing"):  # options of the child processes
        parser.add_argument(inner, help=argparse.SUPPRESS)
    for inner in ("--seconds", "--expected"):
        parser.add_argument(inner, type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        memory = Memory()
        memory.start()
        files = [Path(name) for name in json.loads(Path(args.listing).read_text())]
        found = measure(args.part, files, args.seconds, args.device, args.expected)
        print(json.dumps(found | {"memory": memory.peak}))
        return
    runs = json.loads(args.out.read_text()) if args.out.is_file() else {}
    parts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        listing = Path(folder, "files.json")
        listing.write_text(json.dumps([str(path) for path in make_files(Path(folder), args.images)]))
        for part, share in PARTS.items():
            cpu_only = part.startswith("Ray") and args.device != "cpu"
            seconds = 60 * args.minutes * share / sum(PARTS.values())
            expected = (parts.get("both, 1 thread") or {}).get("per_second", 1.0) * 0.75
            parts[part] = None if cpu_only else run_part(part, listing, seconds, args, expected)
            print(part, parts[part], flush=True)
    runs[args.device] = {"machine": machine(args.device), "parts": parts}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(runs, indent=2) + "\n")
    print(written(runs))
    if args.docs:
        replace_part("scale.md", "throughput", written(runs))


if __name__ == "__main__":
    main()
