"""Export models to ONNX, for images of any size.

Torch's exporter translates all of a network but the selective scan, whose translation is in ``onnx_scan.py``.
"""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import BackendError, CapabilityError
from ..models.capabilities import OneSize
from ..ops.compile import as_operators
from ..scoring import Scorer
from ..scoring.pipeline import quality

OPSET = 18
ANY_SIZE = (96, 128)  # height and width of the example input for networks that take any size


def export_onnx(scorer: Scorer, path: str | Path) -> Path:
    """Write a scorer's network and its active adapter as an ONNX file, which runs without this library.

    The input ``image`` is (B, 3, H, W) float32, RGB in [0, 1], for any B and any H, W ≥ 32, or for the one
    size that the network takes. The output ``score`` is (B,) float32 in [0, 1], the values of
    :meth:`Scorer.crop_scores`. The caller cuts images into crops and averages their scores; the metadata of
    the file hold the model's name (``qmamba_model``) and protocol as JSON (``qmamba_protocol``).

    Args:
        scorer: from :func:`qmamba.load`.
        path: file to write.

    Returns:
        The path of the file.

    Raises:
        BackendError: the packages ``onnx`` and ``onnxscript`` are not installed, or torch is older than 2.7.
        CapabilityError: the network answers in words.
    """
    if scorer.config.output == "words":
        raise CapabilityError(f"{scorer.name} has no ONNX file: its network answers in words")
    if getattr(torch.compiler, "is_exporting", None) is None:
        raise BackendError("ONNX export needs torch 2.7 or newer; upgrade torch")
    try:
        from .onnx_scan import translations
    except ImportError as error:
        raise BackendError('ONNX export needs more packages: pip install "qmamba[onnx]"') from error
    one_size = scorer.network.input_size if isinstance(scorer.network, OneSize) else None
    any_size = dict.fromkeys((0,) if one_size else (0, 2, 3), torch.export.Dim.DYNAMIC)
    example = torch.rand(2, 3, *(one_size or ANY_SIZE), generator=torch.Generator().manual_seed(0))
    with as_operators(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        traced = torch.export.export(
            _Scored(scorer).eval(), (example,), dynamic_shapes={"image": any_size}, strict=False
        )
        program = torch.onnx.export(
            traced, dynamo=True, opset_version=OPSET, input_names=["image"], output_names=["score"],
            custom_translation_table=translations(), verbose=False,
        )  # fmt: skip
    assert program is not None
    metadata = program.model.metadata_props
    metadata["qmamba_model"] = scorer.config.name
    metadata["qmamba_protocol"] = json.dumps(scorer.protocol.to_dict())
    program.save(str(path))
    return Path(path)


class _Scored(nn.Module):
    """Map crops in [0, 1] to scores, as a scorer does."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        parts = nn.ModuleList([scorer.network])
        adapter = scorer.adapter_in_use()
        if adapter is not None:
            parts.append(adapter)
        # Copied together: LoRA shares tensors with the network.
        self.parts = copy.deepcopy(parts).float().cpu()
        self.scale, self.config = scorer.scale, scorer.config

    def forward(self, image: Tensor) -> Tensor:
        """Score crops: (B, 3, H, W) → (B,)."""
        images = self.config.preprocessing(image)
        network, *adapters = self.parts
        raw = adapters[0](network, images) if adapters else network(images)
        return self.scale(quality(raw, self.config.output))
