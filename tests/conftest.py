"""What several test files share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from browsing import started
from qmamba.ops import native
from qmamba.ops.native import build

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    return DATA


@pytest.fixture(scope="session")
def library_folder(tmp_path_factory):
    """The native library's folder: in place if it is newer than its source, else built for the tests."""
    sources = [path for path in build.HERE.iterdir() if path.suffix in (".c", ".h")]
    built = build.HERE / build.LIBRARY
    if built.is_file() and built.stat().st_mtime >= max(p.stat().st_mtime for p in sources):
        return build.HERE
    if build.compiler() is None:
        pytest.skip("the native library is not built and there is no C compiler")
    return build.build(tmp_path_factory.mktemp("native")).parent


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
