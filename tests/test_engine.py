"""`qmamba.train.fit` with a small task: the loop, resuming, processes, and what it leaves alone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qmamba.errors import RecipeError
from qmamba.train import Task, fit
from qmamba.train.engine import Run
from qmamba.train.processes import Processes
from qmamba.train.recipe import Optimisation
from qmamba.train.sampling import epoch_indices, mixed_epoch, permutation
from qmamba.train.schedule import warmup_cosine

pytest.importorskip("accelerate", reason="accelerate, which trains, is not installed")

ITEMS = 8  # per step
PLAN = Optimisation(ema=0.5, weight_decay=0.0, save_every=4)
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Places:
    """Which items of a step a process has."""

    rank: int
    size: int

    def of(self, step: int) -> Batch:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(ITEMS, 3, generator=generator)
        y = x @ torch.tensor([1.0, -2.0, 0.5]) + 0.25
        return x[self.rank :: self.size], y[self.rank :: self.size]


class Line(Task[Batch]):
    """Fit a line to points on it."""

    def __init__(self, steps: int = 12, norm: bool = False, secret: str = "a") -> None:
        self.steps, self.norm, self.secret = steps, norm, secret
        self.shared = {"items": ITEMS}

    def setup(self, processes: Processes) -> None:
        first = nn.BatchNorm1d(3) if self.norm else nn.Identity()
        self.network = nn.Sequential(first, nn.Linear(3, 1)).to(processes.device)
        self.heads = nn.ModuleList()
        self.validated: list[int] = []

    def fingerprint(self) -> dict[str, Any]:
        return {"secret": self.secret}

    def lr_at(self, step: int) -> float:
        return 0.1

    def batches(self, run: Run) -> Iterator[Batch]:
        parts = run.recipe.accumulate
        places = Places(run.processes.rank, run.processes.size)
        for step in range(run.step, self.steps):
            x, y = places.of(step)
            yield from zip(x.chunk(parts), y.chunk(parts), strict=True)

    def losses(self, batch: Batch, run: Run) -> dict[str, Tensor]:
        x, y = batch
        return {"loss": (self.network(x)[:, 0] - y).square().mean()}

    def validate(self, run: Run) -> dict[str, Any] | None:
        if run.step % 3:
            return None
        self.validated.append(run.step)
        return {"val_bias": float(run.averaged.get_parameter("1.bias").detach())}

    def state(self) -> dict[str, Any]:
        return {"validated": self.validated}

    def restore(self, state: dict[str, Any]) -> None:
        self.validated = state["validated"]

    def finish(self, run: Run) -> Path:
        if run.is_first:
            torch.save([run.averaged.state_dict(), self.validated], run.out / "line.pt")
        return run.out / "line.pt"


def result(path: Path) -> tuple[dict[str, Tensor], list[int]]:
    weights, validated = torch.load(path, weights_only=True)
    return weights, validated


def log(out: Path) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in event.items() if k != "seconds"} for event in events]


def test_it_learns_and_leaves_its_task_as_it_was(tmp_path: Path) -> None:
    task = Line(steps=200)
    weights, validated = result(fit(task, PLAN, tmp_path))
    assert weights["1.weight"].tolist()[0] == pytest.approx([1.0, -2.0, 0.5], abs=0.05)
    assert validated == list(range(0, 201, 3))
    assert not hasattr(task, "network")


@pytest.mark.parametrize(("key", "step"), [("loss", 1), ("loss", 3), ("val_bias", 6), ("loss", 11)])
def test_stopped_anywhere_and_resumed(key: str, step: int, tmp_path: Path) -> None:
    def stop(event: dict[str, Any]) -> None:
        if key in event and event["step"] == step:
            raise KeyboardInterrupt

    whole = result(fit(Line(), PLAN, tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        fit(Line(), PLAN, tmp_path / "parts", report=stop)
    parts = result(fit(Line(), PLAN, tmp_path / "parts"))
    assert whole[1] == parts[1]  # no validation is lost or done twice
    assert all(torch.equal(value, parts[0][name]) for name, value in whole[0].items())
    assert log(tmp_path / "whole") == log(tmp_path / "parts")


def test_accumulation_is_the_same_step(tmp_path: Path) -> None:
    plans = PLAN, Optimisation(ema=0.5, weight_decay=0.0, accumulate=4)
    one, four = (result(fit(Line(), plan, tmp_path / str(plan.accumulate)))[0] for plan in plans)
    for name, value in one.items():
        torch.testing.assert_close(four[name], value, rtol=0, atol=1e-5)


def test_two_processes_take_the_same_steps_as_one(tmp_path: Path) -> None:
    """The loss is a mean over items, so that the mean of two processes' gradients is the gradient of all."""
    os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)
    variables, threads = dict(os.environ), torch.get_num_threads()
    one = result(fit(Line(), PLAN, tmp_path / "one"))[0]
    two = result(fit(Line(), PLAN, tmp_path / "two", processes=2))[0]
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5)
    os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)  # set by torch when it imports its compiler
    assert dict(os.environ) == variables and torch.get_num_threads() == threads
    assert not torch.distributed.is_initialized()


def test_two_processes_resume_what_one_has_begun(tmp_path: Path) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event["step"] == 5:
            raise KeyboardInterrupt

    whole = result(fit(Line(), PLAN, tmp_path / "whole"))[0]
    for processes in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            fit(Line(), PLAN, tmp_path / str(processes), processes=processes, report=stop)
        parts = result(fit(Line(), PLAN, tmp_path / str(processes), processes=3 - processes))[0]
        for name, value in whole.items():
            torch.testing.assert_close(parts[name], value, rtol=0, atol=1e-5)


def test_batch_statistics_are_those_of_all_processes(tmp_path: Path) -> None:
    one = result(fit(Line(norm=True), PLAN, tmp_path / "one"))[0]
    two = result(fit(Line(norm=True), PLAN, tmp_path / "two", processes=2))[0]
    torch.testing.assert_close(two["0.running_mean"], one["0.running_mean"], rtol=0, atol=1e-5)
    assert one["0.running_mean"].abs().max() > 0.01


def test_accelerate_stays_as_its_user_set_it_up(tmp_path: Path) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state(True)
    try:
        mine = Accelerator(cpu=True, mixed_precision="bf16")
        fit(Line(), PLAN, tmp_path / "one")
        fit(Line(), PLAN, tmp_path / "two", processes=2)
        assert mine.state.mixed_precision == "bf16" and AcceleratorState().mixed_precision == "bf16"
        assert PartialState().num_processes == 1
    finally:
        AcceleratorState._reset_state(True)


def test_what_is_refused(tmp_path: Path) -> None:
    fit(Line(), PLAN, tmp_path)
    with pytest.raises(RecipeError, match="another recipe or other data; choose another folder"):
        fit(Line(secret="b"), PLAN, tmp_path)
    with pytest.raises(RecipeError, match=r"items \(8\) must divide by the number of processes \(3\)"):
        fit(Line(), PLAN, tmp_path / "x", processes=3)
    with pytest.raises(RecipeError, match="processes are for training on the CPU"):
        fit(Line(), PLAN, tmp_path / "x", processes=2, device=None)
    for wrong, says in (
        ({"precision": "int8"}, "precision must be one of float32, bfloat16, float16, got 'int8'"),
        ({"optimiser": "muon", "precision": "float16"}, "use 'bfloat16'"),
        ({"clip": -1.0}, "clip must be at least 0, got -1.0"),
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
    ):
        with pytest.raises(RecipeError, match=says):
            Optimisation(**wrong)  # type: ignore[arg-type]


def test_epochs_of_several_sets() -> None:
    assert sorted(permutation(5, 0, 0).tolist()) == list(range(5))
    assert permutation(50, 0, 0).tolist() != permutation(50, 0, 0, stream=1).tolist()
    assert epoch_indices(7, 3, 4, 12) == epoch_indices(7, 3, 0, 20)[4:16]
    epochs = [mixed_epoch((10, 3), (4, 6), 1, epoch) for epoch in range(5)]  # by domain, not by size
    assert all([which for which, _ in sorted(pairs)] == [0] * 4 + [1] * 6 for pairs in epochs)
    drawn = sorted(item for pairs in epochs for which, item in pairs if which == 0)
    assert drawn == sorted([*range(10)] * 2)  # in turns: each as often over two rounds


def test_the_learning_rate() -> None:
    rates = [warmup_cosine(step, 100, 1.0, 0.1, 0.5) for step in range(100)]
    assert rates[:10] == pytest.approx([k / 10 for k in range(1, 11)]) and rates[10:50] == [1.0] * 40
    assert rates[74] == pytest.approx(0.5) and rates[99] == pytest.approx(0)
