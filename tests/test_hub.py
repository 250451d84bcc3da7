"""Loading from and pushing to a Hub: a local server, and a client in a process of its own."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hub_client import Client
from hub_server import LocalHub, Repo
from qmamba.checkpoints import ModelConfig, load_checkpoint, save_checkpoint
from qmamba.checkpoints.hub import is_repo_id
from qmamba.models import create_model

TINY: dict[str, Any] = {"widths": (8, 16, 32, 64), "depths": (1, 1, 1, 1)}
ID = "someone/tiny"


@pytest.fixture
def hasty(client: Client) -> Iterator[None]:
    """The client library tries again for 20 seconds before it gives up; here it does so without a pause."""
    client("import time; time.pause, time.sleep = time.sleep, lambda seconds: None")
    yield
    client("import time; time.sleep = time.pause")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two checkpoints of one architecture with different weights and names."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name in ("first", "second"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(len(name))
            network = create_model("lqmamba-n", **TINY)
        save_checkpoint(root / name, network, ModelConfig(name=name, arch="lqmamba-n", overrides=TINY))
    return root / "first", root / "second"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def repo(hub: LocalHub, folders: tuple[Path, Path]) -> Repo:
    """`main` holds the second checkpoint; the tag v1 and the first commit hold the first one."""
    repo = hub.repos[ID] = Repo()
    repo.refs["v1"] = repo.commit(contents(folders[0]))
    repo.commit(contents(folders[1]))
    repo.refs["feature/x"] = repo.refs["v1"]
    return repo


def load(arguments: str = "") -> str:
    return f"answer = load_checkpoint(resolve({ID!r}, {arguments}))[1].name"


# ------------------------------------------------------------------------------------------------ loading


def test_a_scorer_by_its_name_on_the_hub(client: Client, repo: Repo, folders: tuple[Path, Path]) -> None:
    answer = client(
        "import numpy, qmamba\nimage = numpy.full((64, 64, 3), 90, 'uint8')\n"
        f"answer = [qmamba.load(name).score(image) for name in ('hf-hub:{ID}', {ID!r}, {str(folders[1])!r})]"
    )
    assert answer[0] == answer[1] == answer[2]


def test_load_by_id(client: Client, hub: LocalHub, repo: Repo, folders: tuple[Path, Path]) -> None:
    answer = client(
        f"folder = resolve('hf-hub:{ID}'); network, config = load_checkpoint(folder)\n"
        "answer = [str(folder), config.name, sum(p.double().sum().item() for p in network.parameters())]"
    )
    assert Path(answer[0]).is_relative_to(client.cache)
    assert Path(answer[0]).name == repo.refs["main"]
    network, config = load_checkpoint(folders[1])
    assert answer[1:] == [config.name, sum(p.double().sum().item() for p in network.parameters())]
    assert {request.rsplit("/", 1)[1] for request in hub.requests} == {"config.json", "model.safetensors"}


def test_revision_pins(client: Client, repo: Repo) -> None:
    first, second = repo.refs["v1"], repo.refs["main"]
    assert client(load()) == "second"
    assert client(load("revision='main'")) == "second"
    assert client(load("revision='v1'")) == "first"
    assert client(load("revision='feature/x'")) == "first"
    assert client(load(f"revision={first!r}")) == "first"
    assert client(load(f"revision={second!r}")) == "second"


def test_a_branch_that_moves(client: Client, repo: Repo, folders: tuple[Path, Path]) -> None:
    assert client(load()) == "second"
    repo.commit(contents(folders[0]))
    assert client(load()) == "first"


def test_both_files_are_of_one_commit(client: Client, hub: LocalHub, repo: Repo) -> None:
    client(load())
    weights = [request for request in hub.requests if request.endswith("model.safetensors")]
    assert weights
    assert all(repo.refs["main"] in request for request in weights)


def test_cache_hit_with_the_server_stopped(client: Client, hub: LocalHub, repo: Repo) -> None:
    first = repo.refs["v1"]
    client(load())
    client(load("revision='v1'"))
    hub.stop()
    assert client(load()) == "second"
    assert client(load("revision='v1'")) == "first"
    assert client(load(f"revision={first!r}")) == "first"
    assert client(load("local_files_only=True")) == "second"


def test_cache_hit_while_the_hub_is_down(client: Client, hub: LocalHub, repo: Repo) -> None:
    client(load())
    hub.broken = True
    assert client(load()) == "second"


def test_a_pinned_commit_in_the_cache_asks_nothing(client: Client, hub: LocalHub, repo: Repo) -> None:
    pinned = load(f"revision={repo.refs['v1']!r}")
    client(pinned)
    hub.requests.clear()
    assert client(pinned) == "first"
    assert hub.requests == []


def test_local_files_only(client: Client, hub: LocalHub, repo: Repo) -> None:
    client.refuses(load("local_files_only=True"), "HubError.*not in the local cache.*local_files_only=False")
    assert hub.requests == []


def test_offline_variable(hub: LocalHub, repo: Repo, tmp_path: Path) -> None:
    client = Client(hub.url, tmp_path / "cache", HF_HUB_OFFLINE="1")
    try:
        client.refuses(load(), "HubError.*HF_HUB_OFFLINE")
    finally:
        client.close()
    assert hub.requests == []


def test_own_cache_dir(client: Client, repo: Repo, tmp_path: Path) -> None:
    assert client(load(f"cache_dir={str(tmp_path / 'mine')!r}")) == "second"
    assert not client.cache.exists()
    assert (tmp_path / "mine").is_dir()


# ----------------------------------------------------------------------------------------------- mishaps


def test_corrupt_download(client: Client, hub: LocalHub, repo: Repo) -> None:
    hub.corrupt.add("model.safetensors")
    line = client.refuses(load(), "CheckpointError.*sha256.*delete the folder")
    hub.corrupt.clear()
    # The damage stays in the cache, and following the advice mends it.
    client.refuses(load(), "delete the folder")
    found = re.search(r"delete the folder (\S+) and load it again", line)
    assert found is not None
    shutil.rmtree(found.group(1))
    assert client(load()) == "second"


def test_corrupt_config(client: Client, hub: LocalHub, repo: Repo) -> None:
    repo.commit({"config.json": b"<html>Sign in to the hotel's network</html>"})
    client.refuses(load(), "CheckpointError.*config.json.*not valid JSON")


def test_interrupted_download(client: Client, hub: LocalHub, repo: Repo, hasty: None) -> None:
    hub.truncate.add("model.safetensors")
    client.refuses(load(), "HubError")
    hub.truncate.clear()
    assert client(load()) == "second"


def test_not_found(client: Client, hub: LocalHub, repo: Repo) -> None:
    client.refuses(
        "resolve('someone/nothing')", "NoRepositoryError.*no such model on the Hub, and no such folder here"
    )
    client.refuses(
        "resolve('someone/nothing', token='hf_writer')", "NoRepositoryError.*no such model on the Hub"
    )
    client.refuses(load("revision='v9'"), "HubError.*no revision 'v9'")
    client.refuses(load(f"revision={'0' * 40!r}"), "HubError.*no revision '0000")


def test_not_a_checkpoint(client: Client, hub: LocalHub) -> None:
    other = hub.repos[ID] = Repo()
    other.commit({"README.md": b"hello", "pytorch_model.bin": b"\x80\x02"})
    client.refuses(load(), "HubError.*no config.json in this repository, so it is not a qmamba checkpoint")
    other.commit({"config.json": b'{"model_type": "bert"}'})
    client.refuses(load(), "HubError.*no model.safetensors")
    assert hub.requests and not any("pytorch_model" in request for request in hub.requests)
    other.commit({"model.safetensors": b"x"})
    client.refuses(load(), "CheckpointError.*format_version")


def test_gated_and_private(client: Client, hub: LocalHub, repo: Repo) -> None:
    repo.gated = True
    client.refuses(load(), "HubError.*gated.*hf auth login")
    assert client(load("token='hf_writer'")) == "second"
    shutil.rmtree(client.cache)
    repo.gated, repo.private = False, True
    client.refuses(load(), "NoRepositoryError.*private one.*hf auth login")
    assert client(load("token='hf_writer'")) == "second"


@pytest.mark.parametrize("name", ["someone/a--b", "../up", "a b/c", "someone/..", "https://x.y/z"])
def test_no_request_for_what_is_no_id(client: Client, hub: LocalHub, name: str) -> None:
    client.refuses(f"resolve({name!r})", "UnknownModelError")
    client.refuses(f"fetch({name!r})", "HubError.*not a Hub id")
    assert not is_repo_id(name)
    assert hub.requests == []


def test_no_network(client: Client, hub: LocalHub, repo: Repo, hasty: None) -> None:
    hub.stop()
    client.refuses(load(), "HubError.*cannot reach the Hub: check the network")


def test_hub_down(client: Client, hub: LocalHub, repo: Repo, hasty: None) -> None:
    hub.broken = True
    client.refuses(load(), "HubError.*error 503.*try again later")


# ------------------------------------------------------------------------------------------------ pushing


def push(folder: Path, arguments: str = "") -> str:
    return f"answer = push({str(folder)!r}, {ID!r}, token='hf_writer', {arguments})"


def test_push_and_load_back(client: Client, hub: LocalHub, folders: tuple[Path, Path]) -> None:
    address = client(push(folders[0], "commit_message='first weights'"))
    repo = hub.repos[ID]
    assert address == f"{hub.url}/{ID}/commit/{repo.refs['main']}"
    assert not repo.private
    files = repo.commits[repo.refs["main"]]
    assert {name: files[name] for name in contents(folders[0])} == contents(folders[0])
    assert len(hub.lfs) == 1
    assert client(load()) == "first"


def test_push_again_and_to_a_branch(client: Client, hub: LocalHub, folders: tuple[Path, Path]) -> None:
    client(push(folders[0], "private=True"))
    assert hub.repos[ID].private
    client(push(folders[1], "revision='next'"))
    assert client(load("token='hf_writer'")) == "first"
    assert client(load("token='hf_writer', revision='next'")) == "second"
    client(push(folders[1]))
    assert client(load("token='hf_writer'")) == "second"


def test_push_sends_the_three_files_only(
    client: Client, hub: LocalHub, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders[0], tmp_path / "copy")
    (folder / "secret.txt").write_text("mine")
    client(push(folder))
    repo = hub.repos[ID]
    names = {"README.md", "config.json", "model.safetensors", ".gitattributes"}
    assert set(repo.commits[repo.refs["main"]]) == names


def test_push_refusals(client: Client, hub: LocalHub, folders: tuple[Path, Path], tmp_path: Path) -> None:
    client.refuses(f"push({str(folders[0])!r}, {ID!r}, token='hf_wrong')", "HubError.*401.*token=")
    client.refuses(f"push({str(folders[0])!r}, 'tiny')", "HubError.*user/repo")
    hub.requests.clear()
    folder = shutil.copytree(folders[0], tmp_path / "copy")
    (folder / "model.safetensors").write_bytes(b"x")
    client.refuses(push(folder), "CheckpointError")
    assert hub.requests == []


def test_a_scorer_travels_through_the_hub(client: Client, repo: Repo) -> None:
    """Load by id, push from there, save to a folder: one and the same score each time."""
    scores = client(
        "import numpy as np, tempfile\n"
        "from qmamba.scoring import load as load_scorer\n"
        "image = np.random.default_rng(0).integers(0, 256, (240, 300, 3), dtype=np.uint8)\n"
        f"scorer = load_scorer({ID!r}, revision='v1')\n"
        "scorer.push_to_hub('someone/copy', token='hf_writer')\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    scorer.save_pretrained(folder)\n"
        "    others = [load_scorer('someone/copy'), load_scorer(folder)]\n"
        "answer = [item.score(image) for item in (scorer, *others)]"
    )
    assert 0 < scores[0] < 1
    assert scores[0] == scores[1] == scores[2]


def test_an_adapter_is_pushed_and_loaded_by_id(
    client: Client, hub: LocalHub, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """Config, weights and card only; a damaged one is not sent."""
    base, adapter = str(folders[0]), tmp_path / "adapter"
    client(
        "import qmamba\nfrom qmamba.adapters import AdapterConfig, create, save_adapter\n"
        f"scorer = qmamba.load({base!r})\n"
        "made = create('linear-probe', scorer.base())\n"
        "config = AdapterConfig(\n    'linear-probe', 'first', scorer.base_sha256(),"
        " licence='MIT', trained_on=('Stills',))\n"
        f"save_adapter({str(adapter)!r}, made, config)"
    )
    (adapter / "state.pt").write_bytes(b"not for others")
    pushed = (
        "from qmamba.adapters import push_to_hub\n"
        f"answer = push_to_hub({str(adapter)!r}, {ID!r}, token='hf_writer')"
    )
    assert ID in client(pushed)
    files = hub.repos[ID].commits[hub.repos[ID].refs["main"]]
    assert set(files) - {".gitattributes"} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }
    assert b"license: mit" in files["README.md"] and b"Stills" in files["README.md"]
    scores = client(
        "import numpy, qmamba\nimage = numpy.full((64, 64, 3), 90, 'uint8')\n"
        f"answer = [qmamba.load({base!r}, adapter=name).score(image) for name in ({ID!r}, {str(adapter)!r})]"
    )
    assert scores[0] == scores[1]
    (adapter / "adapter_model.safetensors").write_bytes(b"damaged")
    commits = len(hub.repos[ID].commits)
    client.refuses(pushed, "CheckpointError")
    assert len(hub.repos[ID].commits) == commits
    client.refuses(pushed.replace(ID, "mine"), "HubError.*user/repo")
