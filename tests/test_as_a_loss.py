"""A scorer inside other people's training loops: frozen, mixed precision, several processes, compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import qmamba
from qmamba.adapters import create
from qmamba.protocol import KINDS
from qmamba.scoring import Scorer
from tiny_scorer import tiny_config, tiny_network, with_protocol
from two_processes import in_two_processes


class Restorer(nn.Module):
    """A restoration network that holds its quality model as a submodule, as many do."""

    def __init__(self, quality: nn.Module | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.restore = nn.Conv2d(3, 3, 3, padding=1)
        self.quality = quality

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = images + 0.1 * self.restore(images)
        return out

    def loss(self, images: Tensor) -> Tensor:
        assert self.quality is not None
        restored = self(images)
        loss: Tensor = (restored - images).square().mean() - self.quality(restored).mean()
        return loss


def batch(seed: int = 0, size: tuple[int, int] = (64, 80), n: int = 2) -> Tensor:
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def scorer() -> Scorer:
    return Scorer(tiny_network(), tiny_config())


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# Frozen


def test_nothing_that_an_outer_module_does_trains_it(scorer: Scorer) -> None:
    model = Restorer(scorer).requires_grad_(True).train()
    before = copy.deepcopy(scorer.state_dict())
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    want = scorer.score(list(batch()))
    first = model.loss(batch()).item()
    for _ in range(3):
        optimiser.zero_grad()
        model.loss(batch()).backward()
        optimiser.step()
    assert set(gradients(model)) == {"restore.weight", "restore.bias"}
    assert not scorer.training and not any(p.requires_grad for p in scorer.parameters())
    assert all(torch.equal(value, before[name]) for name, value in scorer.state_dict().items())
    assert torch.equal(scorer.score(list(batch())), want)
    assert model.loss(batch()).item() < first


def test_with_an_adapter_nothing_trains_either(scorer: Scorer) -> None:
    scorer.add_adapter("mine", create("style-prompt", scorer.base()))
    scorer.set_adapter("mine")
    model = Restorer(scorer).requires_grad_(True)
    model.loss(batch()).backward()
    assert set(gradients(model)) == {"restore.weight", "restore.bias"}


def test_it_goes_with_the_outer_module_and_its_checkpoint(scorer: Scorer, tmp_path: Path) -> None:
    model = Restorer(scorer)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = Restorer(Scorer(tiny_network(seed=5), tiny_config()))
    other.load_state_dict(torch.load(tmp_path / "model.pt"))
    assert torch.equal(other.quality(batch()), scorer(batch()))  # type: ignore[misc]
    beside = Restorer()  # a scorer held outside the module is in no checkpoint
    assert set(beside.state_dict()) == {"restore.weight", "restore.bias"}
    assert model.to(torch.float64).quality is scorer and scorer(batch()).dtype == torch.float32


def test_a_copy_is_a_scorer_of_its_own(scorer: Scorer) -> None:
    scorer.add_adapter("mine", create("ssf", scorer.base()))
    scorer.set_adapter("mine")
    model = Restorer(scorer)
    model.loss(batch()).backward()
    twin = copy.deepcopy(model)
    assert torch.equal(twin.loss(batch()), model.loss(batch()))
    assert isinstance(twin.quality, Scorer) and twin.quality.active_adapter == "mine"
    twin.quality.set_adapter(None)
    assert scorer.active_adapter == "mine"
    shared = {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert not shared


# Mixed precision


def test_a_step_in_bfloat16_is_close_to_one_in_float32() -> None:
    scorer, found = qmamba.load(protocol="whole"), []
    for enabled in (False, True):
        model = Restorer(scorer)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = model.loss(batch())
        assert loss.dtype == torch.float32
        loss.backward()
        grads = gradients(model)
        assert all(g.isfinite().all() and g.abs().max() > 0 for g in grads.values())
        found.append(torch.cat([g.flatten() for g in grads.values()]))
    assert torch.cosine_similarity(*found, dim=0) > 0.98


# Activation checkpointing


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_leaves_the_gradient_as_it_is(scorer: Scorer, kind: str) -> None:
    varied = with_protocol(scorer, kind=kind, n_crops=3)
    found = []
    for varied.network.checkpointing in (False, True):
        images = batch(size=(130, 96)).requires_grad_()
        scores = varied(images)
        scores.sum().backward()
        assert images.grad is not None
        found.append((scores.detach(), images.grad))
    (plain, wanted), (repeated, got) = found
    assert torch.equal(plain, repeated)
    assert float((got - wanted).abs().max() / wanted.abs().max()) < 1e-6


def kept_for_the_backward(run: Callable[[], Tensor]) -> int:
    """Bytes of tensors that autograd keeps."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = run()
    assert result.requires_grad
    return sum(kept.values())


def test_checkpointing_keeps_less_and_scoring_never_notices() -> None:
    plain, thrifty = qmamba.load(), qmamba.load(checkpointing=True)
    images = batch(size=(256, 256), n=1)
    much, little = (kept_for_the_backward(lambda s=s: s(images.requires_grad_())) for s in (plain, thrifty))
    assert little < much / 5
    assert torch.equal(plain.score(list(images.detach())), thrifty.score(list(images.detach())))


def test_checkpointing_trains_a_network_with_stochastic_depth() -> None:
    network = qmamba.create_model("lqmamba-n", widths=[8, 16], depths=[2, 2], windows=[2, 2], drop_path=0.5)
    found = []
    for network.checkpointing in (False, True):
        network.train().zero_grad()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            network(batch()).sum().backward()
            after = torch.get_rng_state()
        found.append((gradients(network), after))
    (wanted, state), (got, same_state) = found
    assert torch.equal(state, same_state) and wanted.keys() == got.keys()
    assert all(torch.allclose(got[name], wanted[name], atol=1e-6) for name in wanted)


# torch.compile


def check_compiled(scorer: Scorer, **options: Any) -> None:
    model = Restorer(scorer)
    step: Callable[[Tensor], Tensor] = torch.compile(model.loss, **options)
    for seed in (0, 1):  # the second batch finds the step compiled
        model.zero_grad()
        want = model.loss(batch(seed))
        want.backward()
        wanted = gradients(model)
        model.zero_grad()
        got = step(batch(seed))
        got.backward()
        found = gradients(model)
        assert torch.allclose(got, want, atol=1e-5)
        assert found.keys() == wanted.keys() == {"restore.weight", "restore.bias"}
        assert all(torch.allclose(found[name], wanted[name], atol=1e-5) for name in wanted)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_compiled_step_is_one_graph(scorer: Scorer, fresh_graphs: None, checkpointing: bool) -> None:
    scorer.base().checkpointing = checkpointing
    check_compiled(scorer, backend="aot_eager", fullgraph=True)


def test_a_compiled_step_freezes_too(scorer: Scorer, fresh_graphs: None) -> None:
    model = Restorer(scorer).requires_grad_(True)
    torch.compile(model.loss, backend="aot_eager")(batch()).backward()
    assert set(gradients(model)) == {"restore.weight", "restore.bias"}


@pytest.mark.slow
def test_a_step_compiled_to_machine_code(scorer: Scorer, fresh_graphs: None) -> None:
    check_compiled(scorer, fullgraph=True)


# Several processes


class Step(nn.Module):
    """A forward pass that ends in the loss, as DistributedDataParallel wants it."""

    def __init__(self, model: Restorer) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.loss(images)


def _two_steps(rank: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    model = Restorer(Scorer(tiny_network(), tiny_config())).train()
    wrapped = DistributedDataParallel(Step(model))
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.requires_grad_(True)  # once it is wrapped, even this does no harm
    found = []
    for step in range(2):
        optimiser.zero_grad()
        wrapped(batch(seed=2 * step + rank)).backward()
        found.append(gradients(model))
        optimiser.step()
    return found[0], {name: p.detach() for name, p in model.restore.named_parameters()}


def test_two_processes_train_one_model(scorer: Scorer, tmp_path: Path) -> None:
    (first, weights), (others_first, others_weights) = in_two_processes(_two_steps, tmp_path)
    model = Restorer(scorer)
    torch.stack([model.loss(batch(seed)) for seed in (0, 1)]).mean().backward()
    for name, wanted in gradients(model).items():
        assert torch.allclose(first[name], wanted, atol=1e-6) and torch.equal(first[name], others_first[name])
    assert all(torch.equal(weights[name], others_weights[name]) for name in weights)
