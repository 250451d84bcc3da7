"""Scores in other people's tables: Hugging Face data sets, pandas, scikit-learn."""

from __future__ import annotations

import importlib
import math
import os
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import qmamba
from qmamba.errors import BackendError, ImageError
from qmamba.integrations.hf import add_scores, with_scores
from qmamba.scoring import Scorer
from tiny_scorer import encode, photo, tiny_config, tiny_network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and four photographs, the third of which is damaged."""
    folder = tmp_path_factory.mktemp("tables")
    Scorer(tiny_network(), tiny_config()).save_pretrained(folder / "model")
    for index in range(4):
        (folder / f"{index}.png").write_bytes(encode(photo(64, 70 + 5 * index, index)))
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:200])
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> str:
    return str(folder / "model")


@pytest.fixture(scope="module")
def paths(folder: Path) -> list[str]:
    return [str(folder / f"{index}.png") for index in range(4)]


@pytest.fixture(scope="module")
def want(model: str, paths: list[str]) -> list[float]:
    scores: list[float] = qmamba.load(model).score(paths, on_error="nan").tolist()
    assert [math.isnan(score) for score in scores] == [False, False, True, False]
    return scores


# Hugging Face


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    package = pytest.importorskip("datasets", reason="datasets is not installed")
    monkeypatch.setattr(package.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    package.disable_progress_bars()
    return package


def check(rows: Any, want: list[float]) -> None:
    np.testing.assert_array_equal(np.asarray(rows["score"][:]), np.asarray(want))
    assert [bool(reason) for reason in rows["score_error"][:]] == [math.isnan(score) for score in want]


@pytest.mark.parametrize("kind", ["paths", "files", "decoded"])
@pytest.mark.parametrize("options", [{}, {"batched": True}, {"batched": True, "batch_size": 3}])
def test_map(datasets: Any, model: str, paths: list[str], want: list[float], kind: str, options: Any) -> None:
    rows = datasets.Dataset.from_dict({"photo": paths, "id": list(range(4))})
    if kind != "paths":
        rows = rows.cast_column("photo", datasets.Image(decode=kind == "decoded"))
    scored = rows.map(add_scores, fn_kwargs={"image": "photo", "model": model}, **options)
    check(scored, want)
    assert scored["id"][:] == [0, 1, 2, 3] and scored.features["photo"] == rows.features["photo"]
    assert "2.png" in scored["score_error"][2] or kind != "paths"


def test_map_of_images_in_memory_and_of_formats(datasets: Any, model: str) -> None:
    images = [Image.fromarray(photo(64, 64, seed)) for seed in range(3)]
    want = qmamba.load(model).score(images).tolist()
    rows = datasets.Dataset.from_dict(
        {"image": images}, features=datasets.Features({"image": datasets.Image()})
    )
    options = {"fn_kwargs": {"model": model}}
    for form in (None, "numpy", "torch"):
        for batched in (False, True):
            scored = rows.with_format(form).map(add_scores, batched=batched, **options).with_format(None)
            check(scored, want)
    stream = rows.to_iterable_dataset()
    for batched in (False, True):
        assert [row["score"] for row in stream.map(add_scores, batched=batched, **options)] == want
    names = rows.map(add_scores, fn_kwargs={"model": model, "score": "q", "error": None}).column_names
    assert names == ["image", "q"]


def test_map_needs_the_column(datasets: Any, paths: list[str]) -> None:
    rows = datasets.Dataset.from_dict({"photo": paths})
    with pytest.raises(KeyError, match="fn_kwargs"):
        rows.map(add_scores)
    assert add_scores({"image": [None]}, model="lqmamba-n")["score_error"][0].startswith("NoneType")


def nested(datasets: Any, paths: list[str]) -> Any:
    """Rows of two images, one of which is damaged in the second row, and of one."""
    rows = datasets.Dataset.from_dict({"image": [[paths[0], paths[1]], [paths[2], paths[3]], [paths[1]]]})
    return rows.cast_column("image", datasets.Sequence(datasets.Image()))


@pytest.mark.parametrize("form", [None, "numpy", "torch"])
def test_rows_of_several_images(
    datasets: Any, model: str, paths: list[str], want: list[float], form: str | None
) -> None:
    first, second, broken, last = want
    rows = nested(datasets, paths).with_format(form)
    for batched in (False, True):
        if form is None:
            scored = rows.map(add_scores, batched=batched, fn_kwargs={"model": model})
        else:  # formats of arrays decode before the function is called, as streams do
            scored = with_scores(rows, model=model, batched=batched).with_format(None)
            sound = rows.select([0, 2]).map(add_scores, batched=batched, fn_kwargs={"model": model})
            assert sound.with_format(None)["score"][:] == [[first, second], [second]]
        found = [value for row in scored["score"][:] for value in row]
        np.testing.assert_array_equal(found, [first, second, broken, last, second])
        assert [len(scores) for scores in scored["score"][:]] == [2, 2, 1]
        assert [[bool(reason) for reason in row] for row in scored["score_error"][:]] == [
            [False, False], [True, False], [False],
        ]  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"batched": True}, {"batched": True, "batch_size": 3}])
def test_a_stream_with_a_broken_image(
    datasets: Any, model: str, paths: list[str], want: list[float], options: Any
) -> None:
    rows = datasets.Dataset.from_dict({"photo": paths, "id": list(range(4))})
    rows = rows.cast_column("photo", datasets.Image())
    stream = with_scores(rows.to_iterable_dataset(), image="photo", model=model, **options)
    assert stream.features["photo"] == datasets.Image(decode=False) and "score" in stream.features
    assert [Path(row["photo"]["path"]).name for row in stream] == ["0.png", "1.png", "2.png", "3.png"]
    found = {name: [row[name] for row in stream] for name in ("score", "score_error", "id")}
    check(found, want)
    assert found["id"] == [0, 1, 2, 3]
    in_memory = with_scores(rows, image="photo", model=model, **options)
    check(in_memory, want)
    assert in_memory.features["photo"] == datasets.Image()
    given = {"image": "photo", "model": model}
    for function, fn_kwargs in ((add_scores, given), (partial(add_scores, **given), None)):
        mapped = rows.to_iterable_dataset().map(
            function, fn_kwargs=fn_kwargs, remove_columns=["id"], **options
        )
        mapped_rows = list(mapped)
        check({name: [row[name] for row in mapped_rows] for name in ("score", "score_error")}, want)
        assert set(mapped_rows[0]) == {"photo", "score", "score_error"} == set(mapped.features)
    with pytest.raises(OSError):  # maps of other functions are as they were
        list(rows.to_iterable_dataset().map(lambda row: row))
    several = with_scores(nested(datasets, paths).to_iterable_dataset(), model=model, **options)
    scores = [score for row in several.remove_columns("image") for score in row["score"]]
    np.testing.assert_array_equal(scores, [*want, want[1]])
    with pytest.raises(KeyError, match="fn_kwargs"):
        with_scores(rows, image="picture", model=model)


MAP = """
import sys
import datasets, torch
from qmamba.integrations.hf import add_scores, with_scores
if __name__ == "__main__":
    folder, model = sys.argv[1:]
    torch.set_num_threads(2)  # and they have run before the process forks
    assert add_scores({"image": f"{folder}/0.png"}, model=model)["score_error"] == ""
    rows = datasets.Dataset.from_dict({"image": [f"{folder}/{i}.png" for i in range(4)]})
    rows.save_to_disk(f"{folder}/rows")
    rows = datasets.load_from_disk(f"{folder}/rows")
    scored = rows.map(add_scores, fn_kwargs={"model": model}, num_proc=2)
    print([score.hex() for score in scored["score"][:]], rows.map(add_scores)._fingerprint)
"""


def test_map_in_two_processes_and_again(
    datasets: Any, folder: Path, model: str, tmp_path: Path, want: Any
) -> None:
    (tmp_path / "mapped.py").write_text(MAP)
    source = str(Path(qmamba.__file__).parents[1])
    paths = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache"), "PYTHONPATH": paths}
    found = []
    for _ in range(2):
        command = [sys.executable, "mapped.py", str(folder), model]
        run = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )  # fmt: skip
        if "MonthDayNano" in run.stderr:
            pytest.skip("datasets cannot pickle tables of a pyarrow outside site-packages")
        assert run.returncode == 0, run.stderr
        found.append(run.stdout)
    assert str([score.hex() for score in want]) in found[0]
    assert found[0] == found[1]  # the fingerprint too: what was computed is found again


# Packages that are not there


@pytest.mark.parametrize(
    ("module", "package"), [("torchmetrics", "torchmetrics"), ("sklearn", "sklearn.base")]
)
def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"qmamba.integrations.{module}", raising=False)
    with pytest.raises(BackendError, match=r"qmamba\[integrations\]"):
        importlib.import_module(f"qmamba.integrations.{module}")


# pandas


def test_a_column_of_a_table(paths: list[str]) -> None:
    pd = pytest.importorskip("pandas", reason="pandas is not installed")
    sound = [paths[index] for index in (0, 1, 3)]
    want = qmamba.score(sound)
    table = pd.DataFrame({"path": sound, "kind": ["a", "b", "a"]}, index=[7, 3, 5])
    table["score"] = qmamba.score(table.path)
    assert table.score.dtype == np.float32 and table.score.tolist() == want.tolist()
    assert table.path.map(qmamba.score).tolist() == want.tolist()
    chosen = table.kind == "a"
    table.loc[chosen, "part"] = qmamba.score(table.path[chosen])
    assert table.part.isna().tolist() == [False, True, False] and table.part[5] == table.score[5]
    shuffled = table.sample(frac=1, random_state=0)
    table["again"] = qmamba.score(shuffled.path)  # in another order: aligned by the index
    assert table.again.tolist() == want.tolist()
    table.loc[9, "path"] = None
    assert qmamba.score(table.path, on_error="nan").isna().tolist() == [False, False, False, True]
    scores, deviations = qmamba.score(table.path[:3], return_std=True)
    assert scores.index.tolist() == deviations.index.tolist() == [7, 3, 5]
    with pytest.raises(ImageError) as caught:
        qmamba.score(table.path)
    assert caught.value.index == 3 and isinstance(caught.value.scores, torch.Tensor)


# scikit-learn


def test_in_a_pipeline(model: str, paths: list[str], want: list[float]) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    pd = pytest.importorskip("pandas", reason="pandas is not installed")
    from sklearn.base import clone
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline

    from qmamba.integrations.sklearn import QualityScore

    quality = QualityScore(model, on_error="nan")
    column = np.asarray(want)[:, None]
    table = pd.DataFrame({"path": paths, "size": [1.0, 2, 3, 4]}, index=[4, 2, 9, 1])
    for images in (paths, np.array(paths), table.path, table[["path"]], table[["path"]].to_numpy()):
        found = quality.transform(images)
        assert found.shape == (4, 1) and found.dtype == np.float32
        np.testing.assert_array_equal(found, column)
    both = ColumnTransformer([("quality", quality, ["path"]), ("size", "passthrough", ["size"])])
    pipeline = make_pipeline(both, SimpleImputer(), LinearRegression()).fit(table, [1, 2, 3, 4])
    assert np.allclose(pipeline.predict(table), [1, 2, 3, 4])
    twin = pickle.loads(pickle.dumps(clone(pipeline).fit(table, [1, 2, 3, 4])))
    assert np.allclose(twin.predict(table), [1, 2, 3, 4]) and len(pickle.dumps(twin)) < 20_000
    named = quality.set_output(transform="pandas").fit_transform(table[["path"]])
    assert list(named) == ["qmamba_score"] and named.index.tolist() == [4, 2, 9, 1]
    with pytest.raises(ImageError, match="got 2"):
        QualityScore(model).transform(table)
    with pytest.raises(ImageError, match="input 2"):
        QualityScore(model).fit(paths).transform(paths)


def test_as_a_function_of_scikit_learn(paths: list[str]) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    from sklearn.preprocessing import FunctionTransformer

    found = FunctionTransformer(qmamba.score).fit_transform([paths[0], paths[1]])
    assert found.tolist() == qmamba.score([paths[0], paths[1]]).tolist()
