"""Scorers in other processes and other threads, and sequences whose images change while they are read."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import qmamba
from qmamba.errors import AdapterError, ImageError, ScoresError
from qmamba.scoring import Scorer
from qmamba.scoring.parquet_log import Place, ScoreParts, settings_of
from tiny_adapters import config_for, made
from tiny_scorer import encode, photo, quick_config, tiny_config, tiny_network

FRAMES = [photo(60, 70, seed) for seed in range(4)]


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(tiny_network(), tiny_config())


# Other processes

FORK = """
import multiprocessing, sys, numpy, torch
torch.set_num_threads(2)
import qmamba
image = numpy.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=numpy.uint8)
scorer = qmamba.load(protocol="whole")
def work(what):
    if what == "forward":
        return float(scorer(torch.from_numpy(image).permute(2, 0, 1)[None] / 255))
    return scorer.score(image)
if __name__ == "__main__":
    here = [work(what) for what in ("score", "forward")]
    if sys.argv[1] == "no pause":  # an OpenMP that cannot dismiss its team
        from qmamba.ops import fork
        fork.ctypes.CDLL = lambda name: object()
    with multiprocessing.get_context("fork").Pool(1) as pool:
        there = [pool.apply_async(work, (what,)).get(timeout=100) for what in ("score", "forward")]
        threads = pool.apply(torch.get_num_threads)
    print(max(abs(a - b) for a, b in zip(here, there)), threads)
    assert [work(what) for what in ("score", "forward")] == here
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks safely on Linux only")
@pytest.mark.parametrize(("pause", "threads"), [("pause", 2), ("no pause", 1)])
def test_a_forked_child_scores_after_its_parent_has(pause: str, threads: int) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    environment["OMP_WAIT_POLICY"] = "passive"  # other tests run at the same time
    done = subprocess.run(
        [sys.executable, "-c", FORK, pause], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    difference, used = done.stdout.split()
    if pause == "pause" and int(used) == 1:
        pytest.skip("this OpenMP cannot dismiss its threads")
    assert int(used) == threads and float(difference) < (1e-6 if threads == 1 else 1e-12)


def _score_elsewhere(scorer: Scorer, queue: Any) -> None:
    queue.put((scorer.score(FRAMES[0]), scorer.active_adapter))


@pytest.mark.parametrize(
    "method", [m for m in ("forkserver", "spawn") if m in multiprocessing.get_all_start_methods()]
)
def test_a_scorer_is_handed_to_a_new_process(method: str) -> None:
    scorer = qmamba.load(adapter="video-stills")  # 264 tensors and more: beyond what descriptors could carry
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_score_elsewhere, args=(scorer, queue))
    process.start()
    score, adapter = queue.get(timeout=200)
    process.join()
    assert score == pytest.approx(scorer.score(FRAMES[0]), abs=1e-6) and adapter == "default"


def test_a_scorer_pickles_as_one_buffer(scorer: Scorer) -> None:
    from multiprocessing.reduction import ForkingPickler

    data = bytes(ForkingPickler.dumps(scorer))
    size = sum(p.numel() * p.element_size() for p in scorer.state_dict().values())
    assert len(data) > size, "all weights are in the buffer, and no descriptor of another process"
    assert pickle.loads(data).score(FRAMES[0]) == scorer.score(FRAMES[0])


def test_a_scorer_on_the_default_device_meta() -> None:
    want = qmamba.load(adapter="video-stills").score(FRAMES[0])
    with torch.device("meta"):
        scorer = qmamba.load(adapter="video-stills")
        assert scorer.score(FRAMES[0]) == want
        assert scorer.score([FRAMES[0]]).tolist() == pytest.approx([want])
        assert scorer.quality_map(FRAMES[0]).score == want
        parts = scorer.crop_scores(FRAMES[0])
        assert parts.mean == want and parts.scores.device.type == "cpu"


WRITER = """
import sys
from qmamba.scoring.parquet_log import Place, ScoreParts
with ScoreParts(sys.argv[1], {"a": 1}) as parts:
    parts.add(Place(b"first"), 0.5, None)
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_may_not_write_the_same_folder(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    out = tmp_path / "scores"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None and first.stdout.readline() == "writing\n"
        with pytest.raises(ScoresError, match=f"^{out}: another process is writing scores here") as caught:
            ScoreParts(out, {"a": 1})
        assert "\n" not in str(caught.value)
        first.communicate("")
    with ScoreParts(out, {"a": 1}) as parts:
        assert parts.rows == 1 and Place(b"first") in parts
    assert [path.suffix for path in out.iterdir()] == [".parquet"], "no lock is left behind"


def test_a_killed_writer_locks_nothing(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as first:
        assert first.stdout is not None and first.stdout.readline() == "writing\n"
        first.kill()
    with ScoreParts(tmp_path, {"a": 1}) as parts:
        assert parts.rows == 0


def test_a_run_without_rows_leaves_no_folder(tmp_path: Path, scorer: Scorer) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    with ScoreParts(tmp_path / "scores", settings_of(scorer, None)):
        assert (tmp_path / "scores").is_dir()
    assert not (tmp_path / "scores").exists()
    (tmp_path / "scores").write_text("")
    with pytest.raises(ScoresError, match="must be a folder"):
        ScoreParts(tmp_path / "scores", {})


# Other threads


def test_an_adapter_is_deleted_while_another_thread_scores(scorer: Scorer) -> None:
    mine = Scorer(tiny_network(), quick_config())
    adapter, config = made(mine), config_for(mine)
    plain = mine.score(FRAMES[0])
    mine.add_adapter("a", adapter, config)
    mine.set_adapter("a")
    adapted = mine.score(FRAMES[0])
    assert adapted != plain
    stop, batch = threading.Event(), torch.rand(1, 3, 64, 64)

    def change() -> None:
        while not stop.is_set():
            mine.delete_adapter("a")
            mine.add_adapter("a", adapter, config)
            mine.set_adapter("a")

    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(change)
        try:
            found = {mine.score(FRAMES[0]) for _ in range(60)}
            for _ in range(60):
                mine(batch)
        finally:
            stop.set()
        changing.result()
    assert found <= {plain, adapted}
    mine.delete_adapter("a")
    with pytest.raises(AdapterError, match="no adapter is named 'a'; loaded: none"):
        mine.delete_adapter("a")


def test_one_opened_image_twice_and_in_threads(scorer: Scorer) -> None:
    want, data = scorer.score(FRAMES[0]), encode(FRAMES[0])
    opened = Image.open(io.BytesIO(data))
    assert scorer.score([opened, opened]).tolist() == pytest.approx([want, want])
    for _ in range(5):
        opened = Image.open(io.BytesIO(data))
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(scorer.score, [opened] * 8)) == {want}
        opened = Image.open(io.BytesIO(data))
        assert [score for _, score in scorer.iter_scores([opened] * 6, workers=3)] == [want] * 6


# Sequences that are read as they are scored


def film() -> Iterator[Image.Image]:
    """One object, whose frame moves on."""
    buffer = io.BytesIO()
    first, *rest = map(Image.fromarray, FRAMES)
    first.save(buffer, "PNG", save_all=True, append_images=rest)
    return iter(ImageSequence.Iterator(Image.open(io.BytesIO(buffer.getvalue()))))


def refilled_array() -> Iterator[np.ndarray]:
    buffer = np.empty_like(FRAMES[0])
    for frame in FRAMES:
        buffer[:] = frame
        yield buffer


def refilled_tensor() -> Iterator[torch.Tensor]:
    buffer = torch.empty(3, *FRAMES[0].shape[:2], dtype=torch.uint8)
    for frame in FRAMES:
        buffer.copy_(torch.from_numpy(frame).permute(2, 0, 1))
        yield buffer


def closed_files() -> Iterator[io.BytesIO]:
    for frame in FRAMES:
        with io.BytesIO(encode(frame)) as file:
            yield file


@pytest.mark.parametrize("images", [film, refilled_array, refilled_tensor, closed_files])
@pytest.mark.parametrize("workers", [1, 3])
def test_what_an_iterator_yields_may_change_at_its_next(scorer: Scorer, images: Any, workers: int) -> None:
    want = [scorer.score(frame) for frame in FRAMES]
    assert scorer.score(images()).tolist() == pytest.approx(want, abs=1e-7)
    assert [score for _, score in scorer.iter_scores(images(), workers=workers)] == want


def test_score_reads_an_iterator_as_it_scores(scorer: Scorer) -> None:
    read: list[int] = []
    scored: list[int] = []
    mine = Scorer(tiny_network(), quick_config())
    mine.network.register_forward_hook(lambda *_: scored.append(len(read)))

    def images() -> Iterator[np.ndarray]:
        for index, frame in enumerate(FRAMES):
            read.append(index)
            yield frame

    mine.score(images())
    assert scored == [2, 3, 4, 4], "one image is read ahead"


def test_errors_and_adapters_of_an_iterator(scorer: Scorer) -> None:
    with pytest.raises(ImageError, match="input 1: ") as caught:
        scorer.score(iter([FRAMES[0], b"no image", FRAMES[1]]))
    scores = caught.value.scores
    assert caught.value.index == 1 and scores is not None
    assert scores.shape == (2,) and scores.isnan().tolist() == [False, True]
    found = scorer.score(iter([FRAMES[0], b"no image", FRAMES[1]]), on_error="nan")
    assert found.isnan().tolist() == [False, True, False]
    for names in ([None], [None] * 4):
        with pytest.raises(AdapterError, match="adapters must have a name for each"):
            scorer.score(iter(FRAMES[:2]), adapters=names)
    assert scorer.score(iter(FRAMES[:2]), adapters=[None, None]).tolist() == scorer.score(FRAMES[:2]).tolist()


# What is returned takes part in autograd


def test_results_are_ordinary_tensors(scorer: Scorer) -> None:
    weight = torch.ones(1, requires_grad=True)
    found = scorer.quality_map(FRAMES[0])
    tensors = [
        *scorer.crop_scores(FRAMES[0])[1:], *scorer.raw_parts(FRAMES[0])[1:], found.scores, found.shares,
        *(grid for grids in found.parts for grid in grids), scorer.score(FRAMES),
    ]  # fmt: skip
    for tensor in tensors:
        assert not tensor.is_inference()
        (weight * tensor).sum().backward()
    assert weight.grad is not None


def test_raw_parts_are_those_of_the_scores(scorer: Scorer) -> None:
    parts, raw = scorer.crop_scores(photo(150, 100)), scorer.raw_parts(photo(150, 100))
    assert parts.windows == raw.windows and torch.equal(parts.weights, raw.weights)
    assert torch.equal(scorer.calibration(raw.raw), parts.scores)
