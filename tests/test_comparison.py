"""Methods compared by scores of the same images: `compare`, and `qmamba compare --by-folder`."""

from __future__ import annotations

import csv
import io
import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from qmamba.analysis import compare, compare_folders
from qmamba.analysis.comparison import pair_by_name, permutation_p_value
from qmamba.cli import app
from qmamba.cli._folders import named_folders
from qmamba.errors import ArgumentError
from qmamba.scoring import Scorer
from tiny_scorer import encode, photo, quick_config, tiny_network


def made_scores(images: int, gain: float, noise: float, seed: int = 0) -> dict[str, np.ndarray]:
    """Scores of one method, and of another that differs from it by a gain and noise."""
    rng = np.random.default_rng(seed)
    base = rng.normal(0.5, 0.1, images)
    return {"base": base, "mine": base + gain + rng.normal(0, noise, images)}


# Scores


def test_intervals_are_those_of_the_normal_distribution_for_many_images() -> None:
    scores = made_scores(400, 0.02, 0.03)
    found = compare(scores)
    assert (found.against, found.images, found.level) == ("base", 400, 0.95)
    base, mine = found.methods
    assert base.difference is None and base.p_value is None
    for values, mean, low, high in (
        (scores["mine"], mine.mean, mine.low, mine.high),
        (scores["mine"] - scores["base"], mine.difference, mine.difference_low, mine.difference_high),
    ):
        reach = 1.96 * values.std() / math.sqrt(400)
        assert mean == pytest.approx(values.mean(), abs=1e-12)
        assert (low, high) == pytest.approx((mean - reach, mean + reach), abs=0.06 * reach)
    assert mine.difference_high - mine.difference_low < 0.5 * (mine.high - mine.low), "images are paired"
    narrower = compare(scores, level=0.8).methods[1]
    assert mine.low < narrower.low < narrower.high < mine.high


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    hits = 0
    for seed in range(200):
        method = compare(made_scores(40, 0.02, 0.05, seed), resamples=300).methods[1]
        hits += method.difference_low <= 0.02 <= method.difference_high
    assert 178 <= hits <= 199  # 95 % of 200 is 190; four standard deviations are 12


def test_small_p_values_are_exact() -> None:
    rng = np.random.default_rng(3)
    for n in (2, 5, 9):
        d = rng.normal(0.3, 1, n)
        sums = [
            abs(sum(s * v for s, v in zip(signs, d, strict=True))) for signs in product((1, -1), repeat=n)
        ]
        assert permutation_p_value(d) == np.mean([s >= abs(d.sum()) - 1e-9 for s in sums])
    assert permutation_p_value([0.0, 0.0, 0.0]) == 1.0


def test_random_flips_agree_with_all_flips(monkeypatch: pytest.MonkeyPatch) -> None:
    d = np.random.default_rng(1).normal(0.1, 1, 12)
    exact = permutation_p_value(d)
    monkeypatch.setattr("qmamba.analysis.comparison.EXACT", 0)
    assert 0.05 < exact < 0.95
    assert permutation_p_value(d) == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 10_000))


def test_p_values_without_a_difference_are_uniform() -> None:
    values = [compare(made_scores(30, 0.0, 0.1, s), resamples=200).methods[1].p_value for s in range(200)]
    for level in (0.1, 0.5):
        share = np.mean([value <= level for value in values])
        assert abs(share - level) < 4 * math.sqrt(level * (1 - level) / 200)
    clear = compare(made_scores(30, 0.2, 0.1), resamples=200).methods[1].p_value
    assert clear == pytest.approx(1 / 201)


def test_draws_do_not_depend_on_global_state_nor_change_it() -> None:
    scores = made_scores(50, 0.02, 0.05)
    np.random.seed(5)
    before = str(np.random.get_state())
    first = compare(scores)
    assert str(np.random.get_state()) == before
    np.random.seed(6)
    assert compare(scores) == first and compare(scores, seed=1) != first


def test_the_method_compared_with_can_be_chosen() -> None:
    scores = {**made_scores(20, 0.1, 0.01), "third": np.full(20, 0.5)}
    one, other = compare(scores), compare(scores, against="mine")
    assert [m.name for m in other.methods] == ["base", "mine", "third"]
    assert other.methods[0].difference == pytest.approx(-one.methods[1].difference)
    assert other.methods[0].p_value == one.methods[1].p_value
    assert other.methods[1].p_value is None


@pytest.mark.parametrize(
    ("scores", "options", "says"),
    [
        ({"a": [1, 2]}, {}, "at least two methods, got 1"),
        ({"a": [1, 2], "b": [1, 2, 3]}, {}, "same images, got 2 of a, 3 of b"),
        ({"a": [1], "b": [2]}, {}, "at least two images, got 1"),
        ({"a": [1, 2], "b": [1, math.nan]}, {}, "the scores of b must be finite"),
        ({"a": [1, 2], "b": ["x", "y"]}, {}, "the scores of b must be numbers"),
        ({"a": [1, 2], "b": [3, 4]}, {"against": "c"}, "against must be one of a, b, got 'c'"),
        ({"a": [1, 2], "b": [3, 4]}, {"resamples": 5}, "resamples=5"),
        ({"a": [1, 2], "b": [3, 4]}, {"level": 1.0}, "level=1.0"),
    ],
)
def test_what_cannot_be_compared_is_refused(scores: dict, options: dict, says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        compare(scores, **options)


# Folders


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(tiny_network(), quick_config())


@pytest.fixture(scope="module")
def model(scorer: Scorer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    scorer.save_pretrained(folder)
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """gt has images 1 to 4 and 10, bicubic 1 to 4 and 7, my_net 1 to 4; with other extensions."""
    made = []
    for seed, (name, images) in enumerate(
        [("gt", (1, 2, 3, 4, 10)), ("bicubic", (1, 2, 3, 4, 7)), ("my_net", (1, 2, 3, 4))]
    ):
        folder = tmp_path / name
        folder.mkdir()
        for image in images:
            suffix = ".PNG" if name == "gt" else ".png"
            (folder / f"{image}{suffix}").write_bytes(encode(photo(64, 80, 10 * seed + image)))
        made.append(folder)
    return made


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_images_are_paired_by_name(folders: list[Path]) -> None:
    pairing = pair_by_name({folder.name: folder for folder in folders})
    assert pairing.names == ("1", "2", "3", "4")
    assert pairing.files[1] == tuple(
        folder / name for folder, name in zip(folders, ("2.PNG", "2.png", "2.png"), strict=True)
    )
    assert [(u.name, u.absent) for u in pairing.unmatched] == [
        ("7", ("gt", "my_net")),
        ("10", ("bicubic", "my_net")),
    ]


def test_sub_folders_are_part_of_a_name(tmp_path: Path) -> None:
    for name in ("a/x/1.png", "a/y/1.png", "b/x/1.png", "b/y/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    two = {name: tmp_path / name for name in "ab"}
    assert pair_by_name(two).names == ()
    assert pair_by_name(two, recursive=True).names == ("x/1", "y/1")
    (tmp_path / "a/x/1.jpg").write_bytes(b"")
    with pytest.raises(ArgumentError, match=r"1\.jpg and 1\.png have the same name"):
        pair_by_name(two, recursive=True)
    with pytest.raises(ArgumentError, match="not a folder"):
        pair_by_name({"a": tmp_path / "a", "c": tmp_path / "c"})


def test_folders_are_compared_as_their_scores_are(scorer: Scorer, folders: list[Path]) -> None:
    seen: list[int] = []
    found = compare_folders(
        scorer, {folder.name: folder for folder in folders}, against="bicubic", on_image=seen.append
    )
    scores = {
        folder.name: [scorer.score(path) for path in sorted(folder.iterdir()) if path.stem in "1234"]
        for folder in folders
    }
    wanted = compare(scores, against="bicubic")
    assert found.methods == wanted.methods and found.images == 4 and seen == [12] * 12


def test_the_command_lists_folders(model: Path, folders: list[Path]) -> None:
    command = ("compare", "--by-folder", *folders, "--against", "bicubic", "-m", model)
    done = run(*command, "--format", "json")
    assert done.exit_code == 1, "images were left out"
    assert done.stderr.splitlines() == [
        "qmamba: 7 is left out: there is none in gt, my_net",
        "qmamba: 10 is left out: there is none in bicubic, my_net",
    ]
    found = json.loads(done.stdout)
    assert found["against"] == "bicubic" and found["images"] == 4
    assert [u["name"] for u in found["unmatched"]] == ["7", "10"]
    gt, bicubic, mine = found["methods"]
    assert bicubic["p_value"] is None and gt["difference"] == pytest.approx(gt["mean"] - bicubic["mean"])

    rows = list(csv.DictReader(io.StringIO(run(*command, "-f", "csv").stdout)))
    assert [row["folder"] for row in rows] == ["gt", "bicubic", "my_net"] and rows[1]["p_value"] == ""
    assert float(rows[2]["difference"]) == pytest.approx(mine["difference"], abs=1e-6)

    lines = run(*command).stdout.splitlines()
    assert lines[0].split()[0] == "mean" and "95 % interval" in lines[0] and lines[0].endswith("folder")
    assert lines[2].endswith("bicubic") and lines[4] == "4 images; differences from bicubic"
    assert f"{mine['difference']:+.4f}" in lines[3] and f"{mine['p_value']:.4f}" in lines[3]

    latex = run(*command, "-f", "latex").stdout
    assert latex.count(r"\\") == 4 and r"my\_net & " in latex
    assert latex.index(r"\begin{tabular}{lrrr}") < latex.index(r"\end{tabular}")


def test_the_command_leaves_out_what_it_cannot_score(model: Path, folders: list[Path]) -> None:
    for name in ("7.png", "2.png"):
        (folders[1] / name).write_bytes(b"nothing")
    done = run("compare", "--by-folder", *folders[:2], "-m", model, "-f", "json")
    found = json.loads(done.stdout)
    assert done.exit_code == 1 and found["images"] == 3 and found["against"] == "gt"
    assert [path for path, _ in found["failed"]] == [str(folders[1] / "2.png")]
    assert "its name is left out in all folders" in done.stderr


def test_a_complete_comparison_is_quiet(model: Path, folders: list[Path]) -> None:
    (folders[1] / "7.png").unlink()
    done = run("compare", "--by-folder", *folders[1:], "-m", model)
    assert (done.exit_code, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--by-folder", "gt"), "at least two folders, got 1"),
        (("--by-folder", "gt", "gt"), "given twice"),
        (("--by-folder", "gt", "none"), "not a folder"),
        (("--by-folder", "gt", "bicubic", "--against", "other"), "--against must be one of gt, bicubic"),
        (("--by-folder", "gt", "bicubic", "-f", "jsonl"), "--format must be one of table, csv, latex, json"),
        (("gt", "--against", "gt"), "add --by-folder"),
        (("gt", "-f", "latex"), "add --by-folder"),
    ],
)
def test_wrong_commands_are_one_line(
    options: tuple[str, ...], says: str, model: Path, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders[0].parent)
    done = run("compare", *options, "-m", model)
    assert done.exit_code == 2 and says in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == ""


def test_folders_of_the_same_name_are_told_apart() -> None:
    assert list(named_folders(["x/out/", "y/out"])) == ["x/out", "y/out"]
    assert list(named_folders(["x/gt/", "y/out"])) == ["gt", "out"]
