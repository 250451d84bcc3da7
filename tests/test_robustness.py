"""Whatever a file holds and is called: no crash, one line, and the others are scored."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from typer.testing import CliRunner, Result

import qmamba
from qmamba.adapters.folder import read_adapter_config
from qmamba.checkpoints import load_checkpoint, save_checkpoint
from qmamba.cli import app
from qmamba.errors import CheckpointError, ImageError
from qmamba.images import decode
from qmamba.protocol import Protocol
from qmamba.scoring import Scorer
from tiny_scorer import photo, quick_config, tiny_config, tiny_network

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "broken.py"
posix = pytest.mark.skipif(os.name != "posix", reason="POSIX names and files")
QUICKLY = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)  # the same examples every time, however slow the machine is


IMPORTED = os.pathsep.join(
    filter(None, (str(Path(qmamba.__file__).parents[1]), os.environ.get("PYTHONPATH")))
)


@pytest.fixture(scope="session")
def broken() -> ModuleType:
    if not SCRIPT.is_file():
        pytest.skip("the benchmarks are not here: this is an installed package")
    spec = importlib.util.spec_from_file_location("benchmark_broken", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "quick"
    save_checkpoint(folder, tiny_network(), quick_config())
    return folder


def scored(*arguments: str | Path) -> tuple[Result, dict[str, Any]]:
    """What `qmamba score` says, and its rows by name."""
    result = CliRunner().invoke(app, ["score", *map(str, arguments), "-f", "jsonl"])
    assert result.exit_code in (0, 1), result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    found = {os.path.basename(row["path"]): row for row in rows}  # noqa: PTH119 - any bytes
    assert len(found) == len(rows)
    for row in rows:
        assert (row["score"] is None) != (row["error"] is None)
        assert row["error"] is None or "\n" not in row["error"]
    return result, found


# --- files ---


def test_every_sound_kind_is_scored_and_every_bad_one_named(
    broken: ModuleType, quick: Path, tmp_path: Path
) -> None:
    good, bad = broken.good(), broken.bad()
    for name, data in {**good, **bad}.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "wrong-extension.png").write_bytes(good["plain.jpg"])
    result, rows = scored(tmp_path, "--model", quick)
    assert {name for name, row in rows.items() if row["error"] is None} == {*good, "wrong-extension.png"}
    assert {name for name, row in rows.items() if row["error"]} == set(bad)
    for name in bad:
        assert str(tmp_path / name) in rows[name]["error"]
    assert "scans" in rows["scans.jpg"]["error"] and "megapixels" in rows["bomb.png"]["error"]
    assert len(result.stderr.splitlines()) == 1, "one line on stderr, the number of failures"


@pytest.mark.parametrize("count", [300, pytest.param(1000, marks=pytest.mark.slow)])
def test_good_and_bad_files_in_one_run(count: int, broken: ModuleType, quick: Path, tmp_path: Path) -> None:
    good, bad = list(broken.good().items()), list(broken.bad().items())
    expected = {}
    for n in range(count):
        is_bad = n % 10 in (2, 5, 6)
        name, data = bad[n % len(bad)] if is_bad else good[n % len(good)]
        path = tmp_path / f"{n:04d}-{name}"
        path.write_bytes(data)
        expected[path.name] = is_bad
    result, rows = scored(tmp_path, "--model", quick)
    assert {name: row["error"] is not None for name, row in rows.items()} == expected
    assert f"{sum(expected.values())} of {count} images could not be scored" in result.stderr
    alone = qmamba.load(str(quick)).score(tmp_path / "0000-plain.jpg")
    assert rows["0000-plain.jpg"]["score"] == pytest.approx(alone, abs=1e-6)


@posix
def test_odd_names_and_things_that_are_no_files(broken: ModuleType, quick: Path, tmp_path: Path) -> None:
    image = broken.good()["plain.jpg"]
    names = [b"two\nlines.jpg", b"caf\xe9.jpg", b"-rf.jpg", b'a,b".jpg', b"\x1b[31mred.jpg"]
    names.append(b"x" * 240 + b".jpg")
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(image)
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "locked.jpg").write_bytes(image)
    (tmp_path / "locked.jpg").chmod(0)
    _, rows = scored(tmp_path, "--model", quick)
    bad = {"folder.jpg", "gone.jpg", "loop.jpg", "pipe.jpg"} | ({"locked.jpg"} if os.geteuid() else set())
    assert {name for name, row in rows.items() if row["error"]} == bad
    for name in names:
        assert rows[os.fsdecode(name)]["score"] is not None
    # Named as an image itself it is one line, too.
    ((_, found),) = qmamba.load(str(quick)).iter_scores([tmp_path / "folder.jpg"])
    assert isinstance(found, ImageError) and "a folder" in str(found)


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1), (3, 700), (1, 50)])
@pytest.mark.parametrize("protocol", ["grid", "scales", "random", "whole"])
def test_extreme_shapes_give_a_score_or_a_line(size: tuple[int, int], protocol: Any) -> None:
    config = tiny_config()
    scorer = Scorer(tiny_network(), config.replace(protocol=config.protocol.as_kind(protocol)))
    ((_, found),) = scorer.iter_scores([Image.new("RGB", size, "teal")], max_pixels=4_000_000)
    assert isinstance(found, float) if max(size) <= 50 else "too thin" in str(found)


def test_a_hundred_megapixels_are_refused_by_their_header_and_scored_when_allowed(
    broken: ModuleType, quick: Path, tmp_path: Path
) -> None:
    Image.new("L", (12_000, 9_000), 90).save(tmp_path / "large.png")
    _, rows = scored(tmp_path, "--model", quick)
    assert "108.0 megapixels" in rows["large.png"]["error"]
    _, rows = scored(tmp_path, "--model", quick, "--max-pixels", "108000000")
    assert rows["large.png"]["score"] is not None


def test_a_file_too_large_for_any_image_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.webp"
    with path.open("wb") as file:
        file.write(b"RIFF\xff\xff\xff\xffWEBPVP8 ")
        file.truncate(1 << 40)  # a hole: it takes no room
    with pytest.raises(ImageError, match="more than an image of 50 megapixels needs"):
        decode(path)
    with pytest.raises(ImageError, match="more than an image of 1 megapixels needs"):
        decode(path, max_pixels=1_000_000)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_a_colour_profile_cannot_ask_for_memory(broken: ModuleType, tmp_path: Path) -> None:
    image = Image.fromarray(photo(24, 24))
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    place = profile.index(b"mluc") + 8
    profile[place : place + 4] = (8_000_000).to_bytes(4, "big")  # translations of its name
    image.save(tmp_path / "sound.jpg")
    image.save(tmp_path / "bad.jpg", icc_profile=bytes(profile))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "sound.jpg", tmp_path / "bad.jpg"],
        capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": IMPORTED},
    )  # fmt: skip
    (grown,) = map(int, done.stdout.split())
    assert grown < 20 << 20


def test_scans_of_a_progressive_jpeg_are_counted(broken: ModuleType) -> None:
    with pytest.raises(ImageError, match=r"progressive JPEG of 10\d\d scans"):
        decode(broken.many_scans(2400, 1000))
    assert decode(broken.many_scans(64, 50)).shape == (3, 64, 64)


def test_want_of_memory_for_one_image_is_its_own_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def starved(self: Any, *_: Any) -> None:
        raise MemoryError

    scorer, sound = Scorer(tiny_network(), quick_config()), photo(40, 40)
    first = Image.new("RGB", (8, 8))
    monkeypatch.setattr(type(first), "load", starved)
    found = [result for _, result in scorer.iter_scores([first, sound])]
    assert "not enough memory" in str(found[0]) and isinstance(found[1], float)


MEASURE = """
import os, sys
from qmamba.images import decode
def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))
for small, large in zip(sys.argv[1::2], sys.argv[2::2]):
    child = os.fork()  # whose peak begins at what is held now
    if not child:
        decode(small)
        before = peak()
        decode(large)
        print(peak() - before, flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_memory_is_bounded_by_the_pixels(tmp_path: Path) -> None:
    kinds = ["RGB jpg", "RGBA png", "I;16 png", "CMYK tif", "F tif"]
    paths = []
    for number, (mode, suffix) in enumerate(map(str.split, kinds)):
        for size in ((16, 16), (4000, 2500)):
            paths.append(tmp_path / f"{number}-{size[0]}.{suffix}")
            Image.new(mode, size).save(paths[-1])
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *paths], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": IMPORTED},
    )  # fmt: skip
    grown = dict(zip(kinds, map(int, done.stdout.split()), strict=True))
    assert min(grown.values()) >= 3 * 10_000_000, f"less than the pixels themselves: {grown}"
    assert max(grown.values()) <= 30 * 10_000_000, f"more than docs/robustness.md states: {grown}"


# --- hypothesis ---


def test_what_pillow_says_of_odd_files_is_not_repeated(
    broken: ModuleType, quick: Path, tmp_path: Path
) -> None:
    samples = bytearray(broken.good()["plain.tif"])
    place = samples.index(b"\x15\x01\x03\x00\x01\x00\x00\x00")  # SamplesPerPixel, a short
    samples[place + 8 : place + 10] = b"\x01\x01"
    (tmp_path / "samples.tif").write_bytes(samples)  # Pillow logs an error
    (tmp_path / "exif.jpg").write_bytes(
        broken.good()["exif.jpg"].replace(b"MM\x00*", b"MM\x00+")
    )  # and warns
    lzw = bytearray(broken.good()["lzw.tif"])
    lzw[200:260] = b"\xff" * 60
    (tmp_path / "lzw.tif").write_bytes(lzw)  # libtiff writes to the file descriptor
    done = subprocess.run(
        [sys.executable, "-m", "qmamba", "score", tmp_path, "--model", quick, "-f", "csv"],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": IMPORTED},
    )  # fmt: skip
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "2 of 3 images could not be scored" in done.stderr


@settings(QUICKLY, max_examples=250)
@given(seed=st.integers(0, 2**32 - 1), which=st.integers(0, 1000), how=st.integers(0, 1000))
def test_damaged_files_decode_or_give_one_line(broken: ModuleType, seed: int, which: int, how: int) -> None:
    files, ways = list(broken.good().values()), list(broken.DAMAGE.values())
    data = ways[how % len(ways)](files[which % len(files)], random.Random(seed))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pixels = decode(data, max_pixels=2_000_000)
    except ImageError as error:
        assert "\n" not in str(error) and str(error).startswith("bytes: ")
    else:
        assert pixels.ndim == 3 and pixels.shape[0] == 3 and pixels.dtype in (torch.uint8, torch.float32)


@settings(QUICKLY, max_examples=250)
@given(data=st.binary(max_size=200))
def test_any_bytes_decode_or_give_one_line(data: bytes) -> None:
    with pytest.raises(ImageError) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        decode(data)
        raise ImageError("an image by chance")
    assert "\n" not in str(caught.value)


NAMES = st.binary(min_size=1, max_size=30).filter(lambda name: not {0, ord("/")} & set(name))


@posix
@settings(QUICKLY, max_examples=20)
@given(names=st.lists(NAMES, min_size=1, max_size=6, unique=True), seed=st.integers(0, 2**32 - 1))
def test_the_command_line_has_a_row_for_any_files(
    broken: ModuleType, quick: Path, names: list[bytes], seed: int
) -> None:
    rng, good, bad = random.Random(seed), list(broken.good().values()), list(broken.bad().values())
    expected = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            file = b"x" + name + b".jpg"
            is_good = rng.random() < 0.5
            Path(folder, os.fsdecode(file)).write_bytes(rng.choice(good if is_good else bad))
            expected[os.fsdecode(file)] = is_good
        _, rows = scored(folder, "--model", quick)
    assert {name: row["error"] is None for name, row in rows.items()} == expected


WORDS = """score compare map --format csv parquet --out --max-pixels -1 0 x --model nowhere.jpg --protocol
grid --batch-size 99999999999999999999 --adapter * [ --engine --workers --device cuda:99 meta --dtype float16
-- --offline --fresh --progress"""


@settings(QUICKLY, max_examples=60)
@given(words=st.lists(st.sampled_from([*WORDS.split(), "", "\n", "\udce9"]), max_size=7))
def test_any_command_ends_in_words(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("empty"))
    try:
        result = CliRunner().invoke(app, words)
    finally:
        os.chdir(before)
    assert result.exit_code in (0, 1, 2), (words, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), (words, result.exception)


# --- checkpoints of strangers ---


@pytest.mark.parametrize(
    "change",
    [
        {"n_crops": 2**31 - 1},
        {"max_crops": 2**31 - 1},
        {"crop": 2**20},
        {"sides": [512] * 1000},
        {"sides": [2**20]},
    ],
)
def test_protocols_that_would_keep_a_machine_busy_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="protocol: "):
        Protocol.from_dict({**Protocol().to_dict(), **change})


@pytest.mark.parametrize(
    "overrides", [{"depths": [10**9, 1, 1, 1]}, {"widths": [10**12] * 4}, {"depths": [1] * 10**5}]
)
def test_networks_without_end_are_refused(tmp_path: Path, overrides: dict[str, Any]) -> None:
    save_checkpoint(tmp_path, tiny_network(), tiny_config())
    config = json.loads((tmp_path / "config.json").read_text())
    config["overrides"] |= overrides
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


OPENED: list[str] | None = None


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if OPENED is not None and event in ("open", "os.listdir", "os.scandir"):
        OPENED.append(os.fspath(arguments[0]) if isinstance(arguments[0], (str, os.PathLike)) else "")


sys.addaudithook(_hear)  # permanent: audit hooks cannot be removed, so it listens only when told


@pytest.mark.parametrize("value", ["../../secret", "/etc/passwd", "..", "a/../../b", "\0", "~/x", "C:\\x"])
def test_no_value_of_a_config_becomes_a_path(tmp_path: Path, value: str) -> None:
    global OPENED
    model, adapter = tmp_path / "model", tmp_path / "adapter"
    scorer = Scorer(tiny_network(), tiny_config())
    config = scorer.save_pretrained(model)
    made = qmamba.adapters.create("ssf", scorer.base())
    about = qmamba.adapters.AdapterConfig("ssf", "tiny", config.weights_sha256)
    qmamba.adapters.save_adapter(adapter, made, about)
    for folder, file in ((model, "config.json"), (adapter, "adapter_config.json")):
        whole = json.loads((folder / file).read_text())
        for key in [key for key, held in whole.items() if isinstance(held, str)]:
            (folder / file).write_text(json.dumps({**whole, key: value}))
            OPENED = []
            try:
                qmamba.load(model, adapter=adapter)
            except CheckpointError as error:
                assert "\n" not in str(error)
            finally:
                opened, OPENED = OPENED, None
            assert opened, "the hook hears what is opened"
            assert not [path for path in opened if "secret" in path or "passwd" in path or value == path]
        (folder / file).write_text(json.dumps(whole))
    assert read_adapter_config(adapter).base == "tiny"


def test_a_folder_called_like_an_image_has_its_row(tmp_path: Path, quick: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "album.jpg").mkdir(parents=True)
    for place in (folder / "a.png", folder / "album.jpg" / "b.png"):
        Image.fromarray(photo(64, 64)).save(place)
    command = ["score", str(folder), "--model", str(quick), "--format", "json"]
    flat = CliRunner().invoke(app, command)
    rows = {Path(row["path"]).name: row for row in json.loads(flat.stdout)}
    assert flat.exit_code == 1 and set(rows) == {"a.png", "album.jpg"}
    assert rows["a.png"]["error"] is None and "folder" in rows["album.jpg"]["error"]
    deep = json.loads(CliRunner().invoke(app, [*command, "--recursive"]).stdout)
    assert [Path(row["path"]).name for row in deep] == ["a.png", "b.png"]
