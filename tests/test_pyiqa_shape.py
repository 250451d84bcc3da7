"""Code for pyiqa's metrics runs on ours: signatures and attributes of the real package, or of its record."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import qmamba
from qmamba.errors import ImageError, UnknownModelError
from qmamba.integrations.pyiqa import QMambaMetric, create_metric
from qmamba.scoring import Scorer
from tiny_scorer import photo, tiny_config, tiny_network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    Scorer(tiny_network(), tiny_config()).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def scorer(folder: str) -> Scorer:
    return qmamba.load(folder)


def parameters(function: Callable[..., Any]) -> list[Any]:
    """As in the record: [name] or [name, default], and "**name"."""
    found: list[Any] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            found.append(f"**{name}")
        elif name != "self":
            found.append(
                [name] if parameter.default is inspect.Parameter.empty else [name, parameter.default]
            )
    return found


@pytest.fixture(scope="module")
def interface(data_dir: Path) -> dict[str, Any]:
    recorded: dict[str, Any] = json.loads((data_dir / "pyiqa_interface.json").read_text())
    try:
        import pyiqa
        from pyiqa.models.inference_model import InferenceModel
    except ImportError:
        return recorded
    functions = (pyiqa.create_metric, InferenceModel.__init__, InferenceModel.forward)
    found = dict(zip(("create_metric", "init", "forward"), map(parameters, functions), strict=True))
    return {**recorded, **found, "version": pyiqa.__version__}


@pytest.mark.parametrize(
    ("where", "function"),
    [("create_metric", create_metric), ("init", QMambaMetric.__init__), ("forward", QMambaMetric.forward)],
)
def test_the_parameters_are_those_of_pyiqa(
    interface: dict[str, Any], where: str, function: Callable[..., Any]
) -> None:
    ours, theirs = parameters(function), interface[where]
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        # A name that pyiqa requires may be left out here.
        assert mine == other or (len(other) == 1 and mine[0] == other[0] == "metric_name")


def test_the_attributes_are_those_of_pyiqa(interface: dict[str, Any], folder: str) -> None:
    metric = create_metric(folder, device="cpu")
    assert all(hasattr(metric, name) for name in interface["attributes"])
    assert metric.metric_name == folder and metric.metric_mode == "NR" and metric.lower_better is False
    assert [float(number) for number in metric.score_range.split(",")] == [0, 1]
    assert (
        metric.as_loss is False
        and metric.check_input_range
        and not create_metric(folder, True).check_input_range
    )


def test_one_image_of_any_kind(folder: str, scorer: Scorer, tmp_path: Path) -> None:
    metric = create_metric(folder, device="cpu")
    pixels = photo(70, 90)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    want = scorer.score(pixels)
    for target in (str(tmp_path / "a.png"), tmp_path / "a.png", Image.fromarray(pixels), pixels):
        score = metric(target)
        assert score.shape == (1, 1) and score.dtype == torch.float32 and score.item() == want
    assert metric(str(tmp_path / "a.png"), ref=None).item() == want
    assert metric(target=tmp_path / "a.png").item() == want


def test_batches(folder: str, scorer: Scorer) -> None:
    metric = create_metric(folder, device="cpu")
    batch = torch.rand(3, 3, 64, 80, requires_grad=True)
    scores = metric(batch)
    assert scores.shape == (3, 1) and not scores.requires_grad
    assert torch.equal(scores[:, 0], scorer.score(list(batch)))
    grey = torch.rand(2, 1, 64, 64)
    assert torch.equal(metric(grey), metric(grey.expand(-1, 3, -1, -1)))


def test_as_a_loss(folder: str, scorer: Scorer) -> None:
    batch = torch.rand(2, 3, 64, 80)
    want = scorer(batch)
    for options, wanted in (
        ({}, want.mean()),
        ({"loss_reduction": "sum", "loss_weight": 0.5}, 0.5 * want.sum()),
        ({"loss_reduction": "none", "loss_weight": 2.0}, 2 * want[:, None]),
    ):
        metric = create_metric(folder, as_loss=True, device="cpu", **options)
        images = batch.clone().requires_grad_()
        loss = metric(images)
        assert loss.shape == wanted.shape and torch.allclose(loss, wanted)
        (1 - loss).mean().backward()
        assert images.grad is not None and images.grad.abs().max() > 0
        with torch.no_grad():  # pyiqa's losses have gradients in any case
            assert metric(images).requires_grad
    grey = torch.rand(1, 1, 64, 64, requires_grad=True)
    create_metric(folder, as_loss=True, device="cpu")(grey).backward()
    assert grey.grad is not None and grey.grad.shape == grey.shape


def test_range(folder: str) -> None:
    far = torch.full((1, 3, 64, 64), 1.2)
    with pytest.raises(ImageError):
        create_metric(folder, device="cpu")(far)
    loose = create_metric(folder, device="cpu", check_input_range=False)(far)
    assert loose.shape == (1, 1) and not loose.requires_grad
    assert create_metric(folder, as_loss=True, device="cpu")(far).shape == ()


def test_the_device(folder: str) -> None:
    metric = create_metric(folder, device=torch.device("cpu"))
    assert metric.device == torch.device("cpu") and metric(photo(64, 64)).device == metric.device
    assert metric.to("meta") is metric and metric.device.type == "meta"
    default = create_metric(folder).device.type
    assert default == ("cuda" if torch.cuda.is_available() else "cpu")


def test_the_default_model_and_what_load_takes() -> None:
    metric = create_metric(device="cpu", protocol="whole").train()
    image = Image.fromarray(photo(96, 96))
    assert metric(image).item() == qmamba.load(protocol="whole").score(image)
    assert metric.metric_name == "lqmamba-n" and metric.net.score_range == (0.0, 1.0)


@pytest.mark.parametrize(
    "target",
    [torch.rand(3, 64, 64), torch.rand(1, 2, 64, 64), ["a.png", "b.png"], "nowhere.png", np.zeros(3)],
)
def test_what_no_metric_takes(folder: str, target: Any) -> None:
    with pytest.raises(ImageError):
        create_metric(folder, device="cpu")(target)


def test_a_folder_and_other_mistakes(folder: str) -> None:
    with pytest.raises(ImageError, match="folder"):
        create_metric(folder, device="cpu")(folder)
    with pytest.raises(UnknownModelError):
        create_metric("musiq")
    with pytest.raises(ValueError, match="loss_reduction"):
        create_metric(folder, loss_reduction="median")
    with pytest.raises(TypeError, match="crops"):
        create_metric(folder, crops=3)
    assert np.isfinite(create_metric(folder)(photo(64, 64)).item())
