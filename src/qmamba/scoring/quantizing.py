"""Post-training quantization of a scorer, on photographs without labels."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qmamba.checkpoints import ModelConfig
from qmamba.errors import ArgumentError, CapabilityError, ImageError
from qmamba.images.decoding import MAX_PIXELS
from qmamba.metrics import evaluate
from qmamba.quantization import Quantization, calibrate, plan, prepare, round_weights
from qmamba.quantization.calibration import weights_sqnr
from qmamba.quantization.network import grids_of
from qmamba.scoring.scorer import Scorer
from qmamba.scoring.stream import decoded

CROPS = 128  # that activations are calibrated on
CHECKED = 64  # maximum number of photographs whose scores are compared
LEAST_CHECKED = 5

Done = Callable[[], None]


@dataclass
class QuantizationReport:
    """What was quantized, and what was not.

    Attributes:
        label: W8A8, say.
        method: of the `Quantization`.
        weights: bits of each quantized weight, by name.
        in_float: names of modules whose weights stay in float, and why.
        sqnr: signal-to-quantization-noise ratio in decibels: of weights by name, of activations by the name
            of their quantizer.
        images: number of photographs that activations were calibrated on.
        unreadable: errors of photographs that were left out.
    """

    label: str
    method: str
    weights: dict[str, int]
    in_float: dict[str, str]
    sqnr: dict[str, float] = field(default_factory=dict)
    images: int = 0
    unreadable: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, ready for JSON."""
        return asdict(self)


def quantize(
    scorer: Scorer,
    config: Quantization | None = None,
    photographs: Sequence[Any] = (),
    *,
    crops: int = CROPS,
    done: Done | None = None,
) -> tuple[Scorer, QuantizationReport]:
    """Quantize a scorer's network after training; the scorer stays as it is.

    Scores are computed in float, with weights and activations rounded to their codes ("fake quantization").
    What is saved is codes: `Scorer.save_pretrained` writes files of 8, 4 or 2 bits per weight.

    Args:
        scorer: in float.
        config: bits, method "ptq-mse" or "ptq-minmax", and what stays in float; 8-bit weights by default.
        photographs: images without labels, of any kind that `qmamba.images.decode` takes; needed where
            activations are quantized. Their crops by the scorer's protocol are what ranges are fitted to.
        crops: number of crops that activations are calibrated on, evenly from all photographs.
        done: called after each photograph.

    Returns:
        A scorer on the same device, without adapters, and a report. Adapters for the float model were made
        for other weights: train them for the quantized one.

    Raises:
        ArgumentError: the method trains (see `qmamba.train.quantize`), or there is no list of photographs to
            calibrate on.
        CapabilityError: the network is quantized already, or has nothing that can be.
        ImageError: no photograph can be decoded.

    >>> import qmamba
    >>> small, report = quantize(qmamba.load("lqmamba-n"), Quantization(weights=4))
    >>> report.label, small.config.quantization.weights
    ('W4', 4)
    """
    config = config or Quantization()
    if isinstance(photographs, (str, bytes, os.PathLike)):
        raise ArgumentError(f"photographs must be a list of images, got {photographs!r}; list its files")
    if config.is_trained:
        raise ArgumentError(f"method {config.method!r} trains; use qmamba.train.quantize, or 'ptq-mse'")
    if config.activations is not None and not len(photographs):
        raise ArgumentError(
            "photographs must be given to quantize activations, got none; or quantize weights only"
        )
    network, report = prepared(scorer, config)
    found = dict[str, float]()
    if config.activations is not None:
        batches = calibration_batches(scorer, photographs, crops, report, done)
        found = calibrate(network, batches, search=config.method == "ptq-mse", public=config.public)
    round_weights(network, config, plan(scorer.network, config))
    of_weights = weights_sqnr(scorer.network.get_parameter, network, grids_of(network))
    report.sqnr = {**of_weights, **found}
    return Scorer(network, quantized_config(scorer.config, config, images=report.images)), report


def prepared(
    scorer: Scorer, config: Quantization, *, training: bool = False
) -> tuple[nn.Module, QuantizationReport]:
    """Return a copy of a scorer's network with quantizers that are not calibrated, and a report.

    Raises:
        CapabilityError: the network is quantized already, answers in words, or has nothing that can be.
    """
    if scorer.config.output == "words":
        raise CapabilityError(f"{scorer.name} cannot be quantized: its network answers in words")
    if scorer.config.quantization is not None:
        raise CapabilityError(
            f"{scorer.name} is quantized already; quantize the float model that it was made from"
        )
    network = copy.deepcopy(scorer.network)
    made = plan(network, config)
    if not made.weights:
        raise CapabilityError(
            f"{scorer.name} has no layer that can be quantized as {config.label}; change keep"
        )
    prepare(network, config, made, training=training)
    weights = {name: entry.bits for name, entry in made.weights.items()}
    return network, QuantizationReport(config.label, config.method, weights, made.float_)


def quantized_config(base: ModelConfig, config: Quantization, **facts: Any) -> ModelConfig:
    """Return the config of a quantized model: its float model's, with where it comes from and no results.

    All weights are stored, also those that the float model's checkpoint takes from base weights on the Hub.
    """
    origin = {"name": base.name, "sha256": base.weights_sha256, "results": base.results}
    training = {**base.training, "quantized": {**config.to_dict(), **facts}, "float model": origin}
    return base.replace(
        name=f"{base.name[:80]}-{config.label.lower()}", quantization=config, training=training, results={},
        weights_sha256="", weights_bytes=0, bases=(),
    )  # fmt: skip


def calibration_batches(
    scorer: Scorer,
    photographs: Sequence[Any],
    crops: int,
    report: QuantizationReport,
    done: Done | None = None,
) -> Iterator[Tensor]:
    """Yield normalised crops (n, 3, h, w) of photographs, evenly chosen among all crops of each.

    Photographs that cannot be decoded are named in the report.

    Raises:
        ImageError: none can be decoded.
    """
    chosen = evenly(photographs, crops)
    each = -(-crops // len(chosen))
    for i, photograph in enumerate(chosen):
        try:
            pixels, name = decoded(photograph, MAX_PIXELS)[:2]
            found = [crop for _, batch in scorer.look(lambda images: images, pixels, name) for crop in batch]
        except ImageError as error:
            report.unreadable.append(str(error))
        else:
            report.images += 1
            # Not the same window of each photograph where one is taken of each.
            found = found[i % len(found) :] + found[: i % len(found)]
            for crop in evenly(found, each):
                yield crop[None].clone()
        if done is not None:
            done()
    if not report.images:
        raise ImageError(f"none of {len(chosen)} photographs can be decoded: {report.unreadable[0]}")


def evenly(items: Sequence[Any], count: int) -> list[Any]:
    """Return at most `count` items of a sequence, evenly spaced.

    >>> evenly("abcdef", 3)
    ['a', 'c', 'e']
    """
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def agreement(
    before: Scorer, after: Scorer, photographs: Sequence[Any], done: Done | None = None
) -> dict[str, dict[str, float]]:
    """Return how two scorers agree on photographs, as `results` of the second one's config.

    Photographs that cannot be decoded are passed over. With fewer than 5 nothing is measured.

    Args:
        before: the float model.
        after: the quantized one.
        photographs: images; at most 64 of them are scored.
        done: called after each photograph.
    """
    pairs = []
    for photograph in evenly(photographs, CHECKED):
        try:
            pairs.append((before.score(photograph), after.score(photograph)))
        except ImageError:
            continue
        finally:
            if done is not None:
                done()
    if len(pairs) < LEAST_CHECKED:
        return {}
    old, new = (torch.tensor(scores) for scores in zip(*pairs, strict=True))
    found = evaluate(new, old, metrics=["srcc", "plcc"], resamples=1000)
    rounded = {key: round(float(value), 4) for key, value in found.items() if value == value}
    rounded["largest difference"] = round(float((new - old).abs().max()), 4)
    return {f"scores of {before.name} in float": rounded}
