"""The code of documentation pages runs: block after block, in a folder with the files that they speak of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tiny_scorer import photo

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {"integrations.md": ("torchmetrics", "datasets", "pandas", "sklearn")}
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run_page(page: Path) -> dict[str, Any]:
    """Run a page's blocks in the present folder as one program, and give its names at the end."""
    text = page.read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == text.count("```python")
    names: dict[str, Any] = {}
    for block in blocks:
        line = text.count("\n", 0, block.start(1))
        # With the page's own line numbers, for the traceback.
        exec(compile("\n" * line + block.group(1), str(page), "exec"), names)
    return names


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(photo(96, 128)).save(tmp_path / "photo.jpg")
    Image.fromarray(photo(128, 96, 1)).save(tmp_path / "other.png")
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "photo.jpg").read_bytes()[:100])
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page: str, files: None) -> None:
    for package in PAGES[page]:
        pytest.importorskip(package, reason=f"{package} is not installed")
    names = run_page(DOCS / page)
    if page == "integrations.md":
        assert np.isnan(names["rows"]["score"][1]) and names["rows"]["score_error"][0] == ""
        assert names["df"].score.isna().tolist() == [False, False, True]
        assert len(names["model"].predict(names["df"])) == 3


def test_the_example_raises_a_score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS.parent / "examples")
    from improve import improve

    from qmamba.scorer import Scorer
    from tiny_scorer import tiny_config, tiny_network

    scorer, before = Scorer(tiny_network(), tiny_config()), Image.fromarray(photo(64, 64))
    after = improve(before, scorer, steps=3)
    assert after.size == before.size and scorer.score(after) > scorer.score(before)
