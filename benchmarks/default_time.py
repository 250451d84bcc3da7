"""Time the default model on one 512×512 photograph, against EfficientNet-Lite0 on the same crops.

    pip install "qmamba[distil]" && python benchmarks/default_time.py

Both networks get the crops of the default protocol, interleaved in every round; prints medians, and the
median ratio. Scoring from end to end, with decoding and resizing, is timed too.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time

import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import Tensor

import qmamba
from qmamba.images import decode
from qmamba.images.resizing import resize, unit
from qmamba.protocol import views


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    scorer, lite0 = qmamba.load(), EfficientNet.from_name("efficientnet-lite0").eval()
    photo = _photo()
    pixels = decode(photo)
    batches = []
    for view in views(*pixels.shape[-2:], scorer.protocol):
        whole = unit(resize(pixels, view.height, view.width))
        batches.append(
            torch.stack([whole[:, top : top + h, left : left + w] for top, left, h, w in view.windows])
        )
    calls = {
        "lqmamba-n": lambda: [scorer.network(b) for b in batches],
        "efficientnet-lite0": lambda: [lite0(b) for b in batches],
        "scoring": lambda: scorer.score(photo),
    }
    spent: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for i in range(args.rounds + 3):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                if i >= 3:
                    spent[name].append((time.perf_counter() - start) * 1e3)
    for name, times in spent.items():
        print(f"{name}: {statistics.median(times):.1f} ms")
    pairs = zip(spent["lqmamba-n"], spent["efficientnet-lite0"], strict=True)
    print(f"lqmamba-n / efficientnet-lite0: {statistics.median(a / b for a, b in pairs):.2f}")


def _photo() -> bytes:
    noise: Tensor = torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(noise.to(torch.uint8).numpy()).resize((512, 512), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "jpeg", quality=90)
    return file.getvalue()


if __name__ == "__main__":
    main()
