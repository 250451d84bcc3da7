"""Checkpoint folders: what is written comes back; what is damaged or hostile is refused in one line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from torch import nn

import qmamba
from qmamba.calibration import Calibration
from qmamba.checkpoints import (
    ModelConfig,
    load_checkpoint,
    read_config,
    render_card,
    save_checkpoint,
    verify_checkpoint,
)
from qmamba.checkpoints.locate import list_models, resolve
from qmamba.errors import CheckpointError, UnknownModelError
from qmamba.models import Architecture, create_model
from qmamba.models.registry import _ARCHITECTURES
from qmamba.preprocessing import Preprocessing
from qmamba.protocol import Protocol

TINY: dict[str, Any] = {"widths": (8, 16, 32, 64), "depths": (1, 1, 1, 1)}


def tiny_network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create_model("lqmamba-n", **TINY).eval()


def tiny_config(**changes: Any) -> ModelConfig:
    config = ModelConfig(
        name="tiny",
        arch="lqmamba-n",
        overrides=TINY,
        preprocessing=Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3)),
        protocol=Protocol(kind="random", n_crops=3, seed=7),
        calibration=Calibration(slope=1.5, offset=-0.25),
        trained_on=("BIQ2021",),
        training={"recipe": "tiny.toml", "epochs": 2},
        licence="Apache-2.0",
        results={"BIQ2021 test fold": {"n": 2400, "srcc": 0.6123, "srcc_low": 0.58, "srcc_high": 0.64}},
        limits="Not for paintings.",
    )
    return config.replace(**changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "tiny", tiny_network(), tiny_config())
    return tmp_path / "tiny"


def refused(folder: Path, match: str, load: Callable[[Path], object] = load_checkpoint) -> str:
    with pytest.raises(CheckpointError, match=match) as caught:
        load(folder)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 500
    return line


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads((folder / "config.json").read_text())
    change(data)
    (folder / "config.json").write_text(json.dumps(data))


def put_weights(folder: Path, data: bytes) -> None:
    """Replace the weights and make the config agree, as a hostile author would."""
    (folder / "model.safetensors").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    edit_config(folder, lambda config: config.update(weights_sha256=digest, weights_bytes=len(data)))


def safetensors(header: Any, payload: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + payload


# -------------------------------------------------------------------------------------------- round trips


def test_round_trip(folder: Path) -> None:
    network, config = load_checkpoint(folder)
    original = tiny_network()
    assert not network.training
    assert config.replace(weights_sha256="", weights_bytes=0) == tiny_config()
    assert config == read_config(folder) == verify_checkpoint(folder)
    state = network.state_dict()
    assert state.keys() == original.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in original.state_dict().items())
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in network.parameters())
    image = torch.rand(2, 3, 45, 64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(network(image), original(image))
    network.train()(image).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files(tmp_path: Path, dtype: torch.dtype) -> None:
    written = save_checkpoint(tmp_path, tiny_network(), tiny_config(), dtype=dtype)
    assert written.dtype == str(dtype).removeprefix("torch.")
    network, config = load_checkpoint(tmp_path)
    assert config == written
    expected = {key: value.to(dtype).float() for key, value in tiny_network().state_dict().items()}
    state = network.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in expected.items())
    # Saved once more it is the same file: rounding happens once.
    repeated = save_checkpoint(tmp_path / "again", network, config)
    assert repeated == written


def test_same_weights_same_bytes(tmp_path: Path) -> None:
    first = save_checkpoint(tmp_path / "a", tiny_network(), tiny_config())
    twin = tiny_network()
    for name, value in reversed(list(twin.state_dict(keep_vars=True).items())):  # strided in another way
        if value.ndim == 2:
            module, _, attribute = name.rpartition(".")
            setattr(twin.get_submodule(module), attribute, nn.Parameter(value.detach().T.contiguous().T))
    second = save_checkpoint(tmp_path / "b", twin, tiny_config())
    assert first == second
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    other = save_checkpoint(tmp_path / "c", tiny_network(1), tiny_config())
    assert other.weights_sha256 != first.weights_sha256


def test_global_random_state_is_untouched(folder: Path) -> None:
    before = torch.get_rng_state()
    load_checkpoint(folder)
    assert torch.equal(before, torch.get_rng_state())


def test_saving_again_replaces_and_leaves_no_litter(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    save_checkpoint(folder, tiny_network(seed=1), tiny_config(name="other"))
    network, config = load_checkpoint(folder)
    assert config.name == "other"
    assert torch.equal(network.head.fc.weight, tiny_network(seed=1).head.fc.weight)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["README.md", "config.json", "model.safetensors", "notes.txt"]


def test_interrupted_save_is_refused_when_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qmamba.checkpoints import safetensors_file

    original = safetensors_file.replace_file

    def stop(path: Path, content: bytes) -> None:
        if path.name == "config.json":
            raise KeyboardInterrupt
        original(path, content)

    monkeypatch.setattr(safetensors_file, "replace_file", stop)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(folder, tiny_network(seed=1), tiny_config())
    monkeypatch.undo()
    refused(folder, "sha256")


# --------------------------------------------------------------------------------------- refusals to save


def test_save_refuses_what_could_not_be_loaded(tmp_path: Path) -> None:
    network = tiny_network()
    cases: list[tuple[ModelConfig, torch.dtype | None, str]] = [
        (tiny_config(arch="qmamba-t"), None, "'lqmamba-n'.*'qmamba-t'"),
        (tiny_config(overrides={**TINY, "windows": (2, 2, 2, 2)}), None, "windows"),
        (tiny_config(), torch.float64, "float64"),
    ]
    for config, dtype, match in cases:
        with pytest.raises(CheckpointError, match=match):
            save_checkpoint(tmp_path / "no", network, config, dtype=dtype)
    with torch.no_grad():
        network.head.fc.bias.fill_(1e6)
    with pytest.raises(CheckpointError, match=r"'head.fc.bias' is too large for torch.float16"):
        save_checkpoint(tmp_path / "no", network, tiny_config(), dtype=torch.float16)
    with torch.no_grad():
        network.head.fc.bias.fill_(float("nan"))
    with pytest.raises(CheckpointError, match=r"'head.fc.bias' holds NaN"):
        save_checkpoint(tmp_path / "no", network, tiny_config())
    assert not (tmp_path / "no").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        save_checkpoint(tmp_path / "file", tiny_network(), tiny_config())


def test_drop_path_may_differ(tmp_path: Path) -> None:
    network = create_model("lqmamba-n", **TINY, drop_path=0.1)
    save_checkpoint(tmp_path, network, tiny_config())
    assert load_checkpoint(tmp_path)[1].overrides == TINY


# --------------------------------------------------------------------------------------- refusals to load


def test_missing_things(tmp_path: Path, folder: Path) -> None:
    refused(tmp_path / "nowhere", "no such folder")
    refused(tmp_path, "no config.json")
    (folder / "model.safetensors").unlink()
    refused(folder, "no model.safetensors")


def test_truncated_and_corrupt_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    refused(folder, f"must have {len(data)} bytes, got {len(data) // 2}; the file is damaged")
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused(folder, "sha256.*copy or download the folder again")
    path.write_bytes(b"")
    refused(folder, f"must have {len(data)} bytes, got 0")


def test_damage_in_the_hub_cache_names_what_to_delete(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--a--b" / "snapshots" / "0123"
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    (snapshot / "model.safetensors").write_bytes(b"x")
    refused(snapshot, f"delete the folder {re.escape(str(tmp_path / 'hub' / 'models--a--b'))} and load")


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return pytest.fail, ("a pickle was read",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "best.pth", "last.ckpt", "w.pkl"])
def test_a_pickle_beside_the_config_is_never_read(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    refused(folder, f"{name} is a pickle")


def test_a_pickle_under_the_weights_name_is_never_read(folder: Path, tmp_path: Path) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        put_weights(folder, pickle.dumps(Bomb(), protocol=protocol))
        refused(folder, "pickle")
    torch.save(tiny_network().state_dict(), tmp_path / "zip")
    put_weights(folder, (tmp_path / "zip").read_bytes())
    refused(folder, "pickle")
    put_weights(folder, pickle.dumps(Bomb(), protocol=0))
    refused(folder, "not valid safetensors")


def test_git_lfs_pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    refused(folder, "git lfs pull")


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"abc", "header"),
        (struct.pack("<Q", 2**63) + b"{}", "header of 9223372036854775808 bytes"),
        (struct.pack("<Q", 100) + b"{}", "header of 100 bytes"),
        (struct.pack("<Q", 5 << 20) + b" " * (5 << 20), "header of"),
        (safetensors(b"[" * 200_000), "not JSON"),
        (safetensors(b"{]"), "not JSON"),
        (safetensors([]), "not an object"),
        (safetensors({"w": 3}), "no dtype"),
        (safetensors({"w": {**F32, "dtype": "OBJECT"}}, b"\0" * 8), "type 'OBJECT'"),
        (safetensors({"w": {**F32, "dtype": ["F32"]}}, b"\0" * 8), "type"),
        (safetensors({"w": {**F32, "shape": [-2]}}, b"\0" * 8), "shape or offsets"),
        (safetensors({"w": {**F32, "shape": [2.0]}}, b"\0" * 8), "shape or offsets"),
        (safetensors({"w": {**F32, "shape": [10**12]}}, b"\0" * 8), "claims 8 bytes"),
        (safetensors({"w": {**F32, "data_offsets": [0, 10**15]}}, b"\0" * 8), "claims"),
        (safetensors({"w": {**F32, "data_offsets": [8, 0]}}, b"\0" * 8), "shape or offsets"),
        (safetensors({"w": F32, "v": F32}, b"\0" * 8), "overlap"),
        (safetensors({"w": {**F32, "data_offsets": [8, 16]}}, b"\0" * 16), "holes"),
        (safetensors({"w": F32}, b"\0" * 12), "tensors take 8 bytes of 12"),
        (safetensors({"w": F32}, b"\0" * 4), "tensors take 8 bytes of 4"),
    ],
    ids=range(19),
)
def test_absurd_headers(folder: Path, data: bytes, why: str) -> None:
    put_weights(folder, data)
    refused(folder, f"not valid safetensors.*{why}")


def test_weights_of_another_network(folder: Path, tmp_path: Path) -> None:
    other = create_model("qmamba-t", widths=(8, 16, 32, 64), depths=(1, 1, 1, 1))
    save_checkpoint(tmp_path / "q", other, tiny_config(arch="qmamba-t"))
    put_weights(folder, (tmp_path / "q" / "model.safetensors").read_bytes())
    refused(folder, r"not the weights of 'lqmamba-n'.*missing '.*'.* and \d+ more")
    wider = create_model("lqmamba-n", widths=(16, 16, 32, 64), depths=(1, 1, 1, 1))
    save_checkpoint(tmp_path / "w", wider, tiny_config(overrides=wider.overrides))
    put_weights(folder, (tmp_path / "w" / "model.safetensors").read_bytes())
    refused(folder, r"must be of shape \[.*\], got \[.*\]")


def test_type_and_nan_in_the_file(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import save

    save_checkpoint(tmp_path / "half", tiny_network(), tiny_config(), dtype=torch.float16)
    put_weights(folder, (tmp_path / "half" / "model.safetensors").read_bytes())
    refused(folder, "must be float32, got float16")
    whole = {key: value.to(torch.int8) for key, value in tiny_network().state_dict().items()}
    put_weights(folder, save(whole))
    refused(folder, "must be float32, got I8")
    state = tiny_network().state_dict()
    state["head.fc.bias"] = torch.tensor([float("inf")])
    put_weights(folder, save(state))
    refused(folder, "'head.fc.bias' holds NaN or infinity")


def test_unknown_architecture_and_overrides(folder: Path) -> None:
    edit_config(folder, lambda config: config.update(arch="lqmamba-m"))
    refused(folder, "cannot build 'lqmamba-m'.*lqmamba-n")
    edit_config(folder, lambda config: config.update(arch="lqmamba-n", overrides={"wdiths": [8]}))
    refused(folder, "cannot build 'lqmamba-n'")
    edit_config(folder, lambda config: config.update(overrides={**TINY, "depths": [1, 1, -1, 1]}))
    refused(folder, "cannot build 'lqmamba-n'")


class Wide(nn.Module):
    def __init__(self, width: int, hidden: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(3, width)
        self.register_buffer("ramp", torch.arange(width), persistent=not hidden)


@pytest.mark.parametrize("hidden", [False, True])
def test_architectures_with_and_without_hidden_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hidden: bool
) -> None:
    monkeypatch.setitem(_ARCHITECTURES, "wide", Architecture("wide", lambda width: Wide(width, hidden)))
    network = Wide(4, hidden)
    save_checkpoint(tmp_path, network, ModelConfig(name="a", arch="wide", overrides={"width": 4}))
    before = torch.get_rng_state()
    loaded, _ = load_checkpoint(tmp_path)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(loaded.fc.weight, network.fc.weight)
    assert loaded.ramp.tolist() == [0, 1, 2, 3]


def test_absurd_widths_cost_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_ARCHITECTURES, "wide", Architecture("wide", lambda width: Wide(width, False)))
    save_checkpoint(tmp_path, Wide(4, False), ModelConfig(name="a", arch="wide", overrides={"width": 4}))
    edit_config(tmp_path, lambda config: config.update(overrides={"width": 10**14}))
    refused(tmp_path, r"'fc.bias' must be of shape \[100000000000000\], got \[4\]")


# ------------------------------------------------------------------------------------------------- config


def test_json_round_trip_and_stable_keys() -> None:
    config = tiny_config(weights_sha256="0" * 64, weights_bytes=3, dtype="float16", lower_better=True)
    assert ModelConfig.from_json(config.to_json()) == config
    assert list(json.loads(config.to_json())) == [
        "format_version",
        *(
            field.name
            for field in dataclasses.fields(ModelConfig)
            if field.name not in ("format_version", "quantization", "tokenizers")  # where there are any
        ),
    ]


def test_every_key_is_documented() -> None:
    text = (Path(__file__).parents[1] / "docs" / "checkpoints.md").read_text()
    assert [key for key in tiny_config().to_dict() if f"`{key}`" not in text] == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format_version", 3),
        ("format_version", "1"),
        ("format_version", True),
        ("name", "../../etc"),
        ("name", ""),
        ("name", 3),
        ("arch", None),
        ("overrides", []),
        ("preprocessing", [0.5]),
        ("preprocessing", {"mean": [0, 0, 0]}),
        ("preprocessing", {"mean": [0, 0, 0], "std": [1, 0, 1]}),
        ("preprocessing", {"mean": [0, 0, "x"], "std": [1, 1, 1]}),
        ("preprocessing", {"mean": [0, 0], "std": [1, 1, 1]}),
        ("protocol", "grid"),
        ("protocol", {"kind": "spiral"}),
        ("calibration", {"slope": -1.0, "offset": 0.0}),
        ("calibration", {"slope": 1.0}),
        ("lower_better", 0),
        ("score_range", [1, 0]),
        ("score_range", [0, True]),
        ("trained_on", "BIQ2021"),
        ("trained_on", [1]),
        ("training", 3),
        ("licence", None),
        ("results", [1]),
        ("limits", None),
        ("weights_sha256", "abc"),
        ("weights_sha256", "../../../../x" * 8),
        ("weights_bytes", -1),
        ("weights_bytes", 1.5),
        ("dtype", "float8"),
    ],
)
def test_wrong_values_name_their_key(folder: Path, key: str, value: object) -> None:
    edit_config(folder, lambda config: config.update({key: value}))
    line = refused(folder, "config", read_config)
    assert key in line


def test_missing_unknown_and_malformed(folder: Path) -> None:
    for key in tiny_config().to_dict():
        text = (folder / "config.json").read_text()
        edit_config(folder, lambda config, key=key: config.pop(key))
        refused(folder, key, read_config)
        (folder / "config.json").write_text(text)
    edit_config(folder, lambda config: config.update(trainned_on=[]))
    refused(folder, "unknown key 'trainned_on'; near names: trained_on", read_config)
    for text in ("", "{", "[]", "null", '{"format_version": NaN}', "[" * 100_000, "\udcff"):
        (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
        refused(folder, "config", read_config)
    (folder / "config.json").write_bytes(b" " * (2 << 20))
    refused(folder, "larger than", read_config)


def test_config_is_frozen_and_copies_what_it_gets() -> None:
    overrides = {"widths": [8, 16]}
    config = ModelConfig(name="a", arch="b", overrides=overrides)
    overrides["widths"].append(32)
    config.to_dict()["training"]["x"] = 1
    assert config.overrides == {"widths": (8, 16)}
    assert config.training == {}
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.name = "c"  # type: ignore[misc]
    with pytest.raises(CheckpointError, match="results"):
        ModelConfig(name="a", arch="b", results={"x": float("nan")})
    with pytest.raises(CheckpointError, match="training"):
        ModelConfig(name="a", arch="b", training={"x": object()})


# ------------------------------------------------------------------------------------------------- card


def front_matter(card: str) -> dict[str, Any]:
    assert card.startswith("---\n")
    data = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(data, dict)
    return data


def test_card() -> None:
    card = render_card(tiny_config())
    front = front_matter(card)
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "qmamba"
    assert front["datasets"] == ["BIQ2021"]
    assert front["pipeline_tag"] == "image-classification"
    assert "image-quality-assessment" in front["tags"]
    assert "| BIQ2021 test fold | 0.6123 [0.58, 0.64] | 2400 |" in card
    for text in ("Trained on: BIQ2021.", "n_crops: 3", "slope: 1.5", "Not for paintings.", "epochs: 2"):
        assert text in card


def test_card_of_odd_texts_keeps_its_front_matter() -> None:
    odd = 'a "b"\n---\nlicense: mit\n| c'
    front = front_matter(render_card(tiny_config(licence=odd, trained_on=(odd,), results={odd: {"srcc": 1}})))
    assert front["license"] == "other" and front["license_name"] == "a-b-license-mit-c"
    assert "datasets" not in front, "the Hub takes names of data sets there only"
    assert odd.split()[0] in render_card(tiny_config(trained_on=(odd,)))
    assert "No results yet" in render_card(ModelConfig(name="a", arch="b"))


def test_the_hub_client_reads_the_cards(tmp_path: Path) -> None:
    shipped = Path(qmamba.__file__).parent / "weights" / "lqmamba-n" / "README.md"
    config = tiny_config(
        licence="My own (2.1)", trained_on=("user/rated-photos", "BIQ2021", "our photographs")
    )
    save_checkpoint(tmp_path, tiny_network(), config)
    for path in (shipped, tmp_path / "README.md"):
        card = huggingface_hub.ModelCard.load(path)
        data = card.data.to_dict()
        assert data["library_name"] == "qmamba" and data["pipeline_tag"] == "image-classification"
        assert all(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) for name in data["datasets"])
        assert re.fullmatch(
            r"[a-z0-9.-]+", data.get("license_name", "none")
        ) and card.text.lstrip().startswith("# ")
    assert data["datasets"] == ["user/rated-photos", "BIQ2021"] and data["license_name"] == "my-own-2.1"


def test_own_card_text(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, tiny_network(), tiny_config(), card="# Mine\n")
    assert (tmp_path / "README.md").read_text() == "# Mine\n"


# ----------------------------------------------------------------------------------------------- registry


def test_every_embedded_checkpoint_is_sound() -> None:
    assert list_models()
    for name in list_models():
        config = verify_checkpoint(resolve(name))
        assert config.name == name
        assert config.trained_on
        assert config.licence != "unknown"


def test_resolve(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(folder) == resolve(str(folder)) == folder
    monkeypatch.chdir(tmp_path)
    assert resolve("tiny").samefile(folder)
    assert resolve("./tiny").samefile(folder)
    with pytest.raises(CheckpointError, match="revision"):
        resolve(folder, revision="main")
    with pytest.raises(CheckpointError, match="is a file"):
        resolve(folder / "model.safetensors")
    for name in ("", "lqmamba-x", "./nothing", "/no/such/folder", "a/b/c", tmp_path / "a" / "b"):
        with pytest.raises(UnknownModelError, match="no model and no folder"):
            resolve(name)
    with pytest.raises(UnknownModelError, match="create_model"):
        resolve("qmamba-b")


def test_near_names(monkeypatch: pytest.MonkeyPatch) -> None:
    from qmamba.checkpoints import locate

    monkeypatch.setattr(locate, "_embedded", lambda: {"lqmamba-n": Path("x")})
    with pytest.raises(UnknownModelError, match="near names: lqmamba-n"):
        resolve("lqmabma-n")


def test_list_models_reads_names_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.resources

    for name, files in {"b": 2, "a": 2, "half": 1}.items():
        (tmp_path / "weights" / name).mkdir(parents=True)
        for file in ("config.json", "model.safetensors")[:files]:
            (tmp_path / "weights" / name / file).write_text("not read")
    (tmp_path / "weights" / "stray.txt").write_text("")
    monkeypatch.setattr(importlib.resources, "files", lambda _: tmp_path)
    assert list_models() == ["a", "b"]
    assert resolve("b") == tmp_path / "weights" / "b"
    with pytest.raises(CheckpointError, match="revision"):
        resolve("b", revision="v1")
