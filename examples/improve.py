"""Raise the score of a photograph by gradient ascent, while keeping it close to the original.

    python examples/improve.py photo.jpg improved.png

Every step moves the pixels along the gradient of `score - fidelity * mean squared change`. See docs/loss.md
for results, and for why this is not restoration.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import qmamba


def improve(
    photograph: Image.Image, scorer: qmamba.Scorer, *, steps: int = 40, fidelity: float = 30.0
) -> Image.Image:
    """Return the photograph after gradient steps with Adam at a learning rate of 0.004."""
    start = torch.from_numpy(np.array(photograph.convert("RGB"))).permute(2, 0, 1)[None] / 255
    pixels = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([pixels], lr=0.004)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = fidelity * (pixels - start).square().mean() - scorer(pixels).mean()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            pixels.clamp_(0, 1)
    return Image.fromarray((pixels.detach()[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("photograph", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--fidelity", type=float, default=30.0)
    options = parser.parse_args()
    scorer = qmamba.load()
    with Image.open(options.photograph) as opened:
        before = opened.convert("RGB")
    after = improve(before, scorer, steps=options.steps, fidelity=options.fidelity)
    after.save(options.out)
    print(f"{scorer.score(before):.3f} -> {scorer.score(after):.3f}")


if __name__ == "__main__":
    main()
