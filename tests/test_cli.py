"""The command line, run in this process where that is enough and as a real process where it is not."""

from __future__ import annotations

import csv
import inspect
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

import qmamba
from qmamba.calibration import Calibration
from qmamba.checkpoints import ModelConfig, save_checkpoint
from qmamba.cli import _shared as shared
from qmamba.cli import app
from qmamba.cli._options import Format
from qmamba.cli._rows import Row, footer, header, render
from qmamba.cli.score import score
from qmamba.images.find import IMAGE_SUFFIXES, find_images, natural
from qmamba.images.pillow import FORMATS
from qmamba.models import create_model
from qmamba.ops import native
from qmamba.scoring import DEFAULT_MODEL

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX names and signals")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an untrained network: small, and as good as any for a command line."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = create_model("lqmamba-n", widths=(8, 16, 32, 64), depths=(1, 1, 1, 1))
    config = ModelConfig(
        name="tiny",
        arch=network.arch,
        overrides=network.overrides,
        calibration=Calibration(slope=3.0),
        trained_on=("nothing",),
    )
    save_checkpoint(folder, network, config)
    return folder


def save_image(path: Path, seed: int = 0, size: tuple[int, int] = (48, 40)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder as people have them: numbers, a broken file, notes, hidden files, a sub-folder."""
    folder = tmp_path / "photos"
    for seed, name in enumerate(("10.png", "2.png", "B.PNG", "sub/1.png", ".hidden.png", ".cache/1.png")):
        save_image(folder / name, seed)
    (folder / "a.jpg").write_bytes(b"this is not a photograph")
    (folder / "notes.txt").write_text("to do")
    return folder


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def hear_interrupts() -> None:
    """A shell starts background jobs with Ctrl-C ignored, and their children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def process(*arguments: str | Path, **options: object) -> subprocess.Popen[bytes]:
    source = str(Path(qmamba.__file__).parents[1])
    path = os.pathsep.join(p for p in (source, os.environ.get("PYTHONPATH")) if p)
    return subprocess.Popen(
        [sys.executable, "-m", "qmamba", *map(str, arguments)],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        preexec_fn=hear_interrupts if os.name == "posix" else None,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        **{"stdout": subprocess.PIPE, **options},  # type: ignore[call-overload]
    )


# --- rows and what they say ---


def test_scores_are_the_librarys(tiny: Path, photos: Path) -> None:
    result = run("score", photos / "2.png", photos / "10.png", "--model", tiny, "--format", "jsonl")
    assert result.exit_code == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    scorer = qmamba.load(str(tiny))
    assert [row["path"] for row in rows] == [str(photos / "2.png"), str(photos / "10.png")]
    for row in rows:
        assert row["score"] == pytest.approx(scorer.score(row["path"]), abs=1e-6)
        assert row["error"] is None
    assert rows[0]["score"] != rows[1]["score"]


def test_options_reach_the_scorer(tiny: Path, photos: Path) -> None:
    image = save_image(photos / "large.png", 7, (500, 300))

    def value(*options: str) -> float:
        result = run("score", image, "--model", tiny, "--format", "jsonl", *options)
        assert result.exit_code == 0, result.stderr
        return float(json.loads(result.stdout)["score"])

    assert value("--protocol", "whole") == pytest.approx(
        qmamba.load(str(tiny), protocol="whole").score(image), abs=1e-6
    )
    assert value("--protocol", "whole") != value("--protocol", "grid") == value()
    assert value("--batch-size", "1") == pytest.approx(value(), abs=1e-6)
    assert value("--device", "cpu") == value()
    assert value("--dtype", "bfloat16") == pytest.approx(
        qmamba.load(str(tiny), dtype=torch.bfloat16).score(image), abs=1e-6
    )
    refused = run("score", image, "--model", tiny, "--max-pixels", "1000", "--format", "jsonl")
    assert refused.exit_code == 1
    assert "large.png" in json.loads(refused.stdout)["error"]


def test_failures_have_rows_and_exit_code_1(tiny: Path, photos: Path) -> None:
    result = run("score", photos, photos / "gone.png", "--model", tiny, "--format", "csv")
    assert result.exit_code == 1
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [Path(row["path"]).name for row in rows] == ["2.png", "10.png", "a.jpg", "B.PNG", "gone.png"]
    for row in rows:
        bad = Path(row["path"]).name in ("a.jpg", "gone.png")
        assert (row["score"] == "") == bad == bool(row["error"])
        assert bad or 0 <= float(row["score"]) <= 1
    assert "2 of 5 images" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("form", ["table", "csv", "json", "jsonl"])
def test_every_format_has_a_row_per_image(tiny: Path, photos: Path, form: str) -> None:
    result = run("score", photos, "-r", "--model", tiny, "-f", form)
    assert result.exit_code == 1
    text = result.stdout
    if form == "json":
        rows = json.loads(text)
    elif form == "jsonl":
        rows = [json.loads(line) for line in text.splitlines()]
    elif form == "csv":
        rows = list(csv.DictReader(io.StringIO(text)))
    else:
        lines = text.splitlines()
        assert lines[0].split() == ["score", "image"]
        assert len(lines) == 6
        assert [line.split()[0] == "-" for line in lines[1:]] == ["a.jpg" in line for line in lines[1:]]
        return
    assert [list(row) for row in rows] == [["path", "score", "error"]] * 5
    assert [Path(row["path"]).name for row in rows] == ["2.png", "10.png", "a.jpg", "B.PNG", "1.png"]


@pytest.mark.parametrize("name", ["a,b.png", 'a"b.png', "two\nlines.png", "a\rb.png", " a.png", "é 图.png"])
def test_names_survive_csv_and_json(name: str) -> None:
    row = Row(name, error='says "no",\nthen goes')
    text = header(Format.csv) + render(Format.csv, row, first=True)
    assert list(csv.reader(io.StringIO(text, newline=""))) == [
        ["path", "score", "error"],
        [name, "", 'says "no",\nthen goes'],
    ]
    for form in (Format.json, Format.jsonl):
        whole = header(form) + render(form, row, first=True) + footer(form)
        parsed = json.loads(whole)
        assert (parsed[0] if form is Format.json else parsed)["path"] == name
    assert render(Format.jsonl, row, first=True).count("\n") == 1
    assert render(Format.table, row, first=True).count("\n") == 1


@posix
@pytest.mark.parametrize("form", ["table", "csv", "json", "jsonl"])
def test_a_name_that_is_not_utf8(tiny: Path, tmp_path: Path, form: str) -> None:
    name = b"caf\xe9\n.png"
    folder = tmp_path / "odd"
    folder.mkdir()
    try:
        save_image(tmp_path / "plain.png").rename(folder / os.fsdecode(name))
    except OSError:
        pytest.skip("this file system has only UTF-8 names")
    out, err = process("score", folder, "--model", tiny, "--format", form).communicate(timeout=120)
    assert err == b""
    if form == "csv":
        assert b'caf\xe9\n.png",0.' in out
    elif form == "table":
        assert b"caf\\udce9\\n.png\n" in out
    else:
        rows = json.loads(out)
        row = rows[0] if form == "json" else rows
        assert os.fsencode(row["path"]).endswith(name)


# --- what is found ---


def found(*arguments: str | Path, recursive: bool = False) -> list[str]:
    return [path.as_posix() for path in find_images(map(str, arguments), recursive=recursive).files]


def test_folders_files_and_patterns(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    inside = ["2.png", "10.png", "a.jpg", "B.PNG"]
    assert found(".") == inside
    assert found(".", recursive=True) == [*inside, "sub/1.png"]
    assert found("notes.txt") == ["notes.txt"], "a file that is named counts whatever its extension"
    assert found("gone.png") == ["gone.png"], "a missing name must be reported, so it stays"
    assert found("*.png") == ["2.png", "10.png"]
    assert found("**/*.png") == ["2.png", "10.png", "sub/1.png"]
    assert found(photos / "sub" / "?.png") == [(photos / "sub" / "1.png").as_posix()]
    assert found("10.png", "*.png", photos / "2.png", "10.png") == ["10.png", "2.png"], "each file once"
    save_image(photos / "x[1].png")
    assert found("x[1].png") == ["x[1].png"], "a file that is there is no pattern"
    assert find_images(["no*thing"], recursive=False).empty == ["no*thing"]
    assert found("n" * 5000) == ["n" * 5000]


@posix
def test_patterns_of_any_depth_do_not_walk_in_circles(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos / "loop").symlink_to(photos, target_is_directory=True)
    (photos / "sub" / "again").symlink_to(photos, target_is_directory=True)
    monkeypatch.chdir(photos)
    expected = ["2.png", "10.png", "sub/1.png"]
    assert found("**/*.png") == expected
    assert found("./**/*.png") == expected
    assert found(photos / "**" / "*.png") == [str(photos / name) for name in expected]
    assert found("s*/**/1.png") == found("**/sub/**/*.png") == ["sub/1.png"]
    assert found("sub/**") == ["sub/1.png"]


def test_every_suffix_that_a_folder_stands_for_can_be_read() -> None:
    Image.init()
    plugins = {".heic": "HEIF", ".heif": "HEIF", ".hif": "HEIF", ".jxl": "JXL"}
    known = plugins | Image.registered_extensions()
    formats = {suffix: known.get(suffix, "JPEG") for suffix in IMAGE_SUFFIXES}
    assert {suffix for suffix, form in formats.items() if form not in FORMATS} == set()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(tiny: Path, photos: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        running = process("score", photos / "2.png", "--model", tiny, stdout=full)
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 2
    assert errors.decode().count("\n") == 1 and "No space left" in errors.decode()


def test_natural_order() -> None:
    names = ["a/10.png", "a/9.png", "a1b2", "a1b10", "a01b2", "B", "b", "a-1/x", "²", "a/9/1"]
    ordered = [path.as_posix() for path in sorted(map(Path, names), key=natural)]
    assert ordered == [path.as_posix() for path in sorted(map(Path, reversed(names)), key=natural)]
    assert ordered.index("a/9.png") < ordered.index("a/10.png")
    assert ordered.index("a1b2") < ordered.index("a1b10")


def test_a_folder_that_cannot_be_read(tiny: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = os.scandir

    def scandir(path: str | Path) -> object:  # not chmod: it stops neither the superuser nor Windows
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    result = run("score", photos / "2.png", photos / "sub", "--model", tiny, "--format", "csv")
    assert result.exit_code == 1
    assert f"{photos / 'sub'} cannot be read" in result.stderr
    assert len(result.stdout.splitlines()) == 2, "the others are scored all the same"


# --- errors before anything is scored ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no*thing.png"], "nothing matches no*thing.png"),
        (["."], "--recursive"),
        (["photos", "--model", "lqmamba-m"], "lqmamba-m"),
        (["photos", "--device", "quantum"], "quantum"),
        (["photos", "--batch-size", "0"], "batch-size"),
        (["photos", "--format", "xml"], "xml"),
        (["photos", "--protocol", "tiles"], "tiles"),
    ],
)
def test_usage_errors(
    tiny: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(photos.parent)
    result = run("score", "--model", tiny, *arguments)  # a later --model wins
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_an_unknown_model_is_one_line(photos: Path) -> None:
    result = run("score", photos, "--model", "lqmamba-x")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "lqmamba-x" in result.stderr


def test_an_empty_folder_among_others_is_only_mentioned(tiny: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run("score", tmp_path / "empty", photos / "2.png", "--model", tiny)
    assert result.exit_code == 0
    assert "no images in" in result.stderr


# --- other commands ---


def test_the_default_model_is_the_librarys() -> None:
    (default,) = (p.default for p in inspect.signature(score).parameters.values() if p.name == "model")
    assert default == DEFAULT_MODEL


def test_version_and_help() -> None:
    assert run("--version").stdout == f"qmamba {qmamba.__version__}\n"
    text = run("score", "--help").stdout
    for option in ("model", "recursive", "format", "batch-size", "device", "protocol", "max-pixels"):
        assert f"--{option}" in text
    assert "Exit code" in text and "qmamba score photo.jpg" in text
    assert run("nonsense").exit_code == 2
    assert "score" in run("--help").stdout


def test_models() -> None:
    rows = json.loads(run("models", "--format", "json").stdout)
    assert [row["name"] for row in rows] == qmamba.list_models()
    table = run("models")
    assert table.exit_code == 0
    for row in rows:
        assert row["parameters"] > 0 and row["protocol"] in ("grid", "random", "whole", "scales")
        assert f"{row['parameters']:,}" in table.stdout and row["name"] in table.stdout


def test_env(monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(run("env", "--format", "json").stdout)
    assert found["qmamba"] == qmamba.__version__ and found["threads"] >= 1
    assert found["backends"] == [backend._asdict() for backend in qmamba.backends()]
    usable = {backend.name: backend.usable for backend in qmamba.backends()}
    assert usable["torch"] and usable["reference"]
    monkeypatch.setattr(native, "FOLDER", Path("/nowhere"))
    text = run("env")
    assert text.exit_code == 0
    assert "backend native    no  the native kernel is not built, and without it scores take" in text.stdout
    assert "python -m qmamba.ops.native.build" in text.stdout
    assert "backend torch     yes" in text.stdout


def test_a_missing_kernel_is_reported_once(tiny: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_image(photos / "a.png", 0)
    monkeypatch.delenv("QMAMBA_BACKEND", raising=False)
    monkeypatch.setattr(native, "FOLDER", photos)
    shared._note_once.cache_clear()
    commands = ("score", photos / "a.png", "--model", tiny, "--device", "cpu")
    first, second = run(*commands), run(*commands)
    assert first.exit_code == 0 and len(first.stderr.splitlines()) == 1 and second.stderr == ""
    assert "twice as long" in first.stderr and "`python -m qmamba.ops.native.build`" in first.stderr
    shared._note_once.cache_clear()
    monkeypatch.setenv("QMAMBA_BACKEND", "torch")  # an explicit choice needs no note
    assert run(*commands).stderr == ""


# --- pipes, signals, terminals ---


@posix
def test_a_closed_pipe_ends_quietly(tiny: Path, photos: Path) -> None:
    for n in range(30):
        save_image(photos / f"{n}.png", n)
    running = process("score", photos, "--model", tiny, "--format", "csv")
    assert running.stdout is not None and running.stderr is not None
    assert running.stdout.readline() == b"path,score,error\n"
    running.stdout.close()  # what `head -n 1` does
    assert running.stderr.read() == b""
    assert running.wait(timeout=60) == 141


@posix
def test_rows_come_as_they_are_done_and_ctrl_c_is_quiet(tiny: Path, photos: Path) -> None:
    for n in range(60):
        save_image(photos / "sub" / f"{n}.png", n, (900, 900))
    running = process("score", photos / "sub", "--model", tiny, "--format", "json", "--batch-size", "1")
    assert running.stdout is not None and running.stderr is not None
    first = running.stdout.readline() + running.stdout.readline()
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=60) == 130
    # Not communicate(): it would pass over what readline() has buffered.
    assert len(json.loads(first + running.stdout.read())) < 60, "what was written is a whole array"
    assert running.stderr.read() == b""


def test_a_bar_only_where_it_was_asked_for(tiny: Path, photos: Path) -> None:
    arguments = ("score", photos / "2.png", "--model", tiny, "--format", "csv")
    silent, loud = run(*arguments), run(*arguments, "--progress")
    assert silent.stderr == ""
    assert "/1 " in loud.stderr
    assert loud.stdout == silent.stdout
