"""A page about a folder: whole, safe whatever files are called, and the same every time."""

from __future__ import annotations

import base64
import io
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from qmamba.analysis.report import BINS, THUMBNAIL, Summary, _histogram, write_report
from qmamba.cli import app
from qmamba.scoring import Scorer
from tiny_scorer import encode, photo, tiny_config, tiny_network

NASTY = """<script>alert('1')<!-- & "q" {{errors}} $title.png"""
VOID = {"meta", "img"}


class Page(HTMLParser):
    """What a browser makes of a page; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data

    def of(self, tag: str, name: str | None = None) -> list[dict[str, str | None]]:
        return [a for t, a in self.elements if t == tag and (name is None or a.get("class") == name)]


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(tiny_network(), tiny_config())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of several sizes, one of 16 bits, one broken."""
    where = tmp_path / "photos"
    where.mkdir()
    for seed, size in enumerate(((64, 90), (120, 70), (500, 900))):
        (where / f"{seed}.png").write_bytes(encode(photo(*size, seed)))
    Image.fromarray((photo(70, 80)[..., 0].astype(np.uint16)) * 257).save(where / "deep.png")
    (where / "z.jpg").write_bytes(b"no photograph <b>")
    return where


def paths(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_a_card_for_each_image(scorer, folder, tmp_path) -> None:
    out, steps = tmp_path / "report.html", []
    summary = write_report(out, scorer, paths(folder), done=lambda: steps.append(1))
    assert summary == Summary(scored=4, failed=1) and len(steps) == 5
    page = Page(out.read_text("utf-8"))
    cards = page.of("button", "card")
    assert [Path(card["data-name"]).name for card in cards] == ["0.png", "1.png", "2.png", "deep.png"]
    for card, path in zip(cards, paths(folder), strict=False):
        assert float(card["data-score"]) == pytest.approx(scorer.score(path), abs=1e-6)
        assert card["data-reason"] == scorer.explain(path).reason
    assert [card["data-size"] for card in cards] == ["90 × 64", "70 × 120", "900 × 500", "80 × 70"]
    assert "z.jpg" in page.text and "Not scored: 1" in page.text and "not an image" in page.text
    assert "tensor:" not in page.text


def test_pictures_are_small_and_inside(scorer, folder, tmp_path) -> None:
    out = tmp_path / "report.html"
    write_report(out, scorer, paths(folder))
    text = out.read_text("utf-8")
    sources = [a["src"] for a in Page(text).of("img") if a.get("src")]
    assert len(sources) == 4
    for source in sources:
        kind, data = source.split(",")
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert kind == "data:image/jpeg;base64" and max(image.size) <= THUMBNAIL
    assert not re.search(r"https?:|src=\"(?!data:)|@import|url\(|<link", text)
    assert "default-src 'none'" in text
    assert list(tmp_path.glob("*.part")) == []


def test_the_map_in_a_card_is_the_image_s_map(scorer, folder, tmp_path) -> None:
    out = tmp_path / "report.html"
    write_report(out, scorer, paths(folder)[:1])
    columns, rows, low, high, data = Page(out.read_text("utf-8")).of("button", "card")[0]["data-map"].split()
    levels = np.frombuffer(base64.b64decode(data), np.uint8).reshape(int(rows), int(columns))
    found = scorer.quality_map(paths(folder)[0])
    assert levels.min() > 0 and (int(columns), int(rows)) == (48, 34)
    values = float(low) + (levels - 1.0) / 254 * (float(high) - float(low))
    np.testing.assert_allclose(values, found.coarse(), atol=(float(high) - float(low)) / 250)
    assert (float(low) + float(high)) / 2 == pytest.approx(found.score, abs=1e-4)


def test_histogram_and_strips(scorer, folder, tmp_path) -> None:
    out = tmp_path / "report.html"
    write_report(out, scorer, paths(folder))
    page = Page(out.read_text("utf-8"))
    assert len(page.of("rect", "bar-of-bin")) == len(page.of("g", "bin")) == BINS
    counts = [int(n) for n in re.findall(r">\d\.\d\d to \d\.\d\d: (\d+)<", out.read_text("utf-8"))]
    scores = [float(card["data-score"]) for card in page.of("button", "card")]
    assert counts == np.histogram(scores, BINS, (0, 1))[0].tolist()
    strips = [a["data-for"] for a in page.of("button", "mini")]
    by_score = [f"image-{place}" for place in np.argsort(scores)]
    assert strips == by_score[:2] + by_score[:1:-1]


def test_each_card_knows_its_bar_and_its_folder(scorer, folder, tmp_path) -> None:
    """What the page filters and groups by."""
    (folder / "more").mkdir()
    (folder / "0.png").rename(folder / "more" / "0.png")
    out = tmp_path / "report.html"
    write_report(out, scorer, sorted(folder.rglob("*.png")))
    text = out.read_text("utf-8")
    page, counts = Page(text), [int(n) for n in re.findall(r">\d\.\d\d to \d\.\d\d: (\d+)<", text)]
    cards = page.of("button", "card")
    assert [sum(c["data-bin"] == str(i) for c in cards) for i in range(BINS)] == counts
    assert [bar["data-bin"] for bar in page.of("g", "bin")] == [str(i) for i in range(BINS)]
    assert sorted(Path(c["data-folder"]).name for c in cards) == ["more"] + ["photos"] * 3
    for card in cards:
        low, high = (int(card["data-bin"]) + end for end in (0, 1))
        assert low / BINS <= float(card["data-score"]) <= high / BINS


def test_the_count_axis(scorer) -> None:
    """Its top is the tallest bar, or one more where half of it would be no whole number."""
    for scores, labels in (([0.5] * 3, ["4", "2", "0"]), ([0.5], ["1", "0"]), ([], ["1", "0"])):
        drawing, counts = _histogram(scores, 0.0, 1.0)
        assert re.findall(r"<span>(\d+)</span>", counts) == labels
        heights = [float(bar["height"]) for bar in Page(drawing).of("rect", "bar-of-bin")]
        assert max(heights) == (100 * len(scores) / int(labels[0]))


def test_the_script_uses_only_what_the_page_has(scorer, folder, tmp_path) -> None:
    out = tmp_path / "report.html"
    write_report(out, scorer, paths(folder))
    text = out.read_text("utf-8")
    ids = {a["id"] for _, a in Page(text).elements if a.get("id")}
    used = set(re.findall(r'byId\("([a-z-]+)"\)', text))
    assert {"folder", "folders", "group", "clear", "export", "shown"} <= used <= ids


@pytest.mark.skipif(os.name != "posix", reason="such names are for POSIX systems")
def test_no_name_can_break_the_page(scorer, tmp_path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    names = [NASTY.encode(), b"two\nlines.png", b'"><img src=x onerror=alert(1)>.png', "é 写真.png".encode()]
    for seed, name in enumerate(names):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(encode(photo(64, 64, seed)))
    try:
        Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).write_bytes(b"nothing")
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    out = tmp_path / "report.html"
    summary = write_report(out, scorer, paths(folder), title=NASTY)
    assert summary == Summary(4, 1)
    page = Page(out.read_text("utf-8"))
    assert len(page.of("script")) == 1 and not any("onerror" in a for _, a in page.elements)
    shown = [card["data-name"] for card in page.of("button", "card")]
    assert any(name.endswith(NASTY) for name in shown) and any("写真" in name for name in shown)
    assert any(r"two\nlines.png" in name for name in shown) and r"\udcff.png" in page.text
    assert page.text.count(NASTY) >= 2  # the title, and the name below its picture


def test_the_same_page_again(scorer, folder, tmp_path) -> None:
    first, repeated = tmp_path / "1.html", tmp_path / "2.html"
    write_report(first, scorer, paths(folder))
    write_report(repeated, scorer, paths(folder))
    assert first.read_bytes() == repeated.read_bytes()


def test_nothing_but_errors(scorer, folder, tmp_path) -> None:
    out = tmp_path / "report.html"
    assert write_report(out, scorer, [folder / "z.jpg", folder / "none.png"]) == Summary(0, 2)
    page = Page(out.read_text("utf-8"))
    assert page.of("button", "card") == [] and "no such file" in page.text


def test_a_report_that_fails_leaves_the_old_one(scorer, folder, tmp_path) -> None:
    out = tmp_path / "report.html"
    out.write_text("old")

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_report(out, scorer, paths(folder), done=stop)
    assert out.read_text() == "old" and [p.name for p in tmp_path.glob("report*")] == ["report.html"]


def test_the_command(scorer, folder, tmp_path) -> None:
    scorer.save_pretrained(tmp_path / "model")
    out = tmp_path / "report.html"
    arguments = ["report", str(folder), "-o", str(out), "-m", str(tmp_path / "model")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1 and done.stdout == f"{out}\n"
    assert done.stderr == "qmamba: 1 of 5 images could not be scored; the page says why\n"
    assert len(Page(out.read_text("utf-8")).of("button", "card")) == 4
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2 and "--force" in refused.stderr
    (folder / "z.jpg").unlink()
    done = CliRunner().invoke(app, [*arguments, "--force", "--progress", "--title", "Mine"])
    assert done.exit_code == 0 and "/4 images [" in done.stderr
    assert "Mine" in Page(out.read_text("utf-8")).text
