"""`examples/onnx_score.py`: the scores of torch, without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import qmamba
from qmamba import Protocol, Scorer
from qmamba.images import decode
from qmamba.images.resizing import resize, unit
from qmamba.integrations.onnx import export_onnx
from qmamba.protocol import views
from tiny_scorer import photo, tiny_config, tiny_network

EXAMPLES = Path(__file__).parents[1] / "examples"
PHOTOGRAPHS = sorted(EXAMPLES.glob("*.jpg"))


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("onnxruntime")
    monkeypatch.syspath_prepend(EXAMPLES)
    import onnx_score

    return onnx_score


def scorer_of(protocol: Protocol) -> Scorer:
    return Scorer(tiny_network(), tiny_config().replace(protocol=protocol))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network's file, with the protocol of the embedded model."""
    pytest.importorskip("onnxscript")
    return export_onnx(scorer_of(qmamba.load().protocol), tmp_path_factory.mktemp("onnx") / "tiny.onnx")


@pytest.mark.parametrize(
    "protocol",
    [
        Protocol("scales", max_crops=0, sides=(448, 480)),
        Protocol("scales", max_crops=4),
        Protocol("grid", max_crops=7),
        Protocol("whole"),
    ],
    ids=lambda protocol: f"{protocol.kind}-{protocol.max_crops}",
)
def test_a_photograph_is_cut_as_by_the_library(example: Any, protocol: Protocol) -> None:
    for size in ((480, 640), (1, 40), (33, 900), (224, 224), (3000, 2000), (500, 499)):
        found = [(v.height, v.width, v.windows) for v in example.views(*size, protocol.to_dict())]
        assert found == [(v.height, v.width, v.windows) for v in views(*size, protocol)]


@pytest.mark.parametrize("size", [(224, 299), (448, 300), (61, 500), (700, 900), (301, 403)])
def test_pixels_are_resized_as_by_the_library(example: Any, size: tuple[int, int]) -> None:
    pixels = photo(301, 403)
    planes = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    want = unit(resize(planes, *size)).numpy()
    got = example.resize(example.read(Image.fromarray(pixels)), *size)
    assert got.dtype == np.float32 and got.shape == want.shape
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_files_are_read_as_by_the_library(example: Any, tmp_path: Path) -> None:
    picture = Image.fromarray(photo(40, 60))
    exif = Image.Exif()
    exif[274] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    alpha = Image.linear_gradient("L").resize(picture.size)
    with_alpha = picture.copy()
    with_alpha.putalpha(alpha)
    with_alpha.save(tmp_path / "transparent.png")
    picture.convert("L").save(tmp_path / "grey.png")
    for path in [*PHOTOGRAPHS, *sorted(tmp_path.glob("*.png"))]:
        want = unit(decode(path)).numpy()
        np.testing.assert_allclose(example.read(path), want, atol=1.01 / 255 if "trans" in path.name else 0)


def test_scores_are_those_of_torch(example: Any, model: Path) -> None:
    onnx = example.OnnxScorer(model)
    protocols = [onnx.protocol, Protocol(max_crops=2).to_dict()]
    for protocol in protocols:
        onnx.protocol = protocol
        torch_scorer = scorer_of(Protocol.from_dict(protocol))
        wanted = [torch_scorer.score(path) for path in PHOTOGRAPHS]
        assert max(wanted) - min(wanted) > 0.01, "the small network tells the photographs apart"
        assert [onnx.score(path) for path in PHOTOGRAPHS] == pytest.approx(wanted, abs=1e-4)


def test_what_it_cannot_do_is_an_error(example: Any, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="drawn by torch"):
        example.views(100, 100, Protocol("random").to_dict())
    with pytest.raises(ValueError, match="too thin"):
        example.views(10, 1000, Protocol().to_dict())


def test_neither_torch_nor_qmamba_is_needed(model: Path) -> None:
    pytest.importorskip("onnxruntime")
    script = """
import runpy, sys
for name in ("torch", "qmamba"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    command = [sys.executable, "-c", script, EXAMPLES / "onnx_score.py", model, *PHOTOGRAPHS[:2]]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    scorer = scorer_of(qmamba.load().protocol)
    for line, path in zip(done.stdout.splitlines(), PHOTOGRAPHS[:2], strict=True):
        score, name = line.split("  ")
        assert float(score) == pytest.approx(scorer.score(path), abs=2e-4) and name == str(path)


@pytest.mark.slow
def test_scores_of_the_embedded_model_are_those_of_torch(example: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    scorer = qmamba.load()
    onnx = example.OnnxScorer(export_onnx(scorer, tmp_path / "model.onnx"))
    wanted = [scorer.score(path) for path in PHOTOGRAPHS]
    assert [onnx.score(path) for path in PHOTOGRAPHS] == pytest.approx(wanted, abs=1e-4)
