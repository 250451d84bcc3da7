"""From pixels to the raw parts of a score: what every use of a network on an image has in common.

`crops` is the only place where an image is cut, and `raw_parts` the only place where a network sees the cuts.
Scores, maps, features and training differ in what they do with the raw parts.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from qmamba.errors import ArgumentError, CapabilityError, ImageError
from qmamba.images import MAX_PIXELS
from qmamba.images.resizing import resize, unit
from qmamba.models.registry import Output
from qmamba.ops.fork import use_one_thread_in_forked_child
from qmamba.ops.precision import without_autocast
from qmamba.preprocessing import Preprocessing
from qmamba.protocol import Protocol, View, Window, check_aspect, views
from qmamba.scoring.stream import decode_ahead, is_out_of_memory, outcome, senseless

__all__ = [
    "CropScores",
    "Crops",
    "RawParts",
    "crops",
    "decode_ahead",
    "outcome",
    "pixel_limit",
    "quality",
    "raw_parts",
    "senseless",
]

T = TypeVar("T")


class RawParts(NamedTuple):
    """The parts of an image's score before calibration.

    Attributes:
        windows: (top, left, height, width) of each crop, in pixels of the image.
        raw: (n,) float32 on the CPU, raw quality.
        weights: (n,) float32 on the CPU, the share of each crop in the score; they sum to 1.
    """

    windows: list[Window]
    raw: Tensor
    weights: Tensor


class CropScores(NamedTuple):
    """The parts of an image's score.

    Attributes:
        windows: (top, left, height, width) of each crop, in pixels of the image.
        scores: (n,) float32 on the CPU, calibrated.
        weights: (n,) float32 on the CPU, the share of each crop in the score; they sum to 1.
    """

    windows: list[Window]
    scores: Tensor
    weights: Tensor

    @property
    def mean(self) -> float:
        """The image's score."""
        return float((self.weights * self.scores).sum())

    @property
    def std(self) -> float:
        """Weighted standard deviation of the crops' scores; 0 for a single crop."""
        centred = self.scores - (self.weights * self.scores).sum()
        return float((self.weights * centred.square()).sum().sqrt())


@dataclass(frozen=True, eq=False)
class Crops:
    """Where some crops of an image lie, at one of its sizes, and their weight; their pixels are not kept.

    Attributes:
        view: the size, and all windows at this size.
        windows: those of these crops, in pixels of the view.
        weight: the share of each crop in the image's score.
    """

    view: View
    windows: Sequence[Window]
    weight: float


def crops(
    pixels: Tensor,
    protocol: Protocol,
    *,
    device: torch.device | None = None,
    batch_size: int | None = None,
    max_pixels: int = MAX_PIXELS,
    name: str = "image",
    size: tuple[int, int] | None = None,
) -> Iterator[tuple[Crops, Tensor]]:
    """Yield crops of an image and their pixels (..., n, 3, h, w), float32 in [0, 1].

    They come in the order of the image's views and their windows.

    Args:
        pixels: (..., 3, H, W), uint8, or float in [0, 1]; crops are differentiable to floats.
        protocol: decides sizes and windows.
        device: of the crops; by default that of the pixels.
        batch_size: crops at a time; by default all of a view.
        max_pixels: the maximum height × width of an enlarged image.
        name: what an error calls the image.
        size: original height and width of an image that was downsampled while it was decoded; the views
            follow from them. Defaults to the size of the pixels.

    Raises:
        ImageError: the image is too thin, or would exceed `max_pixels` when enlarged.
    """
    height, width = (int(pixels.shape[-2]), int(pixels.shape[-1])) if size is None else size
    check_aspect(height, width, name)
    seen = views(height, width, protocol)
    for view in seen:
        whole = resize(pixels, view.height, view.width, max_pixels=max_pixels, name=name)
        weight = 1 / (len(seen) * len(view.windows))
        step = len(view.windows) if batch_size is None else batch_size
        for start in range(0, len(view.windows), step):
            windows = view.windows[start : start + step]
            cut = [whole[..., top : top + h, left : left + w] for top, left, h, w in windows]
            # (..., 3, h, w) each; moved to the device as bytes where the image has bytes
            images = torch.stack(cut, dim=-4)
            images = images if device is None else images.to(device)
            yield Crops(view, windows, weight), unit(images)


def raw_parts(
    network: Callable[[Tensor], T],
    pixels: Tensor,
    protocol: Protocol,
    preprocessing: Preprocessing,
    *,
    weight: Tensor,
    batch_size: int = 32,
    max_pixels: int = MAX_PIXELS,
    name: str = "image",
    size: tuple[int, int] | None = None,
) -> Iterator[tuple[Crops, T]]:
    """Yield the crops of one image, and what a network returns for them; no gradients.

    Crops of one image make a batch, and no autocast acts: the bits of a result depend on the image and the
    weights only. Tensors are made in inference mode; an operation outside of it, such as `torch.cat`, gives
    ordinary ones.

    Args:
        network: takes normalised images (n, 3, h, w), on the device and in the type of `weight`.
        pixels: (3, H, W), uint8, or float in [0, 1].
        protocol: decides the crops.
        preprocessing: applied to each crop.
        weight: any parameter of the network.
        batch_size: crops per forward pass.
        max_pixels, name, size: as for `crops`.

    Raises:
        ImageError: the enlarged image would exceed `max_pixels`, or memory does not suffice.
    """
    use_one_thread_in_forked_child()
    cut = crops(
        pixels, protocol, device=weight.device, batch_size=batch_size, max_pixels=max_pixels, name=name,
        size=size,
    )  # fmt: skip
    no_memory = False
    while True:
        try:
            # Entered for each batch: a context held across `yield` would act on the caller.
            with torch.inference_mode(), without_autocast(weight.device):
                part, images = next(cut, (None, weight))
                if part is None:
                    return
                result = network(preprocessing(images).to(weight.dtype))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            no_memory = True
        if no_memory:  # raised here, where the failed batch is no longer held by a traceback
            raise ImageError(
                f"{name}: not enough memory on {weight.device} to score it; lower batch_size, or shrink it"
            )
        assert part is not None
        yield part, result


def windows_and_weights(parts: Sequence[Crops], height: int, width: int) -> tuple[list[Window], Tensor]:
    """Return all crops' windows in pixels of an image of this size, and their shares (n,) in its score."""
    windows = [part.view.in_image(window, height, width) for part in parts for window in part.windows]
    shares = [part.weight for part in parts for _ in part.windows]
    return windows, torch.tensor(shares, dtype=torch.float32, device="cpu")


def quality(outputs: Tensor, output: Output) -> Tensor:
    """Return the raw quality (N,) float32 in a network's outputs.

    Args:
        outputs: (N, 1) for "number"; (N, L), logits of levels from the worst to the best, for "levels". The
            quality of a distribution is its mean, with the levels at even distances from 0 to 1.
        output: kind of the outputs.

    Raises:
        CapabilityError: the outputs are words.

    Examples:
        >>> quality(torch.tensor([[0.0, 0.0, 0.0], [-9.0, -9.0, 9.0]]), "levels")
        tensor([0.5000, 1.0000])
    """
    if output == "number":
        return outputs[:, 0].to(torch.float32)
    if output == "words":
        raise CapabilityError("a model that answers in words has no score; use a model of numbers or levels")
    shares = outputs.to(torch.float32).softmax(dim=1)  # (N, L)
    levels = torch.linspace(0, 1, shares.shape[1], dtype=torch.float32, device=shares.device)
    return shares @ levels


def pixel_limit(batch_size: int, max_pixels: int | None, workers: int = 1) -> int:
    """Check these numbers, and return `max_pixels` or its default.

    Raises:
        ArgumentError: one of them is not an integer of at least 1.
    """
    for name, value in (("batch_size", batch_size), ("max_pixels", max_pixels), ("workers", workers)):
        if value is not None and (
            not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1
        ):
            raise ArgumentError(f"{name} must be an integer of at least 1, got {value!r}")
    return MAX_PIXELS if max_pixels is None else max_pixels
