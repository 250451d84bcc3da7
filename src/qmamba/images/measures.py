"""Measure what may lie behind a score: exposure, sharpness, blockiness, noise, resolution.

The measures are computed from pixels, without a network, and no score depends on them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from qmamba.images.decoding import as_bytes, decode

Luma = npt.NDArray[np.float32]
"""(h, w), Y' of ITU-R BT.601, 0 to 255."""

WINDOW, PER_SIDE = 384, 3  # side in pixels, and most windows per row and column, of what is measured closely
CLIPPED = 2  # steps of 255 from black or white
TOLERANCE = 1.0  # RMS, of 255: detail below it counts as none
_WEIGHTS = (0.299, 0.587, 0.114)
_FLAT = 0.1  # of 255: steps inside blocks that are smaller count as this, or a flat picture would divide by 0


@dataclasses.dataclass(frozen=True)
class Reasons:
    """Measured properties of an image that may explain its score.

    Attributes:
        height, width: in pixels.
        clipped_dark: share of the pixels, in [0, 1], whose channels are all at most 2 of 255.
        clipped_bright: share of the pixels, in [0, 1], whose channels are all at least 253 of 255.
        brightness: mean luma, in [0, 1].
        sharpness: in [0, 1]: share of the differences between neighbours that a strong blur removes (1 minus
            the blur of Crété et al. 2007, in the direction that is blurred more). Noise raises it; a plain
            image has 0.
        blockiness: at least 0: how much larger steps are across the borders of 8 × 8 blocks, as JPEG has
            them, than at any other place in a block, relative to the mean of the others; 1 means about twice
            as large. A JPEG that was resized does not show it.
        noise: standard deviation of the luma's pixel noise, of 255: median absolute response to the mask of
            Immerkær (1996), among pixels that are not clipped. Fine texture raises it.
        resolution: in (0, 1]: the share of the height and width that holds the image's detail up to an RMS of
            1 of 255: 0.5 for an image that was enlarged twofold. Noise raises it.
    """

    height: int
    width: int
    clipped_dark: float
    clipped_bright: float
    brightness: float
    sharpness: float
    blockiness: float
    noise: float
    resolution: float

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, ready for JSON."""
        return dataclasses.asdict(self)

    def notes(self) -> list[str]:
        """Return a line for each measure that stands out.

        The limits are set so that undamaged photographs rarely reach one; a photograph may be meant to be
        dark or soft all the same.
        """
        found = []
        if self.clipped_dark > 0.25:
            found.append(f"{self.clipped_dark:.0%} of the pixels are black")
        if self.clipped_bright > 0.1:
            found.append(f"{self.clipped_bright:.0%} of the pixels are white")
        if not 0.12 <= self.brightness <= 0.8:
            found.append(
                f"{'dark' if self.brightness < 0.5 else 'bright'}: mean luma {self.brightness:.2f} of 1"
            )
        if self.sharpness < 0.35:
            found.append(f"blurred: sharpness {self.sharpness:.2f} of 1")
        if self.blockiness > 0.5:
            found.append(
                f"block artefacts: steps at 8 × 8 borders are {1 + self.blockiness:.1f} times the others"
            )
        if self.noise > 10:
            found.append(f"noisy: standard deviation {self.noise:.0f} of 255")
        if self.resolution < 0.4:
            found.append(f"little detail: {self.resolution:.0%} of the height and width would hold it")
        return found


def reasons(image: Any, *, max_pixels: int | None = None) -> Reasons:
    """Measure what may lie behind an image's score.

    Clipping and brightness are measured on all pixels; the rest on up to nine windows of 384 × 384 pixels,
    spread evenly over the image at its own resolution, so that the cost hardly grows with the image.

    Args:
        image: one image of any kind that `qmamba.images.decode` takes.
        max_pixels: refuse images with more pixels; 50,000,000 by default.

    Raises:
        ImageError: the image cannot be decoded.

    Examples:
        >>> found = reasons(np.full((64, 96), 255, np.uint8))
        >>> found.clipped_bright, found.brightness, found.sharpness
        (1.0, 1.0, 0.0)
    """
    pixels = decode(image) if max_pixels is None else decode(image, max_pixels=max_pixels)
    return reasons_in(pixels, int(pixels.shape[1]), int(pixels.shape[2]))


def reasons_in(pixels: torch.Tensor, height: int, width: int) -> Reasons:
    """Return what `reasons` does, of decoded pixels.

    Args:
        pixels: (3, h, w), as `decode` returns them.
        height, width: of the image, which has more pixels if it was reduced while it was decoded.
    """
    planes = as_bytes(pixels).cpu()
    windows = _windows(int(planes.shape[1]), int(planes.shape[2]))
    lumas = [_luma(planes[:, top : top + h, left : left + w]) for top, left, h, w in windows]
    return Reasons(
        height=height,
        width=width,
        clipped_dark=float((planes.amax(dim=0) <= CLIPPED).float().mean()),
        clipped_bright=float((planes.amin(dim=0) >= 255 - CLIPPED).float().mean()),
        brightness=_brightness(planes),
        sharpness=sharpness(lumas),
        blockiness=blockiness(lumas),
        noise=noise(lumas),
        resolution=resolution(lumas),
    )


def sharpness(lumas: list[Luma]) -> float:
    """Return the share of differences between neighbours that a blur over 9 pixels removes, in [0, 1]."""
    shares = []
    for axis in (0, 1):
        total = removed = 0.0
        for luma in lumas:
            if luma.shape[axis] < 2:
                continue
            sharp = np.abs(np.diff(luma, axis=axis))
            blurred = np.abs(np.diff(_blurred(luma, axis), axis=axis))
            total += float(sharp.sum(dtype=np.float64))
            removed += float(np.maximum(sharp - blurred, 0).sum(dtype=np.float64))
        shares.append(removed / total if total else 0.0)
    return min(shares)


def blockiness(lumas: list[Luma]) -> float:
    """Return how much larger steps across 8 × 8 borders are than the others, at least 0; 1 means twice."""
    found = 0.0
    for axis in (0, 1):
        sums, counts = np.zeros(8), np.zeros(8)  # of the steps by their position modulo 8
        for luma in lumas:
            steps = np.abs(np.diff(luma, axis=axis)).mean(axis=1 - axis, dtype=np.float64)
            # A window may begin at any place of the grid, and so may a cropped image.
            by_phase = np.array([(steps[phase::8].sum(), steps[phase::8].size) for phase in range(8)])
            borders_first = np.roll(by_phase, -int(by_phase[:, 0].argmax()), axis=0)
            sums += borders_first[:, 0]
            counts += borders_first[:, 1]
        if counts.min() < 2:
            continue
        means = sums / counts
        # Against the largest of the others, since in a small image some position is larger by chance.
        inside, other = float(means[1:].mean()), float(means[1:].max())
        found = max(found, (float(means[0]) - other) / max(inside, _FLAT))
    return max(found, 0.0)


def noise(lumas: list[Luma]) -> float:
    """Return the standard deviation of pixel noise, of 255."""
    responses = []
    for luma in lumas:
        if min(luma.shape) < 3:
            continue
        across = luma[:, :-2] - 2 * luma[:, 1:-1] + luma[:, 2:]
        response = across[:-2] - 2 * across[1:-1] + across[2:]  # the mask [1 -2 1; -2 4 -2; 1 -2 1]
        middle = luma[1:-1, 1:-1]
        responses.append(np.abs(response[(middle > CLIPPED) & (middle < 255 - CLIPPED)]))
    together = np.concatenate(responses) if responses else np.empty(0, np.float32)
    if not together.size:
        return 0.0
    # The mask multiplies the standard deviation by 6; 0.6745 is the median of |N(0, 1)|.
    return float(np.median(together)) / (6 * 0.6745)


def resolution(lumas: list[Luma]) -> float:
    """Return the share of the height and width that holds the detail up to an RMS of `TOLERANCE`."""
    bins = np.zeros(WINDOW // 2 + 1)  # mean energy by frequency, 0 to that of alternating pixels
    for luma in lumas:
        taper = np.hanning(luma.shape[0] + 2)[1:-1, None] * np.hanning(luma.shape[1] + 2)[None, 1:-1]
        mean = float((luma * taper).sum() / taper.sum())
        power = np.abs(np.fft.rfft2((luma - mean) * taper)) ** 2
        power[:, 1 : (luma.shape[1] + 1) // 2] *= 2  # the half of the spectrum that rfft2 leaves out
        down, across = np.abs(np.fft.fftfreq(luma.shape[0])), np.fft.rfftfreq(luma.shape[1])
        place = np.rint(2 * np.maximum(down[:, None], across) * (bins.size - 1)).astype(int)
        energy = np.bincount(place.ravel(), power.ravel(), minlength=bins.size)
        bins += energy / (luma.size * float((taper**2).sum()) * len(lumas))
    beyond = np.cumsum(bins[::-1])[::-1]  # energy at each frequency and above
    needed = int((beyond > TOLERANCE**2).sum())
    return max(needed, 1) / bins.size


def _luma(planes: torch.Tensor) -> Luma:
    """Return the luma (h, w) float32, 0 to 255, of (3, h, w) uint8."""
    weights = np.array(_WEIGHTS, dtype=np.float32)
    luma: Luma = np.tensordot(weights, planes.numpy().astype(np.float32), axes=1)
    return luma


def _brightness(planes: torch.Tensor) -> float:
    # Sums of integers: exact, and without a float image.
    means = [int(plane.sum(dtype=torch.int64)) / plane.numel() / 255 for plane in planes]
    return math.fsum(weight * mean for weight, mean in zip(_WEIGHTS, means, strict=True))


def _blurred(luma: Luma, axis: int) -> Luma:
    """Return the mean over 9 neighbours along an axis, edges repeated."""
    pads = [(4, 4) if each == axis else (0, 0) for each in (0, 1)]
    padded = np.pad(luma, pads, mode="edge")
    length = luma.shape[axis]
    blurred = np.zeros_like(luma)
    for shift in range(9):
        blurred += padded.take(range(shift, shift + length), axis=axis)
    blurred /= 9
    return blurred


def _windows(height: int, width: int) -> list[tuple[int, int, int, int]]:
    """Return (top, left, height, width) of the windows that are measured."""
    return [
        (top, left, min(height, WINDOW), min(width, WINDOW))
        for top in _starts(height)
        for left in _starts(width)
    ]


def _starts(length: int) -> list[int]:
    count = min(PER_SIDE, -(-length // WINDOW))
    room = max(length - WINDOW, 0)
    return [room // 2] if count == 1 else [i * room // (count - 1) for i in range(count)]
