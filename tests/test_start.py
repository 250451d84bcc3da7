"""What a network starts from: published VMamba weights in files and on the Hub, our own, random ones."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import qmamba
from hub_server import LocalHub, Repo
from qmamba.checkpoints.start import find_start, start
from qmamba.errors import CheckpointError
from qmamba.models import create_model
from qmamba.models.qmamba import QMamba
from tiny_scorer import tiny_config, tiny_network

PLAN: dict[str, Any] = {"widths": (16, 32, 64, 128), "depths": (1, 1, 2, 1)}


def network(arch: str = "qmamba-t") -> QMamba:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return create_model(arch, **PLAN)


@pytest.fixture(scope="module")
def published(data_dir: Path) -> dict[str, Tensor]:
    """A state as it is published: a head of 1000 classes."""
    state = load_file(data_dir / "open_state.safetensors")
    return {
        **{name: value for name, value in state.items() if not name.startswith("classifier.head")},
        "classifier.head.weight": torch.ones(1000, 128),
        "classifier.head.bias": torch.ones(1000),
    }


@pytest.fixture
def pth(published: dict[str, Tensor], tmp_path: Path) -> Path:
    torch.save({"model": published, "epoch": 260}, tmp_path / "vmamba.pth")
    return tmp_path / "vmamba.pth"


def test_published_weights_start_a_cross_scan_network(pth: Path, published: dict[str, Tensor]) -> None:
    net = network()
    fresh = net.head.fc.weight.clone()
    found = start(net, str(pth))
    assert set(found.dropped or {}) == {"classifier.head.weight", "classifier.head.bias"}
    assert found.missing == ("head.fc.bias", "head.fc.weight")
    assert set(found.loaded) | set(found.missing) == net.state_dict().keys()
    assert torch.equal(net.stem.conv1.weight, published["patch_embed.0.weight"])
    assert torch.equal(net.head.fc.weight, fresh) and net.head.fc.bias.item() == 0.5
    line = found.report()
    assert f"{len(found.loaded)} tensors loaded; not in it: head.fc.bias, head.fc.weight; dropped: " in line
    assert "classifier.head.weight (a head with 1000 outputs" in line and "\n" not in line
    assert json.loads(json.dumps(found.to_dict()))["missing"] == ["head.fc.bias", "head.fc.weight"]


def test_a_local_scan_network_starts_from_them_with_gates_of_one_half(pth: Path) -> None:
    net = network("lqmamba-t")
    found = start(net, str(pth))
    assert {n for n in found.missing if not n.startswith("head.fc")} == {
        n for n in net.state_dict() if ".gate." in n
    }
    assert "tensors of route gates, which start at one half" in found.report()
    y = torch.randn(1, 4, 3, 3, 32)
    gate = net.stages[0].blocks[0].ss2d.gate
    assert torch.allclose(gate(y), y.sum(1) / 2, atol=1e-6)


def test_a_file_is_looked_for_below_the_root_first(
    pth: Path, published: dict[str, Tensor], tmp_path: Path
) -> None:
    save_file(published, tmp_path / "vmamba.safetensors")
    assert find_start("vmamba.safetensors", tmp_path) == tmp_path / "vmamba.safetensors"
    one, two = network(), network()
    first, second = start(one, "vmamba.safetensors", tmp_path), start(two, str(pth))
    assert first.loaded == second.loaded and first.source == "vmamba.safetensors"
    assert all(torch.equal(v, two.state_dict()[k]) for k, v in one.state_dict().items())


def test_checkpoints_of_ours(tmp_path: Path) -> None:
    scorer = qmamba.Scorer(tiny_network(), tiny_config())
    scorer.save_pretrained(tmp_path / "mine")
    net = create_model("lqmamba-n", widths=(8, 16, 32, 64), depths=(1, 1, 1, 1))
    for name in (str(tmp_path / "mine"), str(tmp_path / "mine" / "model.safetensors")):
        found = start(net, name)
        assert found.missing == () and len(found.loaded) == len(net.state_dict())
        assert torch.equal(net.head.fc.weight, scorer.network.head.fc.weight)
    embedded = create_model("lqmamba-n")
    assert len(start(embedded, "lqmamba-n").loaded) == len(embedded.state_dict())
    with pytest.raises(
        CheckpointError, match=r"mine is of another network than lqmamba-n: .* \(and \d+ more"
    ):
        start(embedded, str(tmp_path / "mine"))


def test_random_weights_give_one_answer_at_the_middle() -> None:
    net = network().eval()
    assert start(net, "").report() == "random weights"
    assert torch.equal(net(torch.randn(2, 3, 64, 64)), torch.full((2, 1), 0.5))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def test_what_is_refused(pth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"model": Evil()}))
    (tmp_path / "text.pth").write_text("not found")
    (tmp_path / "half.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, says in (
        ("evil.pth", "evil.pth cannot be read: .* which is not executed"),
        ("text.pth", "cannot be read"),
        ("half.safetensors", "cannot be read"),
        ("list.pth", "must hold weights by name, got a list"),
        ("nothing.pth", "nothing.pth does not exist and is no Hub id"),
    ):
        with pytest.raises(CheckpointError, match=says) as raised:
            start(network(), name)
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "pwned").exists()
    with pytest.raises(CheckpointError, match=r"vmamba\.pth: .*build the network with the same widths"):
        start(create_model("qmamba-t", **{**PLAN, "widths": (8, 16, 32, 64)}), str(pth))
    with pytest.raises(CheckpointError, match=r"vmamba\.pth: the state dict lacks"):
        start(create_model("qmamba-t", **{**PLAN, "depths": (1, 1, 3, 1)}), str(pth))


SCRIPT = """
import sys
from qmamba.models import create_model
from qmamba.checkpoints.start import start
for name in sys.argv[1:]:
    net = create_model("lqmamba-t", widths=(16, 32, 64, 128), depths=(1, 1, 2, 1))
    try:
        print(len(start(net, name).loaded))
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_from_the_hub(pth: Path, published: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(published, tmp_path / "model.safetensors")
    with LocalHub() as hub:
        hub.repos["user/vmamba"] = repo = Repo()
        files = {"model.safetensors": (tmp_path / "model.safetensors").read_bytes()}
        repo.commit({**files, "files/tiny.pth": pth.read_bytes()})
        path = os.pathsep.join(p for p in (str(Path(qmamba.__file__).parents[1]), *sys.path) if p)
        environment = {
            **os.environ, "PYTHONPATH": path, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1",
        }  # fmt: skip
        names = ["user/vmamba", "hf-hub:user/vmamba/files/tiny.pth", "user/vmamba/other.pth"]
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *names],
            env=environment,
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and lines[0] == lines[1] and int(lines[0]) > 50, done.stderr
    assert lines[2].startswith("HubError user/vmamba: no other.pth in this repository")
    assert "adapter" not in lines[2]
