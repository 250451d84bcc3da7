"""`qmamba score --format parquet`: every image's row once, whatever ended the runs before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner, Result

import qmamba
from qmamba.checkpoints import save_checkpoint
from qmamba.cli import app
from qmamba.errors import ScoresError
from qmamba.scoring import Scorer, parquet_log
from qmamba.scoring.parquet_log import Place, ScoreParts, settings_of
from tiny_scorer import encode, photo, quick_config, tiny_config, tiny_network

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow, which writes parquet, is not installed")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "quick"
    save_checkpoint(folder, tiny_network(), quick_config())
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(5):
        Image.fromarray(photo(40 + seed, 60, seed)).save(folder / f"{seed}.png")
    (folder / "bad.jpg").write_bytes(b"no photograph")
    return folder


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["score", *map(str, arguments)])


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for part in sorted(folder.glob("*.parquet")) for row in pq.read_table(part).to_pylist()]


def test_rows_are_the_librarys(quick: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores"
    result = run(photos, "--model", quick, "-f", "parquet", "-o", out)
    assert result.exit_code == 1 and result.stdout == f"{out}\n"
    assert "1 of 6 images" in result.stderr
    rows, scorer = rows_of(out), qmamba.load(str(quick))
    assert [Path(row["path"]).name for row in rows] == [
        "0.png",
        "1.png",
        "2.png",
        "3.png",
        "4.png",
        "bad.jpg",
    ]
    for row in rows[:5]:
        assert row["score"] == pytest.approx(scorer.score(row["path"]), abs=1e-6)
        assert row["error"] is row["index"] is row["member"] is row["path_bytes"] is None
    assert rows[5]["score"] is None and rows[5]["path"] in rows[5]["error"]
    table = pq.read_table(out)  # the folder is one table for readers of parquet
    assert table.num_rows == 6 and str(table.schema.field("score").type) == "float"


def test_the_same_command_resumes(
    quick: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_log, "PART_ROWS", 2)
    out = tmp_path / "scores"
    arguments = (photos, "--model", quick, "-f", "parquet", "-o", out)
    run(*arguments)
    first = rows_of(out)
    assert len(list(out.iterdir())) == 3 and len(first) == 6
    repeated = run(*arguments)
    assert repeated.exit_code == 1 and "resuming after 6 rows" in repeated.stderr
    assert rows_of(out) == first, "nothing is scored twice"
    min(out.iterdir()).unlink()
    Image.fromarray(photo(50, 50, 9)).save(photos / "new.png")
    run(*arguments)
    rows = rows_of(out)
    assert len(rows) == 7 == len({row["path"] for row in rows})
    assert {row["path"]: row["score"] for row in first}.items() <= {
        r["path"]: r["score"] for r in rows
    }.items()


def test_a_run_from_another_folder_knows_files_apart(
    quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "scores"
    for place, name in enumerate(("A", "B")):
        (tmp_path / name).mkdir()
        Image.fromarray(photo(40, 50, place)).save(tmp_path / name / "1.png")
    for folder, named in (("A", "1.png"), ("B", "."), ("B", "../A"), (".", "A/1.png"), (".", tmp_path / "B")):
        monkeypatch.chdir(tmp_path / folder)
        assert run(named, "--model", quick, "-f", "parquet", "-o", out).exit_code == 0
    want = [tmp_path / "A" / "1.png", tmp_path / "B" / "1.png"]
    rows, scorer = rows_of(out), qmamba.load(str(quick))
    assert [row["path"] for row in rows] == [str(path) for path in want]
    assert [row["score"] for row in rows] == pytest.approx(scorer.score(want).tolist(), abs=1e-6)
    from qmamba.integrations.ray import _found

    assert _found(["A", "B/../B/1.png"], True)[0] == [os.fsencode(path) for path in want], "as by Ray"


def test_what_was_scored_before_an_interruption_is_kept(quick: Path, photos: Path, tmp_path: Path) -> None:
    scorer, out = qmamba.load(str(quick)), tmp_path / "scores"
    with pytest.raises(KeyboardInterrupt), ScoreParts(out, settings_of(scorer, None)) as parts:
        for index, result in scorer.iter_scores(sorted(photos.iterdir())):
            assert parts.add(Place(b"%d" % index), 0.5 if index else None, None if index else str(result))
            if index == 2:
                raise KeyboardInterrupt
    assert [row["path"] for row in rows_of(out)] == ["0", "1", "2"]
    with ScoreParts(out, settings_of(scorer, None)) as parts:
        assert parts.rows == 3 and parts.failed == 1 and Place(b"2") in parts
        assert not parts.add(Place(b"2"), 0.1, None), "a row is there already"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--fresh",), "holds scores already"),
        (("--max-pixels", "1000"), "max_pixels was 50000000 and is 1000"),
        (("--protocol", "grid"), "other settings (protocol"),
        (("--dtype", "bfloat16"), "dtype was 'float32' and is 'bfloat16'"),
    ],
)
def test_rows_of_other_settings_do_not_mix(
    quick: Path, photos: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "scores"
    arguments = (photos / "0.png", "--model", quick, "-f", "parquet", "-o", out)
    assert run(*arguments).exit_code == 0
    refused = run(*arguments, *options)
    assert refused.exit_code == 2 and len(refused.stderr.splitlines()) == 1
    assert message in refused.stderr and len(rows_of(out)) == 1


def test_a_damaged_part_and_a_file_in_the_way_are_one_line(quick: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores"
    arguments = (photos / "0.png", "--model", quick, "-f", "parquet", "-o", out)
    run(*arguments)
    (part,) = out.iterdir()
    part.write_bytes(part.read_bytes()[:50])
    refused = run(*arguments)
    assert refused.exit_code == 2 and f"{part}: damaged" in refused.stderr
    pq.write_table(pyarrow.table({"x": [1]}), part)
    assert "holds other parquet files" in run(*arguments).stderr
    refused = run(*arguments[:-1], photos / "0.png")
    assert refused.exit_code == 2 and "must be a folder, got a file" in refused.stderr
    assert run(*arguments[:-1], photos / "0.png" / "x").exit_code == 2


@pytest.mark.skipif(os.name != "posix", reason="POSIX names")
def test_names_that_are_not_utf8(quick: Path, photos: Path, tmp_path: Path) -> None:
    name = b"caf\xe9\n.png"
    try:
        (photos / "0.png").rename(photos / os.fsdecode(name))
    except OSError:
        pytest.skip("this file system has only UTF-8 names")
    out = tmp_path / "scores"
    for _ in range(2):
        run(photos, "--model", quick, "-f", "parquet", "-o", out)
        (row,) = (row for row in rows_of(out) if row["path_bytes"] is not None)
        assert row["path"].endswith("caf\\xe9\n.png") and row["path_bytes"].endswith(name)
        assert row["score"] is not None


def test_options_that_go_with_parquet_only(quick: Path, photos: Path, tmp_path: Path) -> None:
    for options in (("--out", tmp_path / "a"), ("--engine", "ray")):
        refused = run(photos, "--model", quick, *options)
        assert refused.exit_code == 2 and "--format parquet" in refused.stderr


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ScoresError, match=r"qmamba\[parquet\]"):
        ScoreParts(tmp_path, {})


def test_workers_change_nothing(quick: Path, photos: Path) -> None:
    arguments = (photos, "--model", quick, "-f", "jsonl")
    assert run(*arguments).stdout == run(*arguments, "--workers", "3").stdout


@pytest.fixture
def one_thread() -> Iterator[None]:
    """With several threads each decodes its own image, see test_parallel.py."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("workers", [1, 3])
def test_images_are_decoded_while_others_are_scored(workers: int, one_thread: None) -> None:
    count = 6
    being_read = [threading.Event() for _ in range(count)]

    class File:
        """Tells when it is read, which is when a thread begins to decode it."""

        def __init__(self, place: int) -> None:
            self.place = place

        def read(self) -> bytes:
            being_read[self.place].set()
            return encode(photo(40, 40, self.place))

    class Waits(nn.Module):
        """A network that does not end before the next images are being decoded."""

        def __init__(self) -> None:
            super().__init__()
            self.weight, self.place = nn.Parameter(torch.ones(1)), 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            for event in being_read[self.place + 1 : self.place + 1 + workers]:
                assert event.wait(timeout=60)
            self.place += 1
            return self.weight * images.mean((1, 2, 3))[:, None]

    results = Scorer(Waits(), quick_config()).iter_scores(map(File, range(count)), workers=workers)
    assert [index for index, score in results if isinstance(score, float)] == list(range(count))


FLAT = """
import io, os, sys
import torch
from torch import nn
sys.path.insert(0, {tests!r})
from PIL import Image
from tiny_scorer import encode, photo, quick_config
from qmamba.scoring import Scorer
from qmamba.scoring.parquet_log import Place, ScoreParts, settings_of
from qmamba.scoring.pipeline import outcome

class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
    def forward(self, images):
        return self.weight * images.mean((1, 2, 3))[:, None]

torch.set_num_threads(1)
files = []
for seed in range(20):
    file = io.BytesIO()
    Image.fromarray(photo(64, 64 + seed, seed)).save(file, "JPEG")
    files.append(file.getvalue() if seed % 7 else file.getvalue()[:200])
scorer, seen = Scorer(Mean(), quick_config()), {{}}
with ScoreParts({out!r}, settings_of(scorer, None)) as parts:
    images = (files[i % 20] for i in range(10_000))
    for index, result in scorer.iter_scores(images):
        parts.add(Place(b"photographs/%06d.jpg" % index), *outcome(result))
        if index + 1 in (3_000, 10_000):  # the first part has been written, with what that takes
            with open("/proc/self/statm") as file:
                seen[index + 1] = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
assert parts.rows == 10_000 and parts.failed == 1_500, (parts.rows, parts.failed)
print(seen[3_000], seen[10_000])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_memory_is_flat_over_ten_thousand_images(tmp_path: Path) -> None:
    out = tmp_path / "scores"
    code = FLAT.format(tests=str(Path(__file__).parent), out=str(out))
    path = os.pathsep.join(
        filter(None, (str(Path(qmamba.__file__).parents[1]), os.environ.get("PYTHONPATH")))
    )
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    early, late = map(int, done.stdout.split())
    print(f"resident after 3,000 images {early / 2**20:.0f} MiB, after 10,000 {late / 2**20:.0f} MiB")
    assert late - early < 16 * 2**20
    assert len(rows_of(out)) == 10_000


def test_settings_say_what_decides_a_score(quick: Path) -> None:
    scorer = qmamba.load(str(quick))
    settings = settings_of(scorer, None)
    assert settings == json.loads(json.dumps(settings))
    assert settings["weights_sha256"] == scorer.config.weights_sha256 and settings["adapter"] is None
    other = Scorer(tiny_network(), tiny_config())
    assert settings_of(other, None)["protocol"] != settings["protocol"]
