"""The torchmetrics metric against the real package: reductions, processes, collections, pickles, plots."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qmamba.errors import ImageError
from qmamba.scoring import Scorer
from tiny_scorer import tiny_config, tiny_network
from two_processes import in_two_processes

pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")

from torchmetrics import MeanMetric, Metric, MetricCollection

from qmamba.integrations.torchmetrics import QMambaScore, qmamba_score

REDUCED = {"mean": torch.mean, "sum": torch.sum, "none": lambda scores: scores}


def batch(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, 64, 80, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(tiny_network(), tiny_config())


@pytest.mark.parametrize("reduction", REDUCED)
def test_it_returns_what_its_reduction_says(scorer: Scorer, reduction: Any) -> None:
    metric = QMambaScore(scorer, reduction)
    assert isinstance(metric, Metric) and metric.higher_is_better and metric.is_differentiable
    first, second = batch(2), batch(3, seed=1)
    scores = scorer.score([*first, *second])
    assert torch.allclose(metric(first), REDUCED[reduction](scores[:2]))  # of this batch
    metric.update(second)
    assert torch.allclose(metric.compute(), REDUCED[reduction](scores))  # of all
    assert metric.compute().dtype == torch.float32
    assert torch.allclose(qmamba_score(first, reduction, scorer), REDUCED[reduction](scores[:2]))
    metric.reset()
    metric.update(second)
    assert torch.allclose(metric.compute(), REDUCED[reduction](scores[2:]))


def test_scores_are_those_of_the_scorer_to_the_bit(scorer: Scorer) -> None:
    metric = QMambaScore(scorer, "none")
    images = batch(3)
    metric.update(images)
    metric.update((images * 255).round().to(torch.uint8))
    want = scorer.score([*images, *(images * 255).round().to(torch.uint8)])
    assert torch.equal(metric.compute(), want)
    assert torch.equal(qmamba_score(images[1:2], "none", scorer), want[1:2])


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_without_images(scorer: Scorer) -> None:
    for reduction, shape in (("mean", ()), ("sum", ()), ("none", (0,))):
        metric = QMambaScore(scorer, reduction)  # type: ignore[arg-type]
        for _ in range(2):
            assert metric.compute().shape == shape
            metric.update(torch.zeros(0, 3, 64, 64))
        assert metric.compute().isnan().all() if reduction == "mean" else not metric.compute().any()


@pytest.mark.parametrize(
    "images",
    [
        torch.rand(3, 64, 64),
        torch.rand(1, 1, 64, 64),
        torch.rand(1, 64, 64, 3),
        torch.full((1, 3, 64, 64), 2.0),
        torch.full((1, 3, 64, 64), 2.0, requires_grad=True),
        torch.full((1, 3, 64, 64), -0.1),
        torch.full((1, 3, 64, 64), torch.nan),
        torch.zeros(1, 3, 64, 64, dtype=torch.int64),
        "photo.jpg",
    ],
)
def test_images_that_are_none(scorer: Scorer, images: Any) -> None:
    metric = QMambaScore(scorer)
    with pytest.raises(ValueError) as caught:
        metric.update(images)
    assert isinstance(caught.value, ImageError) and "\n" not in str(caught.value)
    with pytest.raises(ImageError):
        qmamba_score(images, model=scorer)


def test_a_reduction_that_is_none(scorer: Scorer) -> None:
    with pytest.raises(ValueError, match="mean, sum, none"):
        QMambaScore(scorer, "median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mean, sum, none"):
        qmamba_score(batch(1), "median", scorer)  # type: ignore[arg-type]


def test_gradients_flow_to_the_images(scorer: Scorer) -> None:
    for call in (QMambaScore(scorer), lambda images: qmamba_score(images, model=scorer)):
        images = batch(2).requires_grad_()
        call(images).backward()
        assert images.grad is not None and (images.grad.flatten(1).abs().amax(1) > 0).all()


def test_the_network_is_in_no_state(scorer: Scorer) -> None:
    metric = QMambaScore(scorer)
    model = nn.ModuleDict({"metric": metric, "net": nn.Linear(2, 2)})
    assert set(model.state_dict()) == {"net.weight", "net.bias"} == {n for n, _ in model.named_parameters()}
    metric.persistent(True)
    assert set(metric.state_dict()) == {"total", "images"}
    metric.update(batch(1))
    metric.reset()
    assert metric.scorer is scorer
    model.train()
    assert not scorer.training


def test_the_network_goes_to_the_device() -> None:
    metric = QMambaScore(Scorer(tiny_network(), tiny_config())).to("meta")
    assert next(metric.scorer.parameters()).device.type == "meta" == metric.device.type


def test_copies_and_pickles_go_on_by_themselves(scorer: Scorer) -> None:
    metric = QMambaScore(scorer, "none")
    metric.update(batch(2))
    for other in (copy.deepcopy(metric), metric.clone(), pickle.loads(pickle.dumps(metric))):
        assert torch.equal(other.compute(), metric.compute())
        other.update(batch(1, seed=4))
        assert len(other.compute()) == 3 and len(metric.compute()) == 2
        assert other.scorer is not scorer


def test_in_a_collection(scorer: Scorer) -> None:
    metrics = MetricCollection(
        {"quality": QMambaScore(scorer), "all": QMambaScore(scorer, "none"), "light": MeanMetric()}
    )
    first, second = batch(2), batch(1, seed=1)
    for images in (first, second):
        metrics.update(images)
    found = metrics.compute()
    scores = scorer.score([*first, *second])
    assert torch.allclose(found["quality"], scores.mean()) and torch.equal(found["all"], scores)
    assert found["light"] == pytest.approx(float(torch.cat([first, second]).mean()), abs=1e-6)
    assert set(metrics.clone(prefix="val_").compute()) == {"val_quality", "val_all", "val_light"}
    metrics.reset()


def test_plot_has_the_bounds_of_the_score(scorer: Scorer) -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    matplotlib.use("Agg")
    metric = QMambaScore(scorer)
    values = [metric(batch(1, seed)) for seed in range(3)]
    for value in (None, values[0], values):
        figure, axes = metric.plot(value)
        low, high = axes.get_ylim()
        assert low <= 0 and high >= 1 and high < 1.2
        lines = [float(line.get_ydata()[0]) for line in axes.get_lines()]
        assert any(abs(y - float(metric.compute() if value is None else values[0])) < 1e-6 for y in lines)
        matplotlib.pyplot.close(figure)


def _share(rank: int) -> dict[str, Any]:
    found = {}
    for reduction in ("mean", "none"):
        metric = QMambaScore(Scorer(tiny_network(), tiny_config()), reduction)  # type: ignore[arg-type]
        for seed in range(2 * rank):  # none for the first process, two batches for the second
            metric.update(batch(1 + seed, seed))
        together = metric.compute()
        metric.sync()
        synced = metric._is_synced
        metric.unsync()
        own = int(metric.images) if reduction == "mean" else sum(map(len, metric.scores))
        metric.reset()
        metric.update(batch(1, 7 + rank))
        found[reduction] = {"together": together, "synced": synced, "own": own, "after": metric.compute()}
    return found


def test_two_processes_share_what_they_have_seen(scorer: Scorer, tmp_path: Path) -> None:
    scores = scorer.score([*batch(1), *batch(2, 1)])
    after = scorer.score([*batch(1, 7), *batch(1, 8)])
    for rank, by_reduction in enumerate(in_two_processes(_share, tmp_path)):
        for reduction, found in by_reduction.items():
            assert found["synced"] and found["own"] == 3 * rank
            assert torch.allclose(found["together"], REDUCED[reduction](scores))
            assert torch.allclose(found["after"], REDUCED[reduction](after))
