"""The statistics head: against its formula, its gradients, its map, and everything that takes a network."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from qmamba import adapters, create_model
from qmamba.checkpoints import save_checkpoint
from qmamba.errors import CapabilityError
from qmamba.models.qmamba import cpu, heads
from qmamba.models.qmamba.heads import StatisticsHead, area_mean, statistics
from qmamba.scoring import Scorer, load
from tiny_scorer import TINY, photo, tiny_config

WIDTHS = TINY["widths"]
SIZES = [(32, 32), (33, 61), (97, 40), (64, 80)]


@pytest.fixture
def network():
    return louder(create_model("lqmamba-n", **TINY, head="statistics"))


def louder(network, seed=0):
    """A network whose every part counts, and whose statistics are normalised by something."""
    g = torch.Generator().manual_seed(seed)
    for p in network.parameters():
        p.data.add_(torch.randn(p.shape, generator=g) / 10)
    head = network.head
    head.mean.copy_(torch.randn(head.mean.shape, generator=g))
    head.scale.copy_(torch.rand(head.scale.shape, generator=g) + 0.5)
    return network.eval()


def images(*size, n=2, seed=0):
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(seed))


def naive(head, features):
    """Raw quality of features (B, H, W, C) of each stage, one number at a time, in float64."""
    weight, bias = head.fc.weight.detach().double().numpy()[0], head.fc.bias.item()
    mean, scale = (b.double().numpy() for b in (head.mean, head.scale))
    scores = []
    for i in range(len(features[0])):
        score, k = bias, 0
        for stage in features:
            channels = stage[i].detach().double().numpy().reshape(-1, stage.shape[-1]).T
            for value in [c.mean() for c in channels] + [np.sqrt(c.var() + heads.EPS) for c in channels]:
                score += weight[k] * (value - mean[k]) * scale[k]
                k += 1
        assert k == len(weight) == 2 * sum(WIDTHS)
        scores.append(score)
    return scores


def stages_of(network, x, prompts=None):
    """What the head reads: each stage before its downsample, the last after its prompt."""
    found, x = [], network.stem(x)
    for s, stage in enumerate(network.stages):
        x = stage.blocks(x)
        found.append(x)
        x = stage.downsample(x)
        x = x if prompts is None else prompts[s](x)
    return [*found[:-1], x]


def prompts_of(network, seed=1):
    g = torch.Generator().manual_seed(seed)
    scales = [torch.rand(c, generator=g) + 0.5 for c in network.out_widths]
    return [lambda x, s=s: x * s + 0.1 for s in scales]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("prompted", [False, True], ids=["plain", "prompts"])
def test_the_formula(network, size, prompted):
    x, prompts = images(*size), prompts_of(network) if prompted else None
    expected = naive(network.head, stages_of(network, x, prompts))
    raw = network(x, prompts)
    assert raw.shape == (2, 1)
    assert raw[:, 0].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    with torch.no_grad():
        assert network(x, prompts)[:, 0].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("prompted", [False, True], ids=["plain", "prompts"])
def test_the_map_has_the_score_as_its_mean(network, size, prompted):
    x, prompts = images(*size), prompts_of(network) if prompted else None
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            raw, positions = network.forward_positions(x, prompts)
            assert torch.equal(raw, network(x, prompts))
        assert positions.shape == (2, *(-(-side // 32) for side in size))
        assert torch.allclose(positions.mean(dim=(1, 2)), raw[:, 0], rtol=1e-4, atol=1e-4)
    if positions[0].numel() > 1:
        assert positions.flatten(1).std(dim=1).min() > 1e-3


def test_a_position_of_the_map_knows_its_neighbourhood(network):
    """A stage's value is that of the positions that lie under it."""
    features = [torch.randn(1, 8, 8, c) for c in WIDTHS[:3]] + [torch.randn(1, 2, 2, WIDTHS[3])]
    changed = [f.clone() for f in features]
    changed[0][:, :4, :4] += 1.0  # the first quarter
    found = [statistics(f) for f in features]
    moved = network.head.positions(changed, found) - network.head.positions(features, found)
    assert moved[0, 0, 0].abs() > 1e-3
    assert torch.allclose(moved[0].flatten()[1:], torch.zeros(3), atol=1e-5)


@pytest.mark.parametrize(("fine", "coarse"), [((9, 16), (2, 2)), ((5, 3), (5, 3)), ((7, 10), (3, 4))])
def test_areas_keep_the_mean(fine, coarse):
    values = torch.randn(2, *fine, dtype=torch.float64)
    pooled = area_mean(values, *coarse)
    assert pooled.shape == (2, *coarse)
    torch.testing.assert_close(pooled.mean((1, 2)), values.mean((1, 2)))
    ones = torch.ones(1, *fine, dtype=torch.float64)
    torch.testing.assert_close(area_mean(ones, *coarse), torch.ones(1, *coarse, dtype=torch.float64))


def test_gradients():
    head = StatisticsHead((3, 2)).double()
    head.mean.normal_()
    features = [torch.randn(2, 4, 3, 3).double(), torch.randn(2, 2, 1, 2).double()]
    parameters = [p.detach().clone().requires_grad_() for p in head.parameters()]

    def score(*values):
        weights = dict(zip([n for n, _ in head.named_parameters()], values[2:], strict=True))
        found = [statistics(f) for f in values[:2]]
        return torch.func.functional_call(head, weights, (found,))

    assert torch.autograd.gradcheck(score, (*(f.requires_grad_() for f in features), *parameters))


def test_a_constant_image_has_finite_gradients(network):
    x = torch.zeros(1, 3, 32, 32, requires_grad=True)
    network(x).sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize("rows", [1, 300])
def test_a_mean_far_from_zero(rows, monkeypatch):
    """The deviation is 1 and the mean 3,000: the mean of squares would leave nothing of it."""
    x = torch.randn(2, 21, 13, 4) + 3000
    monkeypatch.setattr(cpu, "ELEMENTS", rows)
    want = torch.stack([x.double().mean((1, 2)), x.double().var((1, 2), correction=0).sqrt()], 1)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(cpu.run(statistics, x).double(), want, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_features_are_summed_in_float32(dtype, monkeypatch):
    x = (torch.randn(1, 64, 64, 3) + 100).to(dtype)
    want = statistics(x.float())
    monkeypatch.setattr(cpu, "ELEMENTS", 1000)
    with torch.no_grad():
        torch.testing.assert_close(cpu.run(statistics, x), want, rtol=1e-4, atol=1e-4)
    assert torch.equal(statistics(x), want)


def test_some_rows_at_a_time_are_the_same(network, monkeypatch):
    x = images(97, 131)
    raw, positions = network.forward_positions(x)
    for name, value in (("ELEMENTS", 300), ("SCANNED", 200), ("PIXELS", 1)):
        monkeypatch.setattr(cpu, name, value)
    with torch.no_grad():
        assert torch.allclose(network(x), raw, rtol=1e-4, atol=1e-4)
        alone = torch.cat([network(image[None]) for image in x])
        assert torch.equal(alone, network(x))
        assert torch.allclose(network.forward_positions(x)[1], positions, rtol=1e-3, atol=1e-3)


def test_checkpointing_gives_the_same_gradients(network):
    grads = []
    for network.checkpointing in (False, True):
        raw = network(images(40, 64), prompts_of(network))
        grads.append(torch.autograd.grad(raw.square().sum(), list(network.parameters())))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*grads, strict=True))


def test_raw_quality_with_features(network):
    x = images(48, 64)
    raw, features = network.forward_features(x)
    assert torch.equal(raw, network(x))
    assert [f.shape[1] for f in features] == list(WIDTHS)


def test_a_ridge_can_be_written_into_it(network):
    """Standardised statistics, a weight each, and a bias: what scikit-learn fits."""
    x = images(64, 64, n=6)
    with torch.no_grad():
        found = torch.cat([statistics(f).flatten(1) for f in stages_of(network, x)], 1).double()
        mean, std = found.mean(0), found.std(0) + 0.1
        weight, bias = torch.randn(found.shape[1], dtype=torch.float64), 0.5
        head = network.head
        head.mean.copy_(mean)
        head.scale.copy_(1 / std)
        head.fc.weight.copy_(weight[None])
        head.fc.bias.fill_(bias)
        want = ((found - mean) / std) @ weight + bias
        torch.testing.assert_close(network(x)[:, 0].double(), want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["style-prompt", "style-prompt-r", "linear-probe", "ssf", "full"])
def test_adapters(method, network):
    adapter = adapters.create(method, network)
    for p in adapter.parameters():
        p.data.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(2)) / 20)
    x = images(64, 80)
    want = adapter(network, x)
    assert not torch.allclose(want, network(x), atol=1e-3)
    with torch.no_grad():
        kept = adapter.before(network, x)
    assert torch.allclose(adapter.after(network, kept), want, rtol=1e-4, atol=1e-4)
    raw, positions = adapter.positions(network, x)
    assert torch.equal(raw, want)
    assert torch.allclose(positions.mean((1, 2)), raw[:, 0], rtol=1e-4, atol=1e-4)
    if method in ("style-prompt-r", "linear-probe"):
        own = naive(adapter.head, stages_of(network, x, adapter.prompts))
        assert want[:, 0].tolist() == pytest.approx(own, rel=1e-4, abs=1e-4)


def test_scored_saved_and_mapped(network, tmp_path):
    config = tiny_config().replace(overrides=network.overrides)
    assert config.overrides["head"] == "statistics"
    scorer = Scorer(network, config)
    picture = photo(90, 120)
    score = scorer.score(picture)
    found = scorer.quality_map(picture)
    assert found.score == score
    assert float((found.scores * found.shares).sum()) == pytest.approx(score, abs=1e-5)
    save_checkpoint(tmp_path / "model", network, config)
    assert load(tmp_path / "model").score(picture) == pytest.approx(score, abs=2e-3)  # float16


def test_another_head_is_one_line(network):
    with pytest.raises(ValueError, match="head must be one of mean, statistics"):
        create_model("lqmamba-n", **TINY, head="median")
    with pytest.raises(CapabilityError, match="Identity does not give values of positions"):
        network.forward_positions(images(32, 32), head=nn.Identity())
    mean = create_model("lqmamba-n", **TINY)
    kept = mean.forward_until(images(32, 32), 1)
    with pytest.raises(ValueError, match="statistics of 4 stages, got 2"):
        mean(kept, head=copy.deepcopy(network.head), start=1)


def test_sizes_are_counted():
    with torch.device("meta"):
        plain, model = create_model("lqmamba-n"), create_model("lqmamba-n", head="statistics")
    assert sum(p.numel() for p in plain.parameters()) == 3_384_177
    head = 2 * (32 + 64 + 128 + 256)
    assert sum(p.numel() for p in model.parameters()) == 3_384_177 - (3 * 256 + 1) + head + 1
    assert model.head.mean.shape == model.head.scale.shape == (head,)
    assert "head.fc.bias" in model.no_weight_decay()
