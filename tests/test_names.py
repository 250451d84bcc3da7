"""Names of checkpoints and adapters: the index, publishing, and loading by name from a local Hub."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import qmamba
from hub_client import Client
from hub_server import LocalHub, Repo
from qmamba.calibration import Calibration
from qmamba.checkpoints import CARD_FILE, ModelConfig, save_checkpoint
from qmamba.checkpoints.index import Entry, package_index, parse_index
from qmamba.checkpoints.locate import resolve
from qmamba.cli import app
from qmamba.data import DATASETS
from qmamba.errors import CheckpointError, UnknownModelError
from qmamba.scoring import Scorer
from tiny_adapters import config_for, made
from tiny_scorer import tiny_config, tiny_network

NAME = "lqmamba-n-koniq"
RESULTS: dict[str, Any] = {"koniq10k, test": {"n": 2015, "srcc": 0.901, "plcc": 0.911}}
LOGGED_IN = "import os; os.environ['HF_TOKEN'] = 'hf_writer'\n"
RUN = "from typer.testing import CliRunner; from qmamba.cli import app\n"


def trained(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A run whose checkpoint may be published."""
    fields = {"name": NAME, "trained_on": ("koniq10k",), "licence": "MIT", "results": RESULTS, **changes}
    save_checkpoint(folder / "checkpoint", tiny_network(seed), tiny_config(**fields))
    return folder


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QMAMBA_INDEX", "QMAMBA_HUB_USER"):
        monkeypatch.delenv(name, raising=False)


# The package's index


def test_every_name_of_the_grid_is_there() -> None:
    names = qmamba.list_models(published=None)
    sets = [name for name in DATASETS if name != "biq2021"]
    assert len(sets) == 10
    for arch in qmamba.list_archs():
        if "mamba" in arch:
            of_arch = {e.data for e in package_index()["models"].values() if e.arch == arch}
            assert {(name,) for name in sets} <= of_arch, arch
    assert {"lqmamba-t-koniq", "qmamba-b-spaq", "lqmamba-n-agiqa", "lqmamba-t-universal"} < set(names)
    assert qmamba.list_models() == ["lqmamba-n"]
    assert set(qmamba.list_models(published=False)) | {"lqmamba-n"} == set(names)
    assert "lqmamba-b-koniq-livec-to-agiqa" in qmamba.list_adapters(published=False)


@pytest.mark.parametrize("kind", ["models", "adapters"])
def test_the_command_of_a_line_trains_that_name(kind: Any) -> None:
    from qmamba.cli.reproduce import _choose
    from qmamba.train.paper.names import name_of
    from qmamba.train.paper.runs import runs_of

    for name, entry in package_index()[kind].items():
        table, option, row = entry.train.split(" ")
        assert option == "--rows"
        (recipe,) = _choose(table, [row]).values()
        runs = {name_of(each, recipe): each for each in runs_of(recipe, 0)}
        assert runs[name].train == entry.data and recipe.arch == entry.arch, name
        assert (runs[name].base is not None) == (kind == "adapters")


def test_an_unpublished_name_says_what_to_do_in_one_line() -> None:
    with pytest.raises(UnknownModelError) as raised:
        qmamba.load("lqmamba-t-koniq")
    line = str(raised.value)
    assert "\n" not in line and "nobody has published 'lqmamba-t-koniq'" in line
    assert "`qmamba reproduce table1 --rows lqmamba-t/koniq --data-root DATA`" in line
    assert "`qmamba publish RUN --to USER`" in line and line.endswith("nearest of what exists: lqmamba-n")
    result = run("score", "none.jpg", "--model", "lqmamba-t-koniq")
    assert result.exit_code == 2 and "nobody has published" in result.stderr
    with pytest.raises(CheckpointError, match=r"nobody has published .* table3 --rows style-prompt/koniq"):
        qmamba.load(adapter="lqmamba-b-koniq-livec-to-agiqa")
    with pytest.raises(UnknownModelError, match="near names: lqmamba-t-koniq, "):
        qmamba.load("lqmamba-t-koniq10k")


def test_a_folder_of_that_name_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained(tmp_path))
    (tmp_path / "checkpoint").rename(tmp_path / NAME)
    assert qmamba.load(NAME).config.results == RESULTS


def test_models_all() -> None:
    table = run("models", "--all")
    assert table.exit_code == 0 and table.stdout.splitlines()[0].split()[:3] == ["name", "kind", "arch"]
    rows = {row["name"]: row for row in json.loads(run("models", "--all", "-f", "json").stdout)}
    assert set(rows) == {*qmamba.list_models(published=None), *qmamba.list_adapters(published=None)}
    assert rows["lqmamba-n"]["where"] == "ships" and rows["lqmamba-n"]["srcc"] > 0.5
    assert rows["lqmamba-t-koniq"]["where"] == "unpublished" and rows["lqmamba-t-koniq"]["srcc"] is None
    assert rows["video-stills"]["kind"] == "adapter"


# Index files


def line_of(name: str = NAME, **changes: Any) -> str:
    values = {"repo": "lab/x", "commit": "a" * 40, "sha256": "b" * 64, "arch": "lqmamba-n", **changes}
    return Entry(name, **values).line()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a b", "not valid TOML"),
        ("[nets]\n", "tables .models. and .adapters., got 'nets'"),
        ("[models]\na = 3\n", "a must be a table in braces"),
        ("[models]\n'a b' = {}\n", "a name must have letters"),
        ("[models]\na = { sah256 = 'x' }\n", "unknown key 'sah256'; near names: sha256"),
        ("[models]\na = { published = 1 }\n", "published must be of type bool"),
        (
            "[models]\na = { results = { srcc = 'x' }, published = false }\n",
            "results.srcc must be of type float, got .x.",
        ),
        ("[models]\na = { data = [1], published = false }\n", "data must be of type str, got 1"),
        ("[models]\n" + line_of(repo="lab"), "repo must be a Hub id, user/repo, got 'lab'"),
        ("[models]\n" + line_of(commit="main"), "commit must be the 40 hexadecimal digits"),
        ("[models]\n" + line_of(sha256="b" * 8), "sha256 must be the 64 hexadecimal digits"),
    ],
)
def test_a_bad_index_is_refused(
    text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match=says) as raised:
        parse_index(text, "mine.toml")
    assert str(raised.value).startswith("mine.toml") and "\n" not in str(raised.value)
    (tmp_path / "models.toml").write_text(text)
    monkeypatch.setenv("QMAMBA_INDEX", str(tmp_path))  # a folder
    with pytest.raises(CheckpointError, match=says):
        resolve("anything")
    assert resolve("lqmamba-n").is_dir()  # what ships needs no index


def test_a_line_is_read_back() -> None:
    entry = Entry(
        "a.b", "lqmamba-t", ("koniq10k", "livec"), base="", repo="lab/x", commit="0" * 40, sha256="1" * 64,
        licence='odd "one" ü', results={"srcc": 0.9, "n": 10},
    )  # fmt: skip
    assert parse_index(f"[adapters]\n{entry.line()}\n", "x")["adapters"]["a.b"] == entry


def test_user_indexes_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    first.write_text(f"[models]\n{line_of(results={'srcc': 0.5})}\n")
    second.write_text(f"[models]\n{line_of('mine')}\n[adapters]\n{line_of('soft', base='lqmamba-n')}\n")
    monkeypatch.setenv("QMAMBA_INDEX", f"{first}, {second}")
    assert qmamba.list_models() == ["lqmamba-n", NAME, "mine"]
    assert qmamba.list_adapters() == ["soft", "video-stills"]
    assert NAME not in qmamba.list_models(published=False)
    rows = {row["name"]: row for row in json.loads(run("models", "--all", "-f", "json").stdout)}
    assert rows[NAME]["where"] == "lab/x" and rows[NAME]["srcc"] == 0.5
    monkeypatch.setenv("QMAMBA_INDEX", str(tmp_path / "none.toml"))
    with pytest.raises(CheckpointError, match=r"QMAMBA_INDEX must name files.*none\.toml' is none of them"):
        resolve(NAME)


# Publishing: refusals


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"licence": "unknown"}, "its licence is unknown"),
        ({"trained_on": ()}, "does not say what it was trained on"),
        ({"calibration": Calibration()}, "is not calibrated"),
        ({"results": {}}, "has no evaluation"),
        ({"results": {"x": {"srcc": 0.9}}}, "has no evaluation"),
        ({"trained_on": ("livec",)}, "is for lqmamba-n trained on koniq10k, and this is .* livec"),
        ({"name": "lqmamba-t-koniq"}, "is for lqmamba-t trained on koniq10k, and this is lqmamba-n"),
        ({"name": "lqmamba-n"}, "the name lqmamba-n is that of a model that ships"),
    ],
)
def test_what_may_not_be_published(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", **changes)
    result = run("publish", folder, "--to", "lab", "--dry-run")
    assert result.exit_code == 2 and result.stdout == "" and result.stderr.count("\n") == 1
    assert "cannot be published: " in result.stderr
    assert re.search(says, result.stderr), result.stderr


def test_damaged_or_cardless_folders_are_not_published(tmp_path: Path) -> None:
    folder = trained(tmp_path / "runs" / "a")
    result = run("publish", tmp_path / "runs", "--to", "lab")
    assert result.exit_code == 2 and f"such as {folder / 'checkpoint'}: give one" in result.stderr
    assert "is neither a checkpoint" in run("publish", tmp_path / "none", "--to", "lab").stderr
    assert "--to must be a Hub user" in run("publish", folder, "--to", "a b", "--dry-run").stderr
    (folder / "checkpoint" / CARD_FILE).unlink()
    assert "it has no card" in run("publish", folder, "--to", "lab", "--dry-run").stderr
    weights = folder / "checkpoint" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert "sha256" in run("publish", folder, "--to", "lab", "--dry-run").stderr


def test_dry_run(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run")
    result = run("publish", folder, "--to", "lab", "--dry-run")
    assert result.exit_code == 0 and "nothing was sent; lab/lqmamba-n-koniq would get" in result.stderr
    config = ModelConfig.from_json((folder / "checkpoint" / "config.json").read_bytes())
    assert result.stdout == (
        'lqmamba-n-koniq = { arch = "lqmamba-n", data = ["koniq10k"], repo = "lab/lqmamba-n-koniq", '
        f'sha256 = "{config.weights_sha256}", licence = "MIT", '
        "results = { srcc = 0.901, plcc = 0.911, n = 2015 } }\n"
    )


# From one machine to another


def published(client: Client, *arguments: str | Path) -> str:
    """Publish from the client's machine, with its token; return the index line."""
    words = ["publish", *map(str, arguments)]
    answer = client(
        f"{LOGGED_IN}{RUN}result = CliRunner().invoke(app, {words!r})\n"
        "answer = [result.exit_code, result.stdout, result.stderr]\nos.environ.pop('HF_TOKEN')"
    )
    assert answer[0] == 0, answer
    return str(answer[1])


def index_with(folder: Path, line: str, kind: str = "models") -> Path:
    path = folder / "models.toml"
    path.write_text(f"[{kind}]\n{line}")
    return path


def loading(name: str, index: object = "", options: str = "", user: str = "") -> str:
    image = "numpy.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype='uint8')"
    return (
        f"import numpy, os, qmamba\nos.environ['QMAMBA_INDEX'] = {str(index)!r}\n"
        f"os.environ['QMAMBA_HUB_USER'] = {user!r}\n"
        f"answer = qmamba.load({name!r}, {options}).score({image})"
    )


def score_of(folder: Path) -> str:
    return loading(str(folder))


def test_another_name_and_licence(client: Client, hub: LocalHub, tmp_path: Path) -> None:
    """They are in config and card; the weights, and the folder, stay as they are."""
    folder = trained(tmp_path / "run", licence="unknown")
    before = {path.name: path.read_bytes() for path in (folder / "checkpoint").iterdir()}
    line = published(client, folder, "--to", "lab", "--name", "other", "--license", "CC0-1.0")
    assert line.startswith("other = {") and 'licence = "CC0-1.0"' in line
    repo = hub.repos["lab/other"]
    files = repo.commits[repo.refs["main"]]
    config = ModelConfig.from_json(files["config.json"])
    assert (config.name, config.licence) == ("other", "CC0-1.0")
    assert b"license: cc0-1.0" in files["README.md"] and b"# other" in files["README.md"]
    assert files["model.safetensors"] == before["model.safetensors"]
    assert {path.name: path.read_bytes() for path in (folder / "checkpoint").iterdir()} == before
    assert client(loading("other", index_with(tmp_path, line))) == client(score_of(folder / "checkpoint"))


def test_to_another_machine_that_is_offline(client: Client, hub: LocalHub, tmp_path: Path) -> None:
    folder = trained(tmp_path / "run")
    line = published(client, folder, "--to", "lab")
    repo = hub.repos["lab/lqmamba-n-koniq"]
    assert f'commit = "{repo.refs["main"]}"' in line and line.count("\n") == 1
    files = set(repo.commits[repo.refs["main"]])
    assert files == {"README.md", "config.json", "model.safetensors", ".gitattributes"}
    index, expected = index_with(tmp_path, line), client(score_of(folder / "checkpoint"))
    assert not client.cache.exists()
    hub.requests.clear()
    assert client(loading(NAME, index)) == expected  # from an empty cache
    assert hub.requests and all("/resolve/" in request for request in hub.requests)
    hub.stop()
    assert client(loading(NAME, index)) == expected
    shutil.copytree(client.cache, tmp_path / "other" / "cache", symlinks=True)
    offline = Client(hub.url, tmp_path / "other" / "cache", HF_HUB_OFFLINE="1")
    try:
        assert offline(loading(NAME, index)) == expected
        assert offline(loading(NAME, index, "local_files_only=True")) == expected
    finally:
        offline.close()


def test_a_moved_branch_changes_nothing(client: Client, hub: LocalHub, tmp_path: Path) -> None:
    folder = trained(tmp_path / "run")
    index = index_with(tmp_path, published(client, folder, "--to", "lab"))
    other = trained(tmp_path / "other", seed=1) / "checkpoint"
    hub.repos["lab/lqmamba-n-koniq"].commit({p.name: p.read_bytes() for p in other.iterdir()})
    expected, moved = (client(score_of(place)) for place in (folder / "checkpoint", other))
    assert client(loading(NAME, index)) == expected != moved
    assert client(loading("lab/lqmamba-n-koniq")) == moved
    client.refuses(loading(NAME, index, "revision='main'"), "the index pins commit .*leave revision= out")


def test_a_wrong_digest_is_refused(client: Client, hub: LocalHub, tmp_path: Path) -> None:
    line = published(client, trained(tmp_path / "run"), "--to", "lab")
    digest = line.split('sha256 = "')[1][:64]
    index = index_with(tmp_path, line.replace(digest, "0" * 64))
    client.refuses(loading(NAME, index), "CheckpointError.*the index has weights 00000000….*ask the author")
    assert not any("GET" in r and r.endswith("model.safetensors") for r in hub.requests)
    hub.corrupt.add("model.safetensors")  # on the way: the config still states the right one
    client.refuses(loading(NAME, index_with(tmp_path, line)), "CheckpointError.*sha256")


def test_a_gated_repository(client: Client, hub: LocalHub, tmp_path: Path) -> None:
    folder = trained(tmp_path / "run")
    index = index_with(tmp_path, published(client, folder, "--to", "lab"))
    hub.repos["lab/lqmamba-n-koniq"].gated = True
    client.refuses(loading(NAME, index), "HubError.*gated.*hf auth login")
    assert client(loading(NAME, index, "token='hf_writer'")) == client(score_of(folder / "checkpoint"))


def test_an_index_on_the_hub(client: Client, hub: LocalHub, tmp_path: Path) -> None:
    folder = trained(tmp_path / "run")
    text = f"[models]\n{published(client, folder, '--to', 'lab')}"
    repo = hub.repos["lab/index"] = Repo()
    first = repo.commit({"models.toml": text.encode()})
    expected = client(score_of(folder / "checkpoint"))
    names = "import os, qmamba; os.environ['QMAMBA_INDEX'] = 'lab/index'; answer = qmamba.list_models()"
    hub.requests.clear()
    assert client(names) == ["lqmamba-n"] and hub.requests == []  # it is not in the cache, and not asked for
    assert client(loading(NAME, "lab/index")) == expected
    assert client(names) == ["lqmamba-n", NAME]
    repo.commit({"models.toml": b"[models]\n"})
    client.refuses(loading(NAME, "lab/index"), "nobody has published")
    assert client(loading(NAME, f"hf-hub:lab/index@{first}")) == expected
    hub.stop()
    assert client(loading(NAME, f"lab/index@{first}")) == expected
    client.refuses(loading(NAME, "lab/none", "local_files_only=True"), "HubError: QMAMBA_INDEX: lab/none")


def test_a_hub_user(client: Client, hub: LocalHub, tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", name="free")
    published(client, folder, "--to", "lab/lqmamba-t-koniq", "--name", "renamed")
    assert client(loading("lqmamba-t-koniq", user="lab")) == client(score_of(folder / "checkpoint"))
    answer = client(
        "import os; os.environ['QMAMBA_HUB_USER'] = 'lab'\n"
        "from qmamba.checkpoints.locate import resolve; from qmamba.checkpoints import read_config\n"
        "answer = read_config(resolve('lqmamba-t-koniq')).name"
    )
    assert answer == "renamed"
    client.refuses(
        loading("lqmamba-t-livec", user="lab"),
        "nobody has published 'lqmamba-t-livec'.*no lab/lqmamba-t-livec on the Hub either",
    )
    client.refuses(loading("nonsense", user="lab"), "no model and no folder.*no lab/nonsense on the Hub")
    hub.repos["lab/lqmamba-t-koniq"].gated = True
    shutil.rmtree(client.cache)
    client.refuses(loading("lqmamba-t-koniq", user="lab"), "HubError.*gated")


def test_nothing_is_asked_of_the_network(client: Client, hub: LocalHub, tmp_path: Path) -> None:
    index = index_with(tmp_path, line_of("other"))
    folder = trained(tmp_path / "run") / "checkpoint"
    hub.requests.clear()
    client(loading("lqmamba-n", index, user="lab"))
    client(loading(str(folder), "lab/index", user="lab"))
    client.refuses(loading("lqmamba-t-koniq", index), "nobody has published")
    client.refuses(loading("nonsense", index), "no model and no folder")
    assert hub.requests == []


def test_an_adapter_by_name(client: Client, hub: LocalHub, tmp_path: Path) -> None:
    base = trained(tmp_path / "base")
    line = published(client, base, "--to", "lab")
    scorer = qmamba.load(base / "checkpoint")
    adapter, about = made(scorer), {"trained_on": ("agiqa3k",), "licence": "MIT", "results": RESULTS}
    config = config_for(scorer, **{**about, "licence": "unknown"})
    assert isinstance(scorer, Scorer)
    qmamba.adapters.save_adapter(tmp_path / "run" / "adapter", adapter, config)
    lacking = run("publish", tmp_path / "run", "--to", "lab", "--name", "soft", "--dry-run")
    assert "its licence is unknown: state one, --license" in lacking.stderr
    assert "its base lqmamba-n-koniq is not published: publish it first" in lacking.stderr
    assert "--name is needed" in run("publish", tmp_path / "run", "--to", "lab", "--dry-run").stderr
    index = index_with(tmp_path, line)
    client(f"import os; os.environ['QMAMBA_INDEX'] = {str(index)!r}")
    soft = published(client, tmp_path / "run", "--to", "lab", "--name", "soft", "--license", "MIT")
    assert 'licence = "MIT"' in soft
    repo = hub.repos["lab/soft"]
    assert b"license: mit" in repo.commits[repo.refs["main"]]["README.md"]
    assert 'base = "lqmamba-n-koniq"' in soft and 'arch = "lqmamba-n"' in soft
    index.write_text(f"[models]\n{line}\n[adapters]\n{soft}")
    plain = client(loading(NAME, index))
    adapted = client(loading(NAME, index, "adapter='soft'"))
    assert adapted == client(loading(NAME, index, f"adapter={str(tmp_path / 'run' / 'adapter')!r}")) != plain
    digest = soft.split('sha256 = "')[1][:64]
    index.write_text(f"[models]\n{line}\n[adapters]\n{soft.replace(digest, '0' * 64)}")
    client.refuses(loading(NAME, index, "adapter='soft'"), "soft: the index has weights 00000000…")
