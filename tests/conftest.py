"""What several test files share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from browsing import started
from hub_client import Client
from hub_server import LocalHub
from qmamba.ops import native
from qmamba.ops.native import build

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    return DATA


def pytest_configure(config: pytest.Config) -> None:
    """Test what an installation has: the native kernel, in place, wherever it can be built."""
    if hasattr(config, "workerinput"):  # done by the process that started this one
        return
    in_a_checkout = (build.HERE.parents[3] / "pyproject.toml").is_file()
    if in_a_checkout and os.environ.get("QMAMBA_NATIVE") != "0" and not build.is_current():
        try:
            build.build()
        except build.BuildError as error:
            print(f"no native kernel in these tests: {error}")
    if not native.available():
        os.environ.setdefault("QMAMBA_BACKEND", "torch")  # or commands would say what is missing


@pytest.fixture(scope="session")
def library_folder() -> Path:
    """The native library's folder."""
    if not native.available():
        pytest.skip("the native kernel is not built, and there is no C compiler")
    return build.HERE


@pytest.fixture
def library(library_folder, monkeypatch):
    """The native library, in use unless a test says otherwise."""
    monkeypatch.setattr(native, "FOLDER", library_folder)
    monkeypatch.delenv("QMAMBA_NATIVE_ISA", raising=False)
    monkeypatch.delenv("QMAMBA_BACKEND", raising=False)
    return native.load()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from started()


@pytest.fixture
def threads():
    """Sets torch's number of threads; puts it back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def poisoned():
    """New memory is full of NaN, so that what is never written shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # with torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def fresh_graphs() -> Iterator[None]:
    """A compiler that has seen nothing, and is forgotten afterwards."""
    if getattr(torch.compiler, "is_exporting", None) is None:
        pytest.skip("torch before 2.7: no operators")
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def server() -> Iterator[LocalHub]:
    with LocalHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def worker(server: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Another process with a Hub client and a cache of its own."""
    client = Client(server.url, tmp_path_factory.mktemp("hub") / "cache")
    yield client
    client.close()


@pytest.fixture
def hub(server: LocalHub) -> LocalHub:
    """The local Hub, empty."""
    server.reset()
    return server


@pytest.fixture
def client(worker: Client) -> Client:
    """The other process, with an empty cache and no variables of this library's."""
    shutil.rmtree(worker.cache, ignore_errors=True)
    worker("import os\nfor name in ('QMAMBA_INDEX', 'QMAMBA_HUB_USER', 'HF_TOKEN'): os.environ.pop(name, '')")
    return worker
