"""Post-training calibration: ranges of activations from images without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from .network import activation_quantizers

ELEMENTS = 2048  # of each image's activations that a quantizer is fitted to


@torch.no_grad()
def calibrate(
    network: nn.Module, batches: Iterable[Tensor], *, search: bool = True, public: bool = False
) -> dict[str, float]:
    """Fit all quantizers of activations in a network to what they are given, in one pass in float.

    Args:
        network: with quantizers, see :func:`~qmamba.quantization.network.prepare`. Quantizers that get
            nothing stay as they are.
        batches: normalised images, each (B, 3, H, W), of any sizes.
        search: choose ranges by the least squared error; otherwise they span all values (minmax).
        public: start as the authors' public version does on its first batch.

    Returns:
        Signal-to-quantization-noise ratio in decibels by name of the quantizer.
    """
    quantizers = activation_quantizers(network)
    seen: dict[str, list[Tensor]] = {name: [] for name in quantizers}
    handles = [
        quantizer.register_forward_hook(partial(_record, seen[name]))
        for name, quantizer in quantizers.items()
    ]
    try:
        for images in batches:
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    for name, quantizer in quantizers.items():
        if not seen[name]:
            continue
        shortest = min(rows.shape[1] for rows in seen[name])
        rows = torch.cat([rows[:, :shortest] for rows in seen[name]])
        if public:
            quantizer.initialise(rows)
        else:
            quantizer.fit(rows, search)
        found[name] = sqnr(rows[:, 2:], quantizer(rows)[:, 2:])
    return found


def _record(seen: list[Tensor], quantizer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Keep some of a quantizer's input, and let the network continue in float."""
    x = given[0]
    if x.numel():
        seen.append(sample(x))
    return x


def sample(x: Tensor) -> Tensor:
    """Return spaced values of each image, (B, …) to (B, m), behind the least and the greatest of all."""
    flat = x.detach().flatten(1) if x.ndim > 1 else x.detach().view(1, -1)
    step = -(-flat.shape[1] // ELEMENTS)
    ends = [flat.amin(dim=1, keepdim=True), flat.amax(dim=1, keepdim=True)]
    return torch.cat([*ends, flat[:, ::step]], dim=1).float().clone()


def sqnr(signal: Tensor, quantized: Tensor) -> float:
    """Return the signal-to-quantization-noise ratio in decibels: 10 · log₁₀(Σ x² / Σ (x - x̂)²)."""
    noise = (quantized - signal).double().square().sum().clamp(min=1e-30)
    return round(float(10 * torch.log10(signal.double().square().sum().clamp(min=1e-30) / noise)), 2)


@torch.no_grad()
def weights_sqnr(
    before: Callable[[str], Tensor], network: nn.Module, names: Iterable[str]
) -> dict[str, float]:
    """Return the signal-to-quantization-noise ratio of weights by name, against those of a float network."""
    return {name: sqnr(before(name).float(), network.get_parameter(name).float()) for name in names}
