"""Several images at once on a CPU: the same bits in the same order, and nothing of the caller's changed."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from qmamba.errors import AdapterError, ImageError
from qmamba.ops.one_thread import can_use_one_thread
from qmamba.scoring import Scorer, parallel
from qmamba.scoring.parallel import in_order, threads_for
from tiny_scorer import encode, photo, quick_config, tiny_config, tiny_network

CPU = torch.device("cpu")
needs_openmp = pytest.mark.skipif(
    not can_use_one_thread(), reason="torch has no OpenMP library that threads could be told to use alone"
)


@pytest.fixture
def scorer() -> Scorer:
    return Scorer(tiny_network(), tiny_config())


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


class Recorder(nn.Module):
    """A network that remembers in which threads it ran, how many at once, and with how many of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.names: set[str] = set()
        self.threads: set[int] = set()
        self.now = self.most = 0
        self.lock = threading.Lock()
        self.waits = threading.Event()

    def forward(self, images: Tensor) -> Tensor:
        with self.lock:
            self.names.add(threading.current_thread().name)
            self.threads.add(torch.get_num_threads())
            self.now += 1
            self.most = max(self.most, self.now)
            if self.most == 3:
                self.waits.set()
        self.waits.wait(timeout=5)
        with self.lock:
            self.now -= 1
        return self.weight * images.mean((1, 2, 3))[:, None]


@needs_openmp
def test_images_are_scored_at_the_same_time_with_a_thread_each(three_threads: None) -> None:
    network = Recorder()
    scorer = Scorer(network, quick_config())
    images = [photo(64, 64, seed) for seed in range(9)]
    scores = scorer.score(images)
    assert network.most == 3 and network.threads == {1}
    assert all(name.startswith("qmamba-score") for name in network.names)
    assert torch.get_num_threads() == 3
    elsewhere: list[int] = []
    other = threading.Thread(target=lambda: elsewhere.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert elsewhere == [3], "a thread that starts later has the caller's number"
    assert scores.tolist() == [scorer.score(image) for image in images]


@needs_openmp
@pytest.mark.parametrize("kind", ["arrays", "bytes", "files", "iterator"])
def test_the_bits_and_the_order_are_those_of_one_thread(
    scorer: Scorer, kind: str, three_threads: None, tmp_path: Path
) -> None:
    photos = [photo(64 + 9 * (seed % 4), 150 - 20 * (seed % 3), seed) for seed in range(10)]
    images: Any = photos
    if kind == "bytes":
        images = [encode(pixels) for pixels in photos]
    elif kind == "files":
        for place, pixels in enumerate(photos):
            (tmp_path / f"{place}.png").write_bytes(encode(pixels))
        images = [tmp_path / f"{place}.png" for place in range(10)]
    at_once = scorer.score(iter(images) if kind == "iterator" else images)
    torch.set_num_threads(1)
    assert torch.equal(at_once, scorer.score(images))
    assert at_once.unique().numel() == 10


@needs_openmp
def test_a_buffer_that_an_iterator_fills_again(scorer: Scorer, three_threads: None) -> None:
    buffer = np.empty((64, 80, 3), np.uint8)

    def camera() -> Iterator[np.ndarray]:
        for seed in range(8):
            buffer[:] = photo(64, 80, seed)
            yield buffer

    assert scorer.score(camera()).tolist() == scorer.score([photo(64, 80, n) for n in range(8)]).tolist()


@needs_openmp
def test_a_bad_image_costs_its_own_row_only(scorer: Scorer, three_threads: None) -> None:
    images: list[Any] = [photo(64, 64, seed) for seed in range(8)]
    want = scorer.score(images)
    images[2], images[5] = b"not an image", "missing.jpg"
    found = [result for _, result in scorer.iter_scores(images)]
    assert [isinstance(result, ImageError) for result in found] == [n in (2, 5) for n in range(8)]
    assert all(found[n] == want[n] for n in range(8) if n not in (2, 5))
    with pytest.raises(ImageError, match="input 2") as caught:
        scorer.score(images)
    assert caught.value.scores[:2].tolist() == want[:2].tolist()  # type: ignore[attr-defined]


@needs_openmp
def test_an_error_of_the_network_is_raised(three_threads: None) -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, images: Tensor) -> Tensor:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Scorer(Broken(), quick_config()).score([photo(64, 64)] * 4)


@needs_openmp
def test_names_of_adapters_that_do_not_suffice(scorer: Scorer, three_threads: None) -> None:
    with pytest.raises(AdapterError, match="got 2 names"):
        scorer.score((photo(64, 64, n) for n in range(5)), adapters=[None, None])


@needs_openmp
def test_an_iterator_is_read_as_its_images_are_scored(three_threads: None) -> None:
    taken: list[int] = []

    def endless() -> Iterator[np.ndarray]:
        for seed in itertools.count():
            taken.append(seed)
            yield photo(64, 64, seed)

    stream = Scorer(tiny_network(), quick_config()).iter_scores(endless())
    for done in range(1, 20):
        next(stream)
        assert len(taken) <= done + 3 + 1, "three threads, and one image that waits"


def test_a_result_does_not_wait_for_the_next_image(three_threads: None) -> None:
    """Of a camera, say, whose next image comes later than the score of the one before."""
    done = threading.Event()

    def jobs() -> Iterator[Any]:
        yield lambda: 1
        yield lambda: done.set() or 2
        assert done.wait(60)
        time.sleep(0.2)
        yield lambda: pytest.fail("read before the first result was given")

    assert next(in_order(jobs(), threads=3, ahead=5)) == 1


def test_one_thread_where_somebody_follows_the_callers(scorer: Scorer, three_threads: None) -> None:
    many = 3 if can_use_one_thread() else 1
    assert threads_for(scorer, CPU, None) == many and threads_for(scorer, CPU, 2) == min(2, many)
    assert threads_for(scorer, CPU, 1) == threads_for(scorer, torch.device("cuda"), None) == 1
    handle = next(scorer.network.modules()).register_forward_hook(lambda *_: None)
    assert threads_for(scorer, CPU, None) == 1
    handle.remove()
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert threads_for(scorer, CPU, None) == 1
    handle.remove()
    with torch.device("cpu"):  # a mode of torch functions
        assert threads_for(scorer, CPU, None) == 1
    with FlopCounterMode(display=False):
        assert threads_for(scorer, CPU, None) == 1
    with torch.autograd.profiler.profile():
        assert threads_for(scorer, CPU, None) == 1
    compiled = Scorer(torch.compile(tiny_network()), tiny_config())  # type: ignore[arg-type]
    assert threads_for(compiled, CPU, None) == 1
    torch.set_num_threads(1)
    assert threads_for(scorer, CPU, None) == 1


@needs_openmp
def test_hooks_see_images_in_order(scorer: Scorer, three_threads: None) -> None:
    seen: list[float] = []
    scorer.network.register_forward_hook(lambda module, given, out: seen.append(float(given[0].mean())))
    images = [np.full((64, 64, 3), 20 * n, np.uint8) for n in range(10)]
    scorer.score(images)
    assert seen == sorted(seen) and len(seen) == 10


@needs_openmp
def test_a_thread_alone_starts_no_others() -> None:
    """Loops of torch, oneDNN and MKL, counted by the threads of the process."""
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        pytest.skip("needs Linux")
    code = """
import os, threading, torch
from qmamba.ops.one_thread import use_one_thread
from qmamba.models import create_model
torch.set_num_threads(3)
network = create_model("lqmamba-n").eval()
def count():
    return len(os.listdir("/proc/self/task"))
def work(alone):
    assert use_one_thread() if alone else torch.get_num_threads() == 3
    before = count()
    a = torch.rand(900, 900)
    with torch.inference_mode():
        (a @ a, (a + 1).exp(), torch.conv2d(torch.rand(1, 64, 64, 64), torch.rand(64, 64, 3, 3)))
        network(torch.rand(1, 3, 224, 224))
    assert (count() == before) == alone, (alone, before, count())
for alone in (True, False):
    thread = threading.Thread(target=lambda: found.append(work(alone)))
    found = []
    thread.start()
    thread.join()
    assert found
assert torch.get_num_threads() == 3
print("done")
"""
    path = os.pathsep.join([str(Path(parallel.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    assert done.stdout == "done\n", done.stderr


@needs_openmp
def test_several_callers_at_once(scorer: Scorer, three_threads: None) -> None:
    images = [photo(64, 64 + n, n) for n in range(6)]
    want = scorer.score(images)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(got, want) for got in pool.map(scorer.score, [images] * 4))


@needs_openmp
def test_a_scorer_within_a_job_uses_its_thread(scorer: Scorer, three_threads: None) -> None:
    inner = scorer.score([photo(64, 64, 1), photo(64, 64, 2)]).mean()
    found = scorer.each(
        [photo(64, 64, n) for n in range(3)],
        lambda image: scorer.score([photo(64, 64, 1), photo(64, 64, 2)]).mean(),
    )
    assert [float(each) for each in found] == [float(inner)] * 3


@needs_openmp
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_waits_for_the_images_that_are_being_scored(three_threads: None) -> None:
    """The child would inherit the locks that an operation holds at that moment."""
    released, began = threading.Event(), threading.Event()

    def slow() -> int:
        began.set()
        released.wait(30)
        time.sleep(0.2)
        return 1

    results = in_order(iter([lambda: 0, slow, lambda: 2]), threads=2, ahead=1, held=True)
    assert next(results) == 0
    assert began.wait(30)
    threading.Timer(0.1, released.set).start()
    child = os.fork()
    if child == 0:
        os._exit(0 if parallel._RUNNING.count == 0 and parallel._RUNNING.forks == 0 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert list(results) == [1, 2] and parallel._RUNNING.forks == 0


@needs_openmp
@pytest.mark.skipif(sys.platform != "linux", reason="forks safely on Linux only")
def test_a_child_forked_in_the_midst_scores_the_same(scorer: Scorer, three_threads: None) -> None:
    images = [photo(64, 64 + n, n) for n in range(6)]
    want = scorer.score(images).tolist()
    stream = scorer.iter_scores(images)
    next(stream)
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if scorer.score(images).tolist() == want else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert [score for _, score in stream] == want[1:]


@needs_openmp
def test_closing_a_stream_drops_what_waits(three_threads: None) -> None:
    started: list[int] = []
    event = threading.Event()

    def job(place: int) -> int:
        started.append(place)
        if place:
            event.wait(60)
        return place

    stream = in_order((lambda n=n: job(n) for n in itertools.count()), threads=2, ahead=4, held=True)
    assert next(stream) == 0
    began = time.monotonic()
    stream.close()  # type: ignore[attr-defined]
    assert time.monotonic() - began < 30
    event.set()
    time.sleep(0.2)
    assert len(started) <= 4


@needs_openmp
def test_ctrl_c_ends_a_long_list_soon() -> None:
    code = """
import os, signal, sys, threading, time, torch
sys.path.insert(0, {tests!r})
from tiny_scorer import photo, tiny_config, tiny_network
from qmamba.scoring import Scorer
torch.set_num_threads(2)
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in the background
scorer = Scorer(tiny_network(), tiny_config())
threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    for index, score in scorer.iter_scores(photo(200, 200, n) for n in range(10**9)):
        pass
except KeyboardInterrupt:
    print("interrupted")
"""
    path = os.pathsep.join([str(Path(parallel.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code.format(tests=str(Path(__file__).parent))],
        capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.stdout == "interrupted\n" and done.returncode == 0, done.stderr
