"""Quantized models against the float model: agreement with people and with float, sizes, noise of layers.

    python benchmarks/quantization.py biq2021=BIQ2021 --calibrate photos --out quantization.json
    python benchmarks/quantization.py biq2021=BIQ2021 --models runs/w4a4/checkpoint --out trained.json
    python benchmarks/quantization.py --draw quantization.json --picture sqnr.svg

Without training it compares ptq-minmax and ptq-mse at the bits of --bits; trained models are given as folders
of `qmamba quantize --method lsq|rfa|rfa+dls`, each trained with the same --steps and --data for a fair
ablation.
Photographs of the fold `test` are scored; those in --calibrate should not be among them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import qmamba
from qmamba.cli._ratings import source_of
from qmamba.images.find import find_images
from qmamba.metrics import evaluate
from qmamba.quantization import Quantization
from qmamba.scoring import Scorer


def bits_of(text: str) -> tuple[int, int | None]:
    """Return bits of weights and of activations, from W8A8 or W4."""
    weights, _, activations = text.upper().removeprefix("W").partition("A")
    return int(weights), int(activations) if activations else None


def against(scores: torch.Tensor, mos: list[float], of_float: torch.Tensor) -> dict[str, Any]:
    """Return agreement with people and with the float model."""
    return {
        "people": evaluate(scores, mos, metrics=["srcc", "plcc"], resamples=1000),
        "float": evaluate(scores, of_float, metrics=["srcc", "plcc"], resamples=1000),
        "largest difference": float((scores - of_float).abs().max()),
    }


def megabytes(scorer: Scorer) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return scorer.save_pretrained(folder).weights_bytes / 1e6


def seconds(scorer: Scorer, image: Any, rounds: int) -> float:
    """Return the median time of a score."""
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        scorer.score(image)
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    rated = [r for r in source_of(arguments.data).read() if r.fold in ("test", "")]
    rated = rated[:: max(1, len(rated) // arguments.most)]
    paths, mos = [r.path for r in rated], [r.mos for r in rated]
    base = qmamba.load(arguments.model)
    of_float = base.score(paths, progress=True)
    image = torch.rand(3, 512, 512, generator=torch.Generator().manual_seed(0))
    rows: dict[str, Any] = {
        "float": {
            **against(of_float, mos, of_float), "MB": megabytes(base), "s": seconds(base, image, 5),
        }
    }  # fmt: skip
    photographs = find_images([arguments.calibrate], recursive=True).files if arguments.calibrate else []
    for text in arguments.bits:
        weights, activations = bits_of(text)
        if activations is not None and not photographs:
            raise SystemExit(f"{text} needs photographs: give --calibrate FOLDER, or bits of weights only")
        for method in ("ptq-minmax", "ptq-mse"):
            scorer, report = qmamba.quantize(base, Quantization(weights, activations, method), photographs)
            rows[f"{text} {method}"] = {
                **against(scorer.score(paths, progress=True), mos, of_float), "MB": megabytes(scorer),
                "s": seconds(scorer, image, 5), "sqnr": report.sqnr,
            }  # fmt: skip
    for folder in arguments.models:
        scorer = qmamba.load(folder)
        config = scorer.config.quantization
        name = f"{config.label} {config.method}" if config is not None else folder
        report_file = Path(folder) / "quantization.json"
        sqnr = json.loads(report_file.read_text())["sqnr"] if report_file.exists() else {}
        rows[name] = {
            **against(scorer.score(paths, progress=True), mos, of_float),
            "MB": scorer.config.weights_bytes / 1e6, "s": seconds(scorer, image, 5), "sqnr": sqnr,
        }  # fmt: skip
    return {"model": arguments.model, "data": arguments.data, "images": len(rated), "rows": rows}


def draw(found: dict[str, Any], picture: Path) -> None:
    """Draw the signal-to-quantization-noise ratio of each weight and activation, one line for each row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for name, row in found["rows"].items():
        if row.get("sqnr"):
            axes.plot(list(row["sqnr"].values()), label=name, linewidth=1)
    axes.set_xlabel("weights, then activations, in the network's order")
    axes.set_ylabel("SQNR, dB")
    axes.legend(fontsize=8)
    figure.savefig(picture)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="?", help="rated images, as `qmamba evaluate --data` takes them")
    parser.add_argument("--model", default="lqmamba-n")
    parser.add_argument("--models", nargs="*", default=[], help="folders of quantized models")
    parser.add_argument("--bits", nargs="*", default=["W8", "W4", "W8A8", "W4A8", "W4A4"])
    parser.add_argument("--calibrate", help="folder of photographs without labels")
    parser.add_argument("--most", type=int, default=10**9, help="photographs to score, at most about as many")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--draw", type=Path, help="results to draw")
    parser.add_argument("--picture", type=Path, default=Path("sqnr.svg"))
    arguments = parser.parse_args()
    if arguments.draw is not None:
        draw(json.loads(arguments.draw.read_text()), arguments.picture)
        return
    if arguments.data is None:
        parser.error("give rated images, or --draw")
    found = measure(arguments)
    text = json.dumps(found, indent=2)
    print(text) if arguments.out is None else arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
