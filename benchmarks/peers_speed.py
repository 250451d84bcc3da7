"""Time other no-reference measures, and their memory, on the photographs that people have.

    python3.11 -m venv peers && peers/bin/pip install torch==2.14.1 torchvision==0.29.1
    peers/bin/pip install pyiqa . && peers/bin/python benchmarks/peers_speed.py --docs

pyiqa needs torchvision, hence an environment of its own. Nothing is downloaded when this runs: the measures
of pyiqa have their published architectures and random weights, so that times and memory are theirs, and
scores are not. One photograph of 512 × 512 and one of 12 megapixels are scored from file to score. Each
measure runs in processes of its own, one after the other in every round; times are medians over rounds of the
median within a process, and memory is the peak of a process beyond what it holds before the first score.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from _docs import replace_part, table

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "peers_speed.json"
SIZES = {"512 × 512": (512, 512), "12 megapixels": (4000, 3000)}
OURS = {"lqmamba-n": {}, "lqmamba-n, draft": {"draft": True}}
PEERS = {  # our name → pyiqa's
    "BRISQUE": "brisque", "NIQE": "niqe", "MUSIQ": "musiq", "TOPIQ": "topiq_nr", "HyperIQA": "hyperiqa",
    "MANIQA": "maniqa", "CLIP-IQA": "clipiqa", "ARNIQA": "arniqa",
}  # fmt: skip
WARM, TIMES = 1, 3  # calls in a process: not counted, and counted


def peer(name: str, folder: Path) -> Callable[[Path], float]:
    """Return a measure of pyiqa with random weights, from a file to a score."""
    import pyiqa

    torch.manual_seed(0)
    with random_weights(folder):
        metric = pyiqa.create_metric(PEERS[name], device="cpu")
    return lambda path: float(metric(str(path)))


def random_weights(folder: Path) -> ExitStack:
    """Return a context in which everything that pyiqa would download is made here."""
    import timm
    import torchvision
    from pyiqa.archs import arniqa_arch, brisque_arch, clip_model, clipiqa_arch, niqe_arch

    built, resnet = timm.create_model, torchvision.models.resnet50
    changes: list[Any] = [
        mock.patch.object(timm, "create_model", lambda *a, **k: built(*a, **{**k, "pretrained": False})),
        mock.patch.object(torchvision.models, "resnet50", lambda **_: resnet(weights=None)),
        mock.patch.object(torch.hub, "load_state_dict_from_url", lambda *_, **__: _encoder(resnet)),
        mock.patch.object(clipiqa_arch, "load", lambda *_: _clip(clip_model)),
    ]
    for module in [m for n, m in sys.modules.items() if n.startswith("pyiqa.archs.")]:
        if hasattr(module, "load_pretrained_network"):
            changes.append(mock.patch.object(module, "load_pretrained_network", lambda *_, **__: None))
    for module, make in ((brisque_arch, _svm), (niqe_arch, _naturalness), (arniqa_arch, _regressor)):
        made = str(make(folder))
        changes.append(mock.patch.object(module, "load_file_from_url", lambda *_, made=made, **__: made))
    stack = ExitStack()
    for change in changes:
        stack.enter_context(change)
    return stack


def _encoder(resnet: Callable[..., Any]) -> dict[str, torch.Tensor]:
    layers = torch.nn.Sequential(*list(resnet(weights=None).children())[:-1])
    return {f"model.{name}": value for name, value in layers.state_dict().items()}


def _clip(module: Any) -> Any:
    """CLIP with ResNet-50, in the published sizes."""
    return module.CLIP(1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 512, 8, 12).eval()


def _svm(folder: Path) -> Path:
    """774 support vectors of 36 features, as many as the published machine has."""
    path = folder / "svm.pth"
    torch.save((torch.randn(774).double(), torch.rand(774, 36).double()), path)
    return path


def _naturalness(folder: Path) -> Path:
    """Mean and covariance of 36 features."""
    import scipy.io

    path = folder / "niqe.mat"
    scipy.io.savemat(path, {"mu_prisparam": np.zeros((1, 36)), "cov_prisparam": np.eye(36)})
    return path


def _regressor(folder: Path) -> Path:
    path = folder / "regressor.pt"
    torch.jit.script(torch.nn.Linear(4096, 1)).save(str(path))
    return path


def ours(name: str) -> Callable[[Path], float]:
    import qmamba

    scorer = qmamba.load(**OURS[name])  # type: ignore[arg-type]
    return lambda path: float(scorer.score(path))


def measured(name: str, path: Path, threads: int) -> dict[str, float]:
    """Return milliseconds and MiB of a measure in this process."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        score = ours(name) if name in OURS else peer(name, Path(folder))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    spent = []
    with torch.inference_mode():
        for _ in range(WARM + TIMES):
            began = time.perf_counter()
            score(path)
            spent.append(1e3 * (time.perf_counter() - began))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"ms": statistics.median(spent[WARM:]), "MiB": (peak - before) / 1024, "whole MiB": peak / 1024}


def photographs(folder: Path) -> dict[str, Path]:
    source = Image.open(sorted((HERE.parent / "examples").glob("*.jpg"))[0]).convert("RGB")
    found = {}
    for name, size in SIZES.items():
        found[name] = folder / f"{size[0]}.jpg"
        source.resize(size, Image.Resampling.BICUBIC).save(found[name], quality=92)
    return found


def in_a_process(name: str, path: Path, args: argparse.Namespace) -> dict[str, float] | str:
    """Return the figures of a measure, or why there are none."""
    command = [sys.executable, __file__, "--name", name, "--photo", str(path), "--threads", str(args.threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=args.patience)
    except subprocess.TimeoutExpired:
        return f"took more than {args.patience:g} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["killed: not enough memory"])[-1]
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def written(found: dict[str, Any]) -> str:
    """Return the table of the page."""
    rows = []
    for name, figures in found["measures"].items():
        cells = []
        for size in SIZES:
            figure = figures[size]
            known = isinstance(figure, dict)
            cells += [f"{figure['ms']:,.0f}", f"{figure['MiB']:,.0f}"] if known else ["not measured", ""]
        rows.append([name, *cells])
    head = ["", *(f"{size}, {unit}" for size in SIZES for unit in ("ms", "MiB"))]
    return table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--patience", type=float, default=120.0, help="seconds for one process")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--docs", action="store_true", help="write the table into docs/speed.md")
    for inner in ("--name", "--photo"):  # options of the child processes
        parser.add_argument(inner, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.name:
        print(json.dumps(measured(args.name, Path(args.photo), args.threads)))
        return
    runs: dict[str, dict[str, list[Any]]] = {name: {s: [] for s in SIZES} for name in (*OURS, *PEERS)}
    with tempfile.TemporaryDirectory() as folder:
        photos = photographs(Path(folder))
        for number in range(args.rounds):
            for name, sizes in runs.items():
                for size, path in photos.items():
                    sizes[size].append(in_a_process(name, path, args))
                    print(number, name, size, sizes[size][-1], flush=True)
    found: dict[str, Any] = {"threads": args.threads, "torch": torch.__version__, "measures": {}}
    for name, sizes in runs.items():
        found["measures"][name] = {size: _median(figures) for size, figures in sizes.items()}
    args.out.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(written(found))
    if args.docs:
        replace_part("speed.md", "peers", written(found))


def _median(figures: list[Any]) -> dict[str, float] | str:
    known = [figure for figure in figures if isinstance(figure, dict)]
    if not known:
        return str(figures[0])
    return {key: statistics.median(figure[key] for figure in known) for key in known[0]}


if __name__ == "__main__":
    main()
