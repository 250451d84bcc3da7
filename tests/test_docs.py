"""The code of the documentation runs: every block of a page, in order, in a folder with the files it names.

A block that cannot run has a line before it that says so, `<!-- not run: why -->`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from docs_folder import made_folder
from qmamba import toml
from qmamba.cli import app
from qmamba.data import DISTORTIONS
from qmamba.version import __version__

ROOT = Path(__file__).parents[1]
PAGES = [path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *sorted(ROOT.glob("docs/*.md"))]]
NEEDS = {  # what the blocks of a page need beyond qmamba
    "README.md": ("matplotlib",),
    "docs/command-line.md": ("matplotlib",),
    "docs/data.md": ("scipy", "openpyxl", "imagehash"),
    "docs/explain.md": ("transformers", "peft"),
    "docs/integrations.md": ("torchmetrics", "datasets", "pandas", "sklearn"),
    "docs/reproducing.md": ("accelerate",),
    "docs/scale.md": ("pyarrow",),
    "docs/seeing.md": ("matplotlib",),
}
RUN = ("python", "sh")
MOST_NOT_RUN = 26
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<why>[^\n]+) -->\n)?```(?P<kind>\w*)\n(?P<code>.*?)^```$", re.M | re.S
)
FOUND = {"data check": (0, 1), "data duplicates": (0, 1)}  # exit code 1: something was found; else only 0


@dataclass(frozen=True)
class Block:
    page: str
    line: int  # of its first line of code, from 0
    kind: str
    code: str
    why: str | None  # it is not run


def blocks_of(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = [
        Block(page, text.count("\n", 0, m.start("code")), m["kind"], m["code"], m["why"])
        for m in BLOCK.finditer(text)
    ]
    assert 2 * len(found) == len(re.findall(r"^```", text, re.M)), f"{page}: a block that is not closed"
    assert len(re.findall(r"^<!-- not run", text, re.M)) == sum(b.why is not None for b in found), page
    return found


BLOCKS = {page: blocks_of(page) for page in PAGES}


def run_page(page: str) -> dict[str, Any]:
    """Run a page's blocks in the present folder as one program, and give its Python names at the end."""
    names: dict[str, Any] = {}
    for block in BLOCKS[page]:
        if block.why is not None:
            continue
        if block.kind == "python":  # with the page's own line numbers, for the traceback
            exec(compile("\n" * block.line + block.code, page, "exec"), names)
        elif block.kind == "sh":
            for line in block.code.replace("\\\n", " ").splitlines():
                run_line(line, f"{page}:{block.line + 1}: {line}")
        elif block.kind == "toml":
            assert toml.parse_toml(block.code)["name"]
    return names


def run_line(line: str, where: str) -> None:
    """One line of a shell: our commands in this process; of others, only whether there is such a thing."""
    words = list(shlex.shlex(line, posix=True, punctuation_chars="|>"))
    if not words:
        return
    if words[:2] == ["pip", "install"]:
        check_extras(line, where)
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M), where
    else:
        assert words[0] == "qmamba", f"{where}: what is not qmamba has to be marked as not run"
        arguments, out = shell_words(line)
        result = CliRunner().invoke(app, arguments)
        codes = FOUND.get(" ".join(arguments[:2]), (0,))
        assert result.exit_code in codes, f"{where}\n{result.output}\n{result.exception!r}"
        if out is not None:
            Path(out).write_text(result.stdout, encoding="utf-8")


def shell_words(line: str) -> tuple[list[str], str | None]:
    """Arguments of a command, and the file that its output goes to; what reads its output is left alone."""
    words = shlex.split(line, comments=True)[1:]
    words = words[: words.index("|")] if "|" in words else words
    if ">" in words:
        place = words.index(">")
        return words[:place], words[place + 1]
    return words, None


def check_extras(line: str, where: str) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extras in re.findall(r"\[([\w,]+)\]", line):
        for extra in extras.split(","):
            assert re.search(rf"^{extra} = \[", project, re.M), f"{where}: there is no extra {extra!r}"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_folder(tmp_path_factory.mktemp("docs"))


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fresh folder whose files are links to the prepared ones."""
    for path in sorted(prepared.rglob("*")):
        place = tmp_path / path.relative_to(prepared)
        if path.is_dir():
            place.mkdir()
        else:
            place.hardlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    known = dict(DISTORTIONS)  # a page registers one more
    yield tmp_path
    DISTORTIONS.clear()
    DISTORTIONS.update(known)


@pytest.mark.parametrize("page", [page for page in PAGES if any(b.kind in RUN for b in BLOCKS[page])])
def test_the_code_of_a_page_runs(page: str, folder: Path) -> None:
    for package in NEEDS.get(page, ()):
        pytest.importorskip(package, reason=f"{package} is not installed")
    names = run_page(page)
    if page == "docs/integrations.md":
        assert np.isnan(names["scored"]["score"][1]) and names["scored"]["score_error"][0] == ""
        assert names["df"].score.isna().tolist() == [False, False, True]
        assert len(names["model"].predict(names["df"])) == 3
    if page == "docs/seeing.md":
        assert (folder / "map.png").stat().st_size and (folder / "report.html").stat().st_size


@pytest.mark.parametrize("page", PAGES)
def test_a_reader_with_a_clone_can_install_what_a_page_says(page: str) -> None:
    """The package is on no index yet: pages install from the folder."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert not re.search(r"""pip install[^\n`]*["' ]qmamba\b""", text)


def test_little_is_not_run() -> None:
    every = [b for blocks in BLOCKS.values() for b in blocks]
    marked = [b for b in every if b.why is not None]
    assert all(b.kind in RUN for b in marked)
    assert len(marked) <= MOST_NOT_RUN
    assert len(marked) < sum(b.kind in RUN for b in every) / 3


@pytest.mark.parametrize(
    "line", ["git clone https://example.org/x", "python thing.py", "qmamba score none.jpg", "make tea"]
)
def test_what_cannot_run_does_not_pass(line: str, folder: Path) -> None:
    with pytest.raises(AssertionError):
        run_line(line, "here")


def test_the_tables_are_those_of_the_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    import make_tables

    rendered = make_tables.rendered()
    assert rendered and all(rendered.values())
    for page, tables in rendered.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        for name, table in tables.items():
            assert make_tables.replaced(text, name, table) == text, "run `make docs-figures`"


def test_the_site_links_to_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    import make_site

    monkeypatch.setenv("QMAMBA_REPOSITORY", "git@example.org:lab/qmamba.git")
    assert make_site.repository() == "https://example.org/lab/qmamba"
    text = make_site.configured("[project]\n", make_site.repository())
    assert 'repo_url = "https://example.org/lab/qmamba"' in text and f"qmamba {__version__}" in text
    monkeypatch.setenv("QMAMBA_REPOSITORY", "/srv/private.git")
    assert "repo_url" not in make_site.configured("[project]\n", make_site.repository())


def test_the_example_raises_a_score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    from improve import improve
    from PIL import Image

    from qmamba.scoring import Scorer
    from tiny_scorer import photo, tiny_config, tiny_network

    scorer, before = Scorer(tiny_network(), tiny_config()), Image.fromarray(photo(64, 64))
    after = improve(before, scorer, steps=3)
    assert after.size == before.size and scorer.score(after) > scorer.score(before)
