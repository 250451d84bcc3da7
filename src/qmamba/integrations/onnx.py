"""ONNX files of models: for onnxruntime and whatever else reads them, at any size of image.

All of a network but the scan has a translation in torch's exporter; the scan's is in ``onnx_scan.py``.
"""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import BackendError
from ..ops.compile import as_operators
from ..scoring import Scorer

OPSET = 18
EXAMPLE = (2, 3, 96, 128)  # what the network is traced with; any other size will do as well


def export_onnx(scorer: Scorer, path: str | Path) -> Path:
    """Write a scorer's network, with its active adapter, as an ONNX file, which runs without this library.

    Its input ``image`` is (B, 3, H, W) float32, RGB in [0, 1], any B and any H, W ≥ 32. Its output ``score``
    is (B,) float32 in [0, 1]: what :meth:`Scorer.crop_scores` gives for each crop. Cutting an image into
    crops and taking the mean of their scores is left to the caller; the file's metadata have the model's
    name (``qmamba_model``) and its protocol as JSON (``qmamba_protocol``).

    Args:
        scorer: from :func:`qmamba.load`.
        path: of the file to be written.

    Returns:
        The path.

    Raises:
        BackendError: the packages ``onnx`` and ``onnxscript`` are not installed, or torch is older than 2.7.
    """
    if getattr(torch.compiler, "is_exporting", None) is None:
        raise BackendError("writing ONNX needs torch 2.7 or newer")
    try:
        from .onnx_scan import translations
    except ImportError as error:
        raise BackendError('writing ONNX needs more packages: pip install "qmamba[onnx]"') from error
    any_size = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    with as_operators(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        traced = torch.export.export(
            _Scored(scorer).eval(), (torch.rand(EXAMPLE),), dynamic_shapes={"image": any_size}, strict=False
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
    """Pixels in [0, 1] to scores in [0, 1]: what a scorer does with one crop."""

    mean: Tensor
    std: Tensor

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        parts = nn.ModuleList([scorer.network])
        adapter = scorer.adapter_in_use()
        if adapter is not None:
            parts.append(adapter)
        # together: LoRA shares the network's tensors
        self.parts = copy.deepcopy(parts).float().cpu()
        self.calibration = scorer.calibration
        for name, values in zip(("mean", "std"), scorer.config.preprocessing.tensors(), strict=True):
            self.register_buffer(name, values, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) → (B,)."""
        images = (image - self.mean) / self.std
        network, *adapters = self.parts
        raw = adapters[0](network, images) if adapters else network(images)
        return self.calibration(raw[:, 0])
