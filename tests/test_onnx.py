"""ONNX files: the same scores as torch, at any size."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import qmamba
from qmamba import Protocol, Scorer
from qmamba.calibration import Calibration
from qmamba.checkpoints import ModelConfig
from qmamba.cli import app
from qmamba.errors import BackendError
from qmamba.integrations.onnx import export_onnx
from qmamba.models import create_model

TINY = {"widths": (8, 16, 32, 64), "depths": (1, 1, 1, 1)}


def runtime():
    """onnxruntime, where it is installed with the packages that write files for it."""
    pytest.importorskip("onnxscript")
    return pytest.importorskip("onnxruntime")


def tiny(arch, **overrides):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = create_model(arch, **TINY, **overrides).eval()
        for p in network.parameters():
            p.data.add_(torch.randn_like(p) / 20)
    config = ModelConfig(
        name="tiny",
        arch=arch,
        overrides={**TINY, **overrides},
        calibration=Calibration(slope=2.0, offset=0.3),
        protocol=Protocol("whole"),
    )
    return Scorer(network, config)


@pytest.mark.parametrize(
    ("arch", "head"),
    [
        ("lqmamba-n", "mean"),
        pytest.param("qmamba-t", "mean", marks=pytest.mark.slow),
        pytest.param("lqmamba-n", "statistics", marks=pytest.mark.slow),
    ],
)
def test_scores_are_the_same_at_any_size(arch, head, tmp_path):
    ort = runtime()
    scorer = tiny(arch, head=head)
    session = ort.InferenceSession(str(export_onnx(scorer, tmp_path / "tiny.onnx")))
    for batch, height, width in [(2, 96, 128), (1, 64, 64), (3, 131, 77), (1, 224, 224), (1, 32, 32)]:
        images = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height))
        (got,) = session.run(None, {"image": images.numpy()})
        stats = scorer.config.preprocessing
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (stats.mean, stats.std))
        with torch.no_grad():
            want = scorer.config.calibration(scorer.network((images - mean) / std))[:, 0]
        assert got.shape == (batch,)
        np.testing.assert_allclose(got, want.numpy(), atol=1e-5)
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["qmamba_model"] == "tiny"
    assert json.loads(metadata["qmamba_protocol"]) == scorer.protocol.to_dict()


@pytest.mark.slow
def test_the_embedded_model_through_the_command(tmp_path):
    ort = runtime()
    path = tmp_path / "model.onnx"
    done = CliRunner().invoke(app, ["export", "--onnx", str(path)])
    assert done.exit_code == 0 and done.stdout.strip().endswith(str(path))
    session, scorer = ort.InferenceSession(str(path)), qmamba.load(protocol="whole")
    for height, width in [(224, 224), (384, 512)]:
        image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
        (got,) = session.run(None, {"image": image[None].numpy()})
        np.testing.assert_allclose(got, scorer.crop_scores(image).scores, atol=1e-4)


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "qmamba.integrations.onnx_scan", None)
    with pytest.raises(BackendError, match=r"qmamba\[onnx\]"):
        export_onnx(tiny("lqmamba-n"), tmp_path / "no.onnx")
    done = CliRunner().invoke(app, ["export", "--model", "lqmamba-n"])
    assert done.exit_code == 2
