"""What all commands have in common: options, empty arguments, closed output, missing extras, progress."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner, Result

import qmamba
from qmamba.cli import _progress, app
from qmamba.cli._command import check_arguments
from qmamba.cli._options import DtypeName, ProtocolName
from qmamba.cli._progress import Lines, bar_of
from qmamba.cli._ratings import Source, source_of
from qmamba.errors import ArgumentError, DataSetError
from qmamba.images.find import find_images
from qmamba.protocol import Kind

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX descriptors and signals")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def commands() -> Iterator[tuple[str, Any]]:
    program = typer.main.get_command(app)
    for name, command in program.commands.items():
        inner = getattr(command, "commands", None)
        if inner is None:
            yield name, command
        else:
            yield from ((f"{name} {each}", inner[each]) for each in inner)


def options() -> Iterator[tuple[str, Any]]:
    for name, command in commands():
        yield from ((name, param) for param in command.params if param.param_type_name == "option")


# Options


def test_a_letter_means_the_same_in_every_command() -> None:
    names, letters = defaultdict(set), defaultdict(set)
    for _, param in options():
        long = next(opt for opt in param.opts if opt.startswith("--"))
        short = [opt for opt in param.opts if not opt.startswith("--")]
        letters[long].add(tuple(short))
        for letter in short:
            names[letter].add(long)
    assert {letter: found for letter, found in names.items() if len(found) > 1} == {}
    assert {name: found for name, found in letters.items() if len(found) > 1} == {}
    assert names["-m"] == {"--model"} and names["-d"] == {"--data"} and names["-f"] == {"--format"}


def test_every_parameter_is_described_in_full_phrases() -> None:
    for name, command in commands():
        assert command.help and command.help.splitlines()[0].rstrip()[-1] in ".,:;[", name
        for param in command.params:
            text = getattr(param, "help", "")  # old releases of typer do not keep that of an argument
            if text is None and param.param_type_name == "argument":
                continue
            assert text[:1].isupper() and text.endswith((".", "…")) and not text.startswith("Of "), (
                name,
                param.name,
            )


def test_the_pages_describe_the_options_that_there_are() -> None:
    docs = Path(qmamba.__file__).parents[2] / "docs"
    if not docs.is_dir():
        pytest.skip("this is an installed package")
    pages = {path.name: path.read_text(encoding="utf-8") for path in docs.glob("*.md")}
    described = set(re.findall(r"`(--[a-z0-9-]+)`", "\n".join(pages.values())))
    known = {opt for _, param in options() for opt in (*param.opts, *param.secondary_opts) if opt[:2] == "--"}
    assert known - described == set()
    tables = [line for line in pages["command-line.md"].splitlines() if line.startswith("| `--")]
    listed = {opt for line in tables for opt in re.findall(r"`(--[a-z0-9-]+)`", line.split(" | ")[0])}
    assert listed - known == set() and len(listed) > 20


def test_a_file_to_write_goes_with_force() -> None:
    """Folders of runs and of scores are resumed, or refused by --fresh."""
    resumed = {"train", "adapt", "reproduce", "score", "photos"}
    for name, command in commands():
        found = {opt for param in command.params for opt in param.opts}
        if found & {"--out", "--onnx"} and name not in resumed:
            assert "--force" in found, name


def test_choices_are_the_librarys() -> None:
    assert [each.value for each in ProtocolName] == list(get_args(Kind))
    names = {each.value for each in DtypeName} - {"auto"}
    assert all(getattr(torch, name).is_floating_point for name in names)


def test_the_lower_bound_of_typer_is_one_that_works() -> None:
    """Older ones do not notice that a required option is missing, with the click that pip chooses."""
    project = Path(qmamba.__file__).parents[2] / "pyproject.toml"
    if not project.is_file():
        pytest.skip("this is an installed package")
    assert '"typer>=0.18"' in project.read_text(encoding="utf-8")


# Empty arguments


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("score", "", "-r"), "an argument is empty"),
        (("compare", ""), "an argument is empty"),
        (("report", "", "--out", "x.html"), "an argument is empty"),
        (("report", ".", "--out", ""), "--out must have a value, got an empty one"),
        (("map", "a.png", "--out="), "--out must have a value, got an empty one"),
        (("map", "a.png", "-o", "--force"), "-o needs a value, got the option --force"),
        (("score", "a.png", "-m", ""), "-m must have a value, got an empty one"),
        (("data", "check", ""), "an argument is empty"),
        (("data", "check", "koniq10k="), "the folder of the data set 'koniq10k' is empty"),
        (("evaluate", "--data", ""), "--data must have a value, got an empty one"),
        (("reproduce", "table1", "--data-root", ""), "--data-root must have a value"),
    ],
)
def test_empty_arguments_are_refused(
    arguments: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.linear_gradient("L").save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2 and says in result.stderr, result.output
    assert result.stderr.startswith("qmamba: ") and result.stderr.count("\n") == 1 and result.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_an_empty_name_is_refused_in_python_too() -> None:
    with pytest.raises(ArgumentError, match="a path must not be empty"):
        find_images(["a.png", ""], recursive=True)


def test_what_only_looks_like_an_option_is_a_value() -> None:
    check_arguments(
        ["-o", "a", "--force", "b=", "--", "--out", "-m"], {"-o", "--out"}, {"-o", "--out", "--force"}
    )
    check_arguments(["--lr", "-1"], {"--lr"}, {"--lr", "-o"})
    with pytest.raises(ArgumentError, match="an argument is empty"):
        check_arguments(["-o", "a", ""], {"-o"}, {"-o"})


def test_images_in_sub_folders_are_hinted_at(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run("score", tmp_path / "empty")
    assert result.exit_code == 2 and "-r" not in result.stderr.replace(str(tmp_path), "")
    (tmp_path / "empty" / "sub").mkdir()
    result = run("score", tmp_path / "empty")
    assert result.exit_code == 2 and "add --recursive (-r) to search its sub-folders" in result.stderr
    result = run("score", tmp_path / "empty", "-r")
    assert "or its sub-folders" in result.stderr


# Data sets


def test_a_data_set_is_named_in_one_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert source_of("KonIQ-10k=some/folder") == Source("koniq10k", Path("some/folder"))
    assert source_of("mine.csv") == Source("manifest", Path("mine.csv"))
    assert source_of("BIQ2021", "biq2021") == Source("biq2021", Path("BIQ2021"))
    assert source_of("mine.csv", "manifest") == Source("manifest", Path("mine.csv"))
    (tmp_path / "a=b.csv").write_text("image,mos\n")
    assert source_of("a=b.csv").is_manifest, "a file that exists is no data set"
    with pytest.raises(DataSetError, match="near names: koniq10k"):
        source_of("koniq=folder")
    with pytest.raises(DataSetError, match="give NAME="):
        source_of(str(tmp_path))
    with pytest.raises(DataSetError, match="is a manifest itself"):
        source_of("mine.csv").read(Path("other.csv"))


def test_splits_are_overwritten_by_force_only(tmp_path: Path) -> None:
    for i in range(5):
        Image.new("L", (8, 8)).save(tmp_path / f"{i}.png")
    (tmp_path / "mine.csv").write_text("image,mos\n" + "".join(f"{i}.png,{i}\n" for i in range(5)))
    command = ("data", "splits", tmp_path / "mine.csv", "-o", tmp_path / "s", "-n", "1")
    (name,) = run(*command).stdout.splitlines()
    content = Path(name).read_text()
    Path(name).write_text("image,fold\n")
    assert run(*command).exit_code == 2 and Path(name).read_text() == "image,fold\n"
    assert run(*command, "--force").exit_code == 0 and Path(name).read_text() == content


def test_an_export_does_not_overwrite(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_text("mine")
    result = run("export", "--onnx", tmp_path / "a.onnx")
    assert result.exit_code == 2 and "exists already; give --force" in result.stderr
    assert (tmp_path / "a.onnx").read_text() == "mine"


# Progress in a log file


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_progress, "time", clock)
    return clock


def test_a_log_file_gets_a_line_each_minute(clock: Clock) -> None:
    log = io.StringIO()
    with Lines(log, 600, " steps") as bar:
        for _ in range(130):
            clock.now += 1
            bar.set_postfix({"loss": "0.5"}, refresh=False)
            bar.update()
    lines = log.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["60/600", "120/600"]
    assert all("loss=0.5" in line and "<" in line for line in lines), "with the time that is left"


def test_progress_that_was_asked_for_has_the_first_and_the_last_line(clock: Clock) -> None:
    log = io.StringIO()
    with Lines(log, 3, " images", asked=True) as bar:
        bar.set_description("photograph 1/3")
        bar.update(3)
    first, last = log.getvalue().splitlines()
    assert first.startswith("0/3 images") and last.startswith("photograph 1/3: 3/3 images")
    assert "\r" not in log.getvalue()


def test_a_short_run_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    for progress in (None, False):
        with bar_of(3, progress) as bar:
            bar.update(3)
    assert log.getvalue() == ""


# Processes


def process(script: str, *arguments: str, **extra: Any) -> subprocess.Popen[bytes]:
    source = str(Path(qmamba.__file__).parents[1])
    path = os.pathsep.join(p for p in (source, os.environ.get("PYTHONPATH")) if p)
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        **extra,
    )


MAIN = "import sys; from qmamba.cli import main; main()"


@posix
def test_closed_stdout_is_quiet(tmp_path: Path) -> None:
    """As after `>&-`; what a command opens does not become its stdout."""
    Image.linear_gradient("L").save(tmp_path / "a.png")
    out = tmp_path / "b.png"
    arguments = ("distort", str(tmp_path / "a.png"), "jpeg", "--out", str(out))
    running = process(MAIN, *arguments, preexec_fn=lambda: os.close(1))
    _, errors = running.communicate(timeout=120)
    assert (running.returncode, errors) == (0, b"")
    with Image.open(out) as picture:
        assert picture.size == (256, 256)


@posix
@pytest.mark.parametrize("arguments", [("--help",), ("train", "--list"), ("score", "--help")])
def test_a_broken_pipe_is_quiet(arguments: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        running = process(MAIN, *arguments, stdout=writer)
    finally:
        os.close(writer)
    _, errors = running.communicate(timeout=120)
    assert (running.returncode, errors) == (141, b"")


def extras() -> list[str]:
    """Import names of what only extras bring."""
    project = Path(qmamba.__file__).parents[2] / "pyproject.toml"
    text = project.read_text(encoding="utf-8").partition("[project.optional-dependencies]")[2]
    names = {line.partition(">=")[0] for line in text.partition("\n[")[0].split('"')[1::2]}
    renamed = {"scikit-learn": "sklearn", "imagehash": "imagehash", "ray[data]": "ray"}
    return sorted(renamed.get(n, n.replace("-", "_")) for n in names if "qmamba[" not in n and ";" not in n)


def test_commands_are_described_and_listed_without_extras() -> None:
    if not (Path(qmamba.__file__).parents[2] / "pyproject.toml").is_file():
        pytest.skip("this is an installed package")
    absent = extras()
    assert {"matplotlib", "accelerate", "scipy", "pyarrow", "sklearn", "ray"} <= set(absent)
    script = f"""
import sys
for name in {absent!r}:
    sys.modules[name] = None
from typer.testing import CliRunner
from qmamba.cli import app
for arguments in {[[*name.split(), "--help"] for name, _ in commands()]!r} + [
    ["train", "--list"], ["reproduce", "--list"], ["adapt", "--list"], ["distort", "--list"],
    ["photos", "--list"], ["data", "list"], ["models"], ["env"],
]:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0 and result.stdout, (arguments, result.output, result.exception)
"""
    running = process(script)
    _, errors = running.communicate(timeout=240)
    assert running.returncode == 0, errors.decode()
