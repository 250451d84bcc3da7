"""Time what a user waits for: files to scores with one thread and all, large JPEG files, bfloat16, start.

    python benchmarks/reach.py --minutes 8

Measurements that are compared are interleaved, so that slow moments of the machine affect all of them;
results are medians over rounds, and ratios are medians of the ratios within a round. Starting the program is
timed in processes of its own. Results go to --out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import qmamba
from throughput import machine, make_files

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "reach.json"
FILES = 48  # scored in each round
CROPS = 10
STARTS = {
    "import qmamba": "import qmamba",
    "import qmamba, load": "import qmamba; qmamba.load()",
    "import qmamba, load, first score": "import qmamba; qmamba.load().score({photo!r})",
}


def rounds(calls: dict[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Return the seconds of each call in each of at least three rounds; a first round is not counted."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    began, done = time.perf_counter(), -1
    while done < 3 or time.perf_counter() - began < seconds:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if done >= 0:
                spent[name].append(time.perf_counter() - start)
        done += 1
    return spent


def ratio(spent: dict[str, list[float]], above: str, below: str) -> dict[str, float]:
    """Return median and range of the ratios of two calls within a round."""
    found = [a / b for a, b in zip(spent[above], spent[below], strict=True)]
    return {"median": statistics.median(found), "from": min(found), "to": max(found), "rounds": len(found)}


def threads(files: Sequence[Path], seconds: float, count: int) -> dict[str, Any]:
    """Time a list of files with one thread, and with an image in each of several threads."""
    scorer, chosen = qmamba.load(), list(files[:FILES])

    def with_threads(number: int) -> None:
        torch.set_num_threads(number)
        scorer.score(chosen)

    spent = rounds({"one": lambda: with_threads(1), "all": lambda: with_threads(count)}, seconds)
    torch.set_num_threads(count)
    rate = {f"{name}, images per second": FILES / statistics.median(took) for name, took in spent.items()}
    return {"threads": count, **rate, "one / all": ratio(spent, "one", "all")}


def large(folder: Path, seconds: float) -> dict[str, Any]:
    """Time one photograph of 12 megapixels, whole and as a draft, against one of 512 × 512."""
    source = Image.open(sorted((HERE.parent / "examples").glob("*.jpg"))[0]).convert("RGB")
    jpeg, png = folder / "large.jpg", folder / "small.png"
    source.resize((4000, 3000), Image.Resampling.BICUBIC).save(jpeg, quality=92)
    source.resize((512, 512), Image.Resampling.BICUBIC).save(png)
    whole, draft = qmamba.load(), qmamba.load(draft=True)
    calls = {
        "png of 512 × 512": lambda: whole.score(png),
        "jpeg of 4000 × 3000": lambda: whole.score(jpeg),
        "jpeg of 4000 × 3000, draft": lambda: draft.score(jpeg),
    }
    spent = rounds(calls, seconds)
    found: dict[str, Any] = {f"{name}, ms": 1e3 * statistics.median(took) for name, took in spent.items()}
    for name in list(calls)[1:]:
        found[f"{name} / png"] = ratio(spent, name, "png of 512 × 512")
    return found


def bfloat16(seconds: float) -> dict[str, Any]:
    """Time a pass over ten crops in bfloat16 against float32."""
    found = {}
    images = torch.rand(CROPS, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    for name in ("lqmamba-t", "lqmamba-n"):
        torch.manual_seed(0)
        wide = qmamba.create_model(name).eval()
        narrow = qmamba.create_model(name).eval().bfloat16()
        with torch.inference_mode():
            spent = rounds(
                {
                    "float32": lambda wide=wide: wide(images),
                    "bfloat16": lambda narrow=narrow: narrow(images.bfloat16()),
                },
                seconds / 2,
            )
        found[name] = ratio(spent, "bfloat16", "float32")
    return found


def starts(folder: Path, seconds: float) -> dict[str, float]:
    """Time new processes that import, load, and score one photograph."""
    photo = folder / "start.jpg"
    Image.open(sorted((HERE.parent / "examples").glob("*.jpg"))[0]).save(photo)
    command = [sys.executable, "-m", "qmamba", "score", str(photo)]
    calls: dict[str, Callable[[], Any]] = {
        name: lambda code=code: subprocess.run(
            [sys.executable, "-c", code.format(photo=str(photo))], check=True
        )
        for name, code in {"python alone": "pass", **STARTS}.items()
    }
    calls["qmamba score photo.jpg"] = lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return {name: statistics.median(took) for name, took in rounds(calls, seconds).items()}


def command_line(folder: Path, files: Sequence[Path]) -> dict[str, float]:
    """Time ``qmamba score`` over a folder, from its start to its end."""
    few = folder / "few"
    few.mkdir()
    for path in files[:200]:
        (few / path.name).hardlink_to(path)
    found = {}
    for option in ([], ["--draft"]):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "qmamba", "score", str(few), "--format", "jsonl", *option],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        name = " ".join(["qmamba score DIR", *option])
        found[f"{name}, images per second"] = 200 / (time.perf_counter() - began)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="about the minutes of all measurements")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    count, share = torch.get_num_threads(), 60 * args.minutes / 8
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = make_files(folder, 2000)
        found: dict[str, Any] = {"machine": machine("cpu"), "threads": threads(files, 2 * share, count)}
        print(json.dumps(found, indent=1), flush=True)
        for part, measure in {
            "large": lambda: large(folder, share),
            "bfloat16": lambda: bfloat16(2 * share),
            "start": lambda: starts(folder, share),
            "command line": lambda: command_line(folder, files),
        }.items():
            found[part] = measure()
            print(json.dumps({part: found[part]}, indent=1), flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
