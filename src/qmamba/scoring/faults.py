"""Name the fault of a photograph: a linear probe on the means and deviations of a network's stages.

A probe belongs to the weights that it was fitted to, and is stored beside them in `faults.safetensors`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qmamba.checkpoints.locate import embedded_folders
from qmamba.checkpoints.safetensors_file import read_tensors, replace_file
from qmamba.errors import CheckpointError
from qmamba.images import Decoded
from qmamba.models.capabilities import StageFeatures, require
from qmamba.models.statistics import channel_statistics
from qmamba.protocol import Protocol
from qmamba.scoring.pipeline import raw_parts

PROBE_FILE = "faults.safetensors"
CLEAN = "clean"
REACH = 10.0  # deviations: statistics beyond them count as these, as of a picture unlike any photograph
FAULTS: dict[str, dict[str, str]] = {
    "soft": {
        "gaussian_blur": "blurred afterwards",
        "lens_blur": "out of focus",
        "motion_blur": "moved",
    },
    "noisy": {
        "white_noise": "noise of all colours",
        "colour_noise": "noise of the colours alone",
        "multiplicative_noise": "speckle",
        "impulse_noise": "single wrong pixels",
    },
    "compressed too much": {"jpeg": "JPEG", "jpeg2000": "JPEG 2000"},
    "smeared by noise removal": {"denoise": ""},
    "too bright": {"brighten": "midtones", "mean_shift": "washed-out shadows"},
    "too dark": {"darken": ""},
    "pale": {"colour_saturation_hsv": ""},
    "garish": {"colour_saturation_lab": ""},
    "colours beside their edges": {"colour_diffusion": "colours run", "colour_shift": "a shifted channel"},
    "too few tones": {"colour_quantization": "a small palette", "quantization": "few values per channel"},
    "pixels displaced": {"jitter": "by a few pixels", "non_eccentricity_patch": "in patches"},
    "pixelated": {"pixelate": ""},
    "partly covered": {"colour_block": ""},
    "oversharpened": {"high_sharpen": ""},
    "too much contrast": {"contrast_change": ""},
}
"""Faults in the words that they are told in, each with the distortions that it stands for and their words."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """What a probe has recognised.

    Attributes:
        name: key of `FAULTS`.
        probability: that the probe gives to it, in [0, 1].
        kind: name of the distortion, None where it cannot be told which of the fault's.
    """

    name: str
    probability: float
    kind: str | None = None

    def __str__(self) -> str:
        words = "" if self.kind is None else FAULTS[self.name][self.kind]
        return f"{self.name}, probably {words}" if words else self.name


@dataclasses.dataclass(frozen=True, eq=False)
class FaultProbe:
    """A multinomial linear classifier of faults, with the probabilities from which it speaks.

    Attributes:
        kinds: K names of distortions and `CLEAN`.
        weight: (K, S) float32, of standardised statistics.
        bias: (K,) float32.
        mean, deviation: (S,) float32, of the statistics that it was fitted to.
        thresholds: least probability from which a fault, or one of its kinds, is told, by name; what has no
            threshold is never told.
        worst: least gap, in scores, from which a region is told as the worst; None to tell none.
        side: square root of the number of pixels of the image that the network sees.
        weights_sha256: of the weights that it belongs to.
    """

    kinds: tuple[str, ...]
    weight: Tensor
    bias: Tensor
    mean: Tensor
    deviation: Tensor
    thresholds: Mapping[str, float]
    worst: float | None
    side: int
    weights_sha256: str

    def probabilities(self, statistics: Tensor) -> Tensor:
        """Return the probabilities of the kinds, (n, K), for statistics (n, S)."""
        z = ((statistics - self.mean) / self.deviation).clamp(-REACH, REACH)
        return (z @ self.weight.T + self.bias).softmax(dim=1)

    def named(self, probabilities: Tensor) -> Fault | None:
        """Return the fault to tell for probabilities (K,), or None where it is not sure enough of any."""
        best = most_probable(self.kinds, probabilities)
        if best.probability < self.thresholds.get(best.name, 2.0):
            return None
        assert best.kind is not None
        probability = float(probabilities[self.kinds.index(best.kind)])
        is_sure = probability >= self.thresholds.get(best.kind, 2.0)
        return best if is_sure else dataclasses.replace(best, kind=None)

    def protocol(self) -> Protocol:
        """Return how the network sees an image: whole, at one size."""
        return Protocol("scales", max_crops=0, sides=(self.side,))

    def save(self, path: Path) -> None:
        """Write the probe to a safetensors file; its weights are rounded to float16."""
        from safetensors.torch import save

        tensors = {
            "weight": self.weight.to(torch.float16), "bias": self.bias, "mean": self.mean,
            "deviation": self.deviation,
        }  # fmt: skip
        about = {
            "kinds": self.kinds, "thresholds": dict(self.thresholds), "worst": self.worst,
            "side": self.side, "weights_sha256": self.weights_sha256,
        }  # fmt: skip
        content = save(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            metadata={"format": "pt", "qmamba": json.dumps(about)},
        )
        replace_file(path, content)


def most_probable(kinds: tuple[str, ...], probabilities: Tensor) -> Fault:
    """Return the most probable fault, whatever its probability, with the most probable of its kinds."""
    shares = dict(zip(kinds, probabilities.tolist(), strict=True))
    sums = {name: sum(shares[kind] for kind in members) for name, members in FAULTS.items()}
    name = max(sums, key=sums.__getitem__)
    return Fault(name, sums[name], max(FAULTS[name], key=shares.__getitem__))


def load_probe(path: Path) -> FaultProbe:
    """Return the probe in a file that `FaultProbe.save` wrote.

    Raises:
        CheckpointError: the file is missing, damaged, or no probe.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read the probe of faults ({error})") from error
    tensors: dict[str, Any] = dict(read_tensors(path, data))
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        about: dict[str, Any] = json.loads(header["__metadata__"]["qmamba"])
        probe = FaultProbe(**{**about, "kinds": tuple(about["kinds"])}, **tensors)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: must be a probe of faults, as benchmarks/faults.py writes them ({error})"
        ) from error
    expected = {CLEAN, *(kind for members in FAULTS.values() for kind in members)}
    if set(probe.kinds) != expected or probe.weight.shape != (len(expected), len(probe.mean)):
        raise CheckpointError(
            f"{path}: must tell {len(expected)} kinds of distortions; write it with benchmarks/faults.py"
        )
    return probe


@functools.cache
def _probe_of(sha256: str) -> FaultProbe | None:
    for folder in embedded_folders():
        if (folder / PROBE_FILE).is_file():
            probe = load_probe(folder / PROBE_FILE)
            if probe.weights_sha256 == sha256:
                return probe
    return None


def embedded_probe(sha256: str) -> FaultProbe | None:
    """Return the probe that ships for weights of this digest, None if there is none."""
    return _probe_of(sha256)


def stage_statistics(
    network: torch.nn.Module, preprocessing: Any, image: Decoded, protocol: Protocol, max_pixels: int
) -> Tensor:
    """Return means and deviations of all stages of a network, (S,) float32 on the CPU.

    Args:
        network: takes normalised images and gives features of stages; adapters have no effect.
        preprocessing: of its checkpoint.
        image: decoded.
        protocol: sizes and windows that are seen.
        max_pixels: the maximum height × width of an enlarged image.

    Raises:
        CapabilityError: the network does not give features of its stages.
        ImageError: the image is too thin, or too large.
    """
    stages = require(network, StageFeatures, "features of stages")

    def statistics(images: Tensor) -> Tensor:
        return channel_statistics([each.float() for each in stages.forward_features(images)[1]]).cpu()

    seen = raw_parts(
        statistics, image.pixels, protocol, preprocessing, weight=next(network.parameters()),
        max_pixels=max_pixels, name=image.name, size=(image.height, image.width),
    )  # fmt: skip
    return torch.cat([rows for _, rows in seen]).mean(dim=0)
