"""Score photographs with onnxruntime, NumPy and Pillow, and nothing else.

    qmamba export --onnx lqmamba-n.onnx          # once, where qmamba and torch are installed
    python examples/onnx_score.py lqmamba-n.onnx photo.jpg other.png

The ONNX file has the network and its calibration; its metadata have the protocol, which says at what sizes
and in which crops the network sees a photograph. `tests/test_onnx_example.py` checks that scores are within
1e-4 of torch's on the photographs of this folder. EXIF orientation and transparency are treated as in qmamba.
Colour profiles are not applied, and files of more than 8 bits are read as Pillow reads them: convert such
files first.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image, ImageOps

Planes = npt.NDArray[np.float32]
"""(3, H, W) in [0, 1], red, green, blue."""

LEAST = 64  # shorter side, in pixels, of an image that is seen whole at one of the protocol's sizes
MAX_ASPECT = 50  # maximum ratio of the longer side to the shorter one


@dataclass(frozen=True)
class View:
    """The photograph at one size, and the windows (top, left, height, width) that the network sees of it."""

    height: int
    width: int
    windows: tuple[tuple[int, int, int, int], ...]


class OnnxScorer:
    """Scores photographs with a file that `qmamba export --onnx` has written.

    Args:
        path: of the file.
        threads: of the computation; 0 for one per CPU core.
    """

    def __init__(self, path: str | Path, *, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        metadata = self.session.get_modelmeta().custom_metadata_map
        if "qmamba_protocol" not in metadata:
            raise ValueError(f"{path}: no file of `qmamba export --onnx`: its metadata have no protocol")
        self.protocol: dict[str, Any] = json.loads(metadata["qmamba_protocol"])

    def score(self, photograph: str | Path | Image.Image) -> float:
        """Return the score: the mean over the protocol's sizes of the mean over the crops at each size."""
        pixels = read(photograph)
        means = []
        for view in views(pixels.shape[1], pixels.shape[2], self.protocol):
            whole = resize(pixels, view.height, view.width)
            scores = [
                float(self.session.run(None, {"image": whole[None, :, top : top + h, left : left + w]})[0][0])
                for top, left, h, w in view.windows
            ]
            means.append(sum(scores) / len(scores))
        return sum(means) / len(means)


def read(photograph: str | Path | Image.Image) -> Planes:
    """Return the pixels of a photograph, turned upright, transparent parts on white."""
    if not isinstance(photograph, Image.Image):
        with Image.open(photograph) as opened:
            opened.load()
            photograph = opened
    upright = ImageOps.exif_transpose(photograph)
    if "A" in upright.getbands() or "transparency" in upright.info:
        with_alpha = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", with_alpha.size, "white"), with_alpha)
    pixels = np.asarray(upright.convert("RGB"), dtype=np.float32) / 255
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def resize(pixels: Planes, height: int, width: int) -> Planes:
    """Return resized pixels: bilinear, over all pixels that fall together where it shrinks.

    Each channel is resized as floats, Pillow's mode "F": rounding to 8 bits moves scores by up to 0.014.
    """
    if pixels.shape[1:] == (height, width):
        return pixels
    channels = [Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR) for plane in pixels]
    return np.stack([np.asarray(channel) for channel in channels])


def views(height: int, width: int, protocol: dict[str, Any]) -> list[View]:
    """Return what the network sees of a photograph of this size."""
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(f"{height} × {width} is too thin to score; crop it to the part to score")
    if protocol["kind"] == "random":
        raise ValueError("the crops of the protocol random are drawn by torch; export with another protocol")
    if protocol["kind"] != "scales":
        height, width = fitted(height, width, protocol["crop"])
        whole = ((0, 0, height, width),)
        windows = whole if protocol["kind"] == "whole" else grid(height, width, protocol)
        return [View(height, width, windows)]
    found = []
    for place, side in enumerate(protocol["sides"]):
        ratio = math.sqrt(side * side / (height * width))
        h, w = (max(1, round(length * ratio)) for length in (height, width))
        is_cut = place == 0 and protocol["max_crops"] > 0
        h, w = fitted(h, w, protocol["crop"] if is_cut else LEAST)
        found.append(View(h, w, grid(h, w, protocol) if is_cut else ((0, 0, h, w),)))
    return found


def fitted(height: int, width: int, least: int) -> tuple[int, int]:
    """Return the size, enlarged so that the shorter side is at least `least`."""
    shorter = min(height, width)
    if shorter >= least:
        return height, width
    h, w = (
        least if side == shorter else (side * least + shorter // 2) // shorter for side in (height, width)
    )
    return h, w


def grid(height: int, width: int, protocol: dict[str, Any]) -> tuple[tuple[int, int, int, int], ...]:
    """Return at most `max_crops` square crops, spread evenly from edge to edge."""
    crop = protocol["crop"]
    rows, columns = -(-height // crop), -(-width // crop)
    while rows * columns > protocol["max_crops"]:
        rows, columns = (rows - 1, columns) if rows >= columns else (rows, columns - 1)
    lefts = spread(width - crop, columns)
    return tuple((top, left, crop, crop) for top in spread(height - crop, rows) for left in lefts)


def spread(room: int, count: int) -> list[int]:
    """Return `count` even positions from 0 to `room`, halves rounded up."""
    if count == 1:
        return [room // 2]
    return [(2 * i * room + count - 1) // (2 * (count - 1)) for i in range(count)]


def main() -> None:
    """Score the photographs of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path, help="file of `qmamba export --onnx`")
    parser.add_argument("photographs", type=Path, nargs="+")
    options = parser.parse_args()
    scorer = OnnxScorer(options.model)
    for photograph in options.photographs:
        print(f"{scorer.score(photograph):.4f}  {photograph}")


if __name__ == "__main__":
    main()
