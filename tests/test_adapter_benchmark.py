"""benchmarks/adapters.py runs: at the smallest sizes, for what it writes and not for how much."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from qmamba.checkpoints import save_checkpoint
from qmamba.data import Rated
from rated_photos import rated_photos, write_manifest
from test_adapt import base_network
from tiny_scorer import tiny_config

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "adapters.py"
pytest.importorskip("resource", reason="no POSIX")


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    if not SCRIPT.is_file():
        pytest.skip("the benchmarks are not here: this is an installed package")
    spec = importlib.util.spec_from_file_location("benchmark_adapters", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_cost(benchmark: ModuleType) -> None:
    network = benchmark.network_of("lqmamba-n")
    assert 0.2 < benchmark.forward_ratio(network, "style-prompt", 32, 1, 3, "cpu") < 5
    measured = benchmark.training("lqmamba-n", "style-prompt", 32, 1, 1, "cpu")
    assert measured["step_seconds"] > 0 and measured["step_mb"] >= 0


def test_table(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path / "base", base_network(), tiny_config())
    write_manifest(tmp_path / "r.csv", rated_photos(tmp_path / "photos", 13))
    rows = {"N=2": ("style-prompt", {"prompts": 2}), "N=3": ("style-prompt", {"prompts": 3})}
    monkeypatch.setitem(benchmark.TABLES, "9", rows)
    out = tmp_path / "found.json"
    out.write_text('{"cost": {}, "r": {"3": {}}}')
    benchmark.main(
        [
            "table", "--table", "9", "--base", str(tmp_path / "base"), "--data", str(tmp_path / "r.csv"),
            "--runs", str(tmp_path / "runs"), "--out", str(out), "--epochs", "2",
            "--crops", "2", "--seeds", "0", "1",
        ]
    )  # fmt: skip
    whole = json.loads(out.read_text())
    assert set(whole) == {"cost", "r"} and set(whole["r"]) == {"3", "9"}  # what was there has stayed
    found = whole["r"]["9"]
    assert list(found) == list(rows) and found["N=3"]["trained"] > found["N=2"]["trained"]
    assert found["N=2"]["srcc_before"] == found["N=3"]["srcc_before"] and found["N=2"]["seeds"] == [0, 1]
    assert found["N=2"]["lr"] == 0.001
    assert all(len(found["N=2"][key]) == 2 for key in benchmark.MEASURED)
    assert len(list((tmp_path / "runs").iterdir())) == 4 and "N=2" in capsys.readouterr().out


def test_seeds_are_added_to_those_of_before(benchmark: ModuleType, tmp_path: Path) -> None:
    def line(seeds: list[int], value: float) -> dict[str, object]:
        return {
            "trained": 1,
            "lr": 0.1,
            "seeds": seeds,
            **{key: [value + s for s in seeds] for key in benchmark.MEASURED},
        }

    out = tmp_path / "found.json"
    benchmark.put(out, ["stills", "8"], {"ssf": line([0, 2], 0.1), "lora": line([0], 0.1)})
    benchmark.put(out, ["stills", "8"], {"ssf": line([1, 2], 0.5)})
    found = json.loads(out.read_text())["stills"]["8"]
    assert found["lora"] == line([0], 0.1) and found["ssf"]["seeds"] == [0, 1, 2]
    assert found["ssf"]["plcc_after"] == [0.1, 1.5, 2.5]  # a repeated measurement replaces the old one


def test_a_row_that_a_table_does_not_have(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.parse(["table", "--table", "10", "--rows", "layer"]).rows == ["layer"]
    with pytest.raises(SystemExit):
        benchmark.parse(["table", "--table", "8", "--rows", "full"])
    assert "--rows of table 8 must be among ssf, " in capsys.readouterr().err


def test_the_papers_tables(benchmark: ModuleType) -> None:
    assert [len(rows) for rows in benchmark.TABLES.values()] == [4, 5, 6, 5]


def test_whole_references_are_tested_on(benchmark: ModuleType) -> None:
    rated = [Rated(Path(f"{i}.png"), i / 40, reference=f"scene {i // 4}") for i in range(40)]
    folds = [benchmark.divided(rated, seed) for seed in (0, 1)]
    for divided in folds:
        test, train = ({r.reference for r in divided if r.fold == fold} for fold in ("test", "train"))
        assert len(test) == 2 and len(train) == 8 and not test & train
    assert folds[0] != folds[1] and benchmark.divided(folds[0], 1) == folds[0]
