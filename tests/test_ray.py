"""Scoring by Ray's actors: every image's row once, whatever dies meanwhile."""

from __future__ import annotations

import io
import logging
import os
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import qmamba
from qmamba.checkpoints import save_checkpoint
from qmamba.cli import app
from qmamba.errors import BackendError, QMambaError, ScoresError
from qmamba.integrations._shards import members
from tiny_scorer import encode, photo, quick_config, tiny_network

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
WIDE = 10**9


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for part in sorted(folder.glob("*.parquet")) for row in pq.read_table(part).to_pylist()]


def tar_of(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


# --- files of many images, without Ray ---


def test_a_tar_file_as_webdataset_has_them(tmp_path: Path) -> None:
    image = encode(photo(8, 8))
    path = tar_of(tmp_path / "a.tar", {"0.jpg": image, "0.json": b"{}", "é/1.PNG": image, "2.jpg": b""})
    found = list(members(str(path), set(), column=None, max_pixels=WIDE))
    expected = [(0, "0.jpg", image), (1, "é/1.PNG", image), (2, "2.jpg", b"")]
    assert [(m.place, m.name, m.image) for m in found] == expected
    (last,) = members(str(path), {0, 1}, column=None, max_pixels=WIDE)
    assert last.place == 2
    huge = tar_of(tmp_path / "b.tar", {"0.jpg": bytes(20 << 20)})
    (large,) = members(str(huge), set(), column=None, max_pixels=9)
    assert large.image is None and "21 MB" in str(large.error)


@pytest.mark.parametrize("cut", [512 + 100, 512 + 1024 + 200, 2 * 1536 + 10, 100, 0])
def test_a_cut_tar_file_loses_only_what_is_cut_off(tmp_path: Path, cut: int) -> None:
    files = {f"{n}.png": bytes([n]) * 1024 for n in range(4)}
    path = tar_of(tmp_path / "a.tar", files)
    path.write_bytes(path.read_bytes()[:cut])
    found = list(members(str(path), set(), column=None, max_pixels=WIDE))
    whole = [m for m in found if m.error is None]
    assert [m.image for m in whole] == list(files.values())[: cut // 1536]
    assert len(found) > len(whole) and str(path) in str(found[-1].error) and "\n" not in str(found[-1].error)
    assert [m.place for m in found] == list(range(len(found)))


def test_noise_between_members_is_reported(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", {f"{n}.png": bytes(1024) for n in range(4)})
    data = bytearray(path.read_bytes())
    data[2 * 1536 : 2 * 1536 + 512] = os.urandom(512)
    path.write_bytes(data)
    found = list(members(str(path), set(), column=None, max_pixels=WIDE))
    assert [m.error is None for m in found] == [True, True, False]


@pytest.mark.parametrize("kind", ["bytes", "huggingface", "paths"])
def test_a_parquet_file(tmp_path: Path, kind: str) -> None:
    image, path = encode(photo(8, 8)), tmp_path / "a.parquet"
    values: list[Any] = {
        "bytes": [image, None, b"x"],
        "huggingface": [{"bytes": image, "path": "a.jpg"}, None, {"bytes": None, "path": "b.jpg"}],
        "paths": ["a.jpg", None, "b.jpg"],
    }[kind]
    pq.write_table(pa.table({"image": values, "label": [1, 2, 3]}), path, row_group_size=2)
    found = list(members(str(path), set(), column=None, max_pixels=WIDE))
    assert [m.place for m in found] == [0, 1, 2]
    assert found[1].image is None and "no image in this row" in str(found[1].error)
    assert found[0].image == ("a.jpg" if kind == "paths" else image)
    assert [m.place for m in members(str(path), {0, 1}, column=None, max_pixels=WIDE)] == [2]
    (no,) = members(str(path), set(), column="photo", max_pixels=WIDE)
    assert "no column 'photo'; pass column=, one of image, label" in str(no.error)


def test_a_damaged_row_group_loses_only_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    images = [os.urandom(2000) for _ in range(12)]
    pq.write_table(pa.table({"photo": images}), path, row_group_size=4, use_dictionary=False)
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data[start : start + 400] = b"\xff" * 400
    path.write_bytes(data)
    found = list(members(str(path), set(), column=None, max_pixels=WIDE))
    assert [m.place for m in found] == list(range(12))
    assert [m.image for m in found if m.error is None] == images[:4] + images[8:]
    path.write_bytes(b"PAR1 this is not one")
    (bad,) = members(str(path), set(), column=None, max_pixels=WIDE)
    assert str(path) in str(bad.error)


# --- with Ray ---


POISON = """
import os
from PIL import ImageFile
sound = ImageFile.ImageFile.load
def load(self):
    return os._exit(9) if self.size == (13, 17) else sound(self)
ImageFile.ImageFile.load = load
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster in whose processes an image of 13 × 17 pixels ends everything."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    pytest.importorskip("ray.data")
    # A machine that is busy with other things takes long to start a process.
    wanted = {"worker_register_timeout_seconds": 900, "gcs_rpc_server_reconnect_timeout_s": 900}
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(POISON)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_raylet_start_wait_time_s", "900")
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH")))))
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _system_config=wanted)
        yield ray
        ray.shutdown()


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "quick"
    save_checkpoint(folder, tiny_network(), quick_config())
    return folder


def test_a_folder_with_everything(cluster: Any, quick: Path, tmp_path: Path) -> None:
    from qmamba.integrations.ray import score_to_parquet

    data, out = tmp_path / "data", tmp_path / "scores"
    data.mkdir()
    files = {f"{n}.png": encode(photo(40 + n, 60, n)) for n in range(3)} | {"bad.jpg": b"no image"}
    for name, content in files.items():
        (data / name).write_bytes(content)
    tar_of(data / "a.tar", {**files, "notes.txt": b"x"})
    cut = tar_of(data / "cut.tar", files)
    cut.write_bytes(cut.read_bytes()[: -(10240 + 512)])
    pq.write_table(pa.table({"image": list(files.values())}), data / "b.parquet")
    told: list[int] = []
    summary = score_to_parquet(data, out, model=quick, actors=1, done=told.append)
    rows = rows_of(out)
    by = {(Path(r["path"]).name, r["index"]): r for r in rows}
    assert len(by) == len(rows) == summary.rows == sum(told)
    scorer = qmamba.load(str(quick))
    for n in range(3):
        score = scorer.score(files[f"{n}.png"])
        for key in ((f"{n}.png", None), ("a.tar", n), ("b.parquet", n)):
            assert by[key]["score"] == pytest.approx(score, abs=1e-6) and by[key]["error"] is None
    for key in (("bad.jpg", None), ("a.tar", 3), ("b.parquet", 3)):
        assert by[key]["score"] is None and "not an image" in by[key]["error"]
        assert "\n" not in by[key]["error"] and key[0] in by[key]["error"]
    assert by[("a.tar", 1)]["member"] == "1.png"
    assert any(r["error"] and "cut.tar" in r["error"] for r in rows)
    repeated = score_to_parquet(data, out, model=quick, actors=1)
    assert repeated == summary and len(rows_of(out)) == len(rows), "nothing is scored twice"
    with pytest.raises(ScoresError, match="already"):
        score_to_parquet(data, out, model=quick, resume=False)


def test_the_command_line(cluster: Any, quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images = {"0.png": encode(photo(40, 60)), "1.png": b"no image"}
    tar_of(tmp_path / "a.tar", images)
    (tmp_path / "2.png").write_bytes(images["0.png"])
    options = ["--engine", "ray", "--workers", "1", "--model", str(quick), "--protocol", "whole"]
    result = CliRunner().invoke(app, ["score", ".", "--format", "parquet", *options])
    assert result.exit_code == 1 and result.stdout == "scores.parquet\n", result.output
    assert "1 of 3 images could not be scored" in result.stderr
    for name in ("ray", "ray.data"):  # importing ray.data sets them to talk
        assert logging.getLogger(name).level == logging.CRITICAL
    rows = rows_of(tmp_path / "scores.parquet")
    score = qmamba.load(str(quick), protocol="whole").score(images["0.png"])
    assert sorted(str(row["member"]) for row in rows) == ["0.png", "1.png", "None"]
    assert [row["score"] for row in rows if row["error"] is None] == [pytest.approx(score, abs=1e-6)] * 2


def test_an_image_that_ends_its_process_costs_no_other(cluster: Any, quick: Path, tmp_path: Path) -> None:
    from qmamba.integrations.ray import score_to_parquet

    data, out = tmp_path / "data", tmp_path / "scores"
    data.mkdir()
    files = {f"{n}.png": encode(photo(40, 60, n)) for n in range(5)} | {"3x.png": encode(photo(17, 13))}
    for name, content in files.items():
        (data / name).write_bytes(content)
    tar_of(data / "a.tar", files)
    summary = score_to_parquet(data, out, model=quick, actors=1, retries=1)
    rows = rows_of(out)
    assert summary == (12, 2) and len(rows) == 12 == len({(row["path"], row["index"]) for row in rows})
    for row in rows:
        poison = "3x.png" in row["path"] or row["index"] == 5
        is_lost = "every actor that tried to score it died" in str(row["error"])
        assert is_lost == poison == (row["score"] is None)


def test_errors_before_anything_is_scored(cluster: Any, quick: Path, tmp_path: Path) -> None:
    from qmamba.integrations.ray import score_to_parquet

    with pytest.raises(ScoresError, match="no images in"):
        score_to_parquet(tmp_path, tmp_path / "out", model=quick)
    for options in ({"actors": 0}, {"cpus_per_actor": 1.5}, {"model": "lqmamba-x"}):
        with pytest.raises(QMambaError):
            score_to_parquet(tmp_path / "a.jpg", tmp_path / "out", **{"model": quick, **options})  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_an_actor_computes_with_the_threads_that_it_was_lent(quick: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    from qmamba.integrations.ray import _Rater

    before = torch.get_num_threads()
    try:
        _Rater(str(quick), {}, threads=2, tries=1, batch_size=32, max_pixels=WIDE, ledger=None)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from qmamba.integrations.ray import score_to_parquet

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BackendError, match=r"qmamba\[ray\]"):
        score_to_parquet("photos", tmp_path)


def test_a_failure_of_ray_is_one_line() -> None:
    from qmamba.integrations.ray import _Run, _running

    class Failing:
        """A Ray whose cluster cannot be reached, and whose work fails."""

        class exceptions:  # noqa: N801 - Ray's module
            RayError = ConnectionError

        def is_initialized(self) -> bool:
            return False

        def init(self, **_: Any) -> None:
            raise ConnectionError("no cluster at 10.0.0.1\nlong advice")

        def map_batches(self, *_: Any, **__: Any) -> None:
            raise ConnectionError("lost the head node\nand a traceback")

    with pytest.raises(BackendError) as caught, _running(Failing()):
        pass
    assert str(caught.value) == "Ray cannot be started: no cluster at 10.0.0.1"
    with pytest.raises(BackendError) as caught:
        _Run(Failing(), None, WIDE, None, len)._score(Failing(), 32, {})  # type: ignore[arg-type]
    assert str(caught.value) == "Ray failed: lost the head node; finished rows are kept; run again"


class Killer(threading.Thread):
    """Kill one scoring actor after another, each after a given number of rows."""

    def __init__(self, at: tuple[int, ...]) -> None:
        super().__init__(daemon=True)
        self.at, self.rows, self.killed = list(at), 0, 0

    def seen(self, rows: int) -> None:
        self.rows += rows

    def run(self) -> None:
        while self.at:
            if self.rows >= self.at[0] and (pids := self.actors()):
                os.kill(pids[0], 9)
                self.killed += 1
                self.at.pop(0)
            time.sleep(0.02)

    def actors(self) -> list[int]:
        """Processes of this one's cluster that score; Ray names them so."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                named = (entry / "cmdline").read_bytes().startswith(b"ray::MapWorker(MapBatches(_Rater))")
                if named and self.parent(self.parent(int(entry.name))) == os.getpid():
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    @staticmethod
    def parent(pid: int) -> int:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux")
def test_killed_actors_lose_and_double_nothing(cluster: Any, quick: Path, tmp_path: Path) -> None:
    from qmamba.integrations.ray import score_to_parquet

    data, out = tmp_path / "data", tmp_path / "scores"
    data.mkdir()
    contents = [encode(photo(32, 40, n)) for n in range(20)] + [b"no image"]
    for n in range(2000):
        (data / f"{n:04d}.png").write_bytes(contents[n % 21])
    killer = Killer(at=(200, 900))
    killer.start()
    summary = score_to_parquet(data, out, model=quick, actors=2, done=killer.seen)
    killer.join(timeout=10)
    assert killer.killed == 2, "the actors were not found"
    rows = rows_of(out)
    assert summary.rows == len(rows) == 2000
    assert {Path(row["path"]).name for row in rows} == {path.name for path in data.iterdir()}
    scores = qmamba.load(str(quick)).score([contents[n] for n in range(20)])
    for row in rows:
        n = int(Path(row["path"]).stem) % 21
        assert (row["error"] is not None) == (n == 20)
        assert n == 20 or row["score"] == pytest.approx(float(scores[n]), abs=1e-6)
