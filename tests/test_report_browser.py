"""The report in a real browser: what is seen, at two widths, light and dark, and what keys do.

browsing.py says what it needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browsing import keep
from qmamba.analysis.report import write_report
from qmamba.scoring import Scorer
from tiny_scorer import encode, photo, tiny_config, tiny_network

WIDTHS = (400, 1200)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    for seed in range(9):
        name = f"{seed} {'a long name ' * (4 * (seed % 3))}.png"
        (folder / "more").mkdir(exist_ok=True)
        ((folder / "more" if seed > 6 else folder) / name).write_bytes(
            encode(photo(80 + 20 * (seed % 4), 110, seed))
        )
    (folder / "<b>broken.png").write_bytes(b"nothing")
    out = folder / "report.html"
    write_report(out, Scorer(tiny_network(), tiny_config()), sorted(folder.rglob("*.png")))
    return out


@pytest.fixture
def visit(browser, report) -> Iterator[Any]:
    """Opens the report; what the page complains of, or asks the network for, is an error."""
    pages, complaints = [], []

    def open_page(width: int = 1200, scheme: str = "light") -> Any:
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        pages.append(page)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: complaints.append(line.text))
        page.on("request", lambda r: r.url.startswith(("file:", "data:")) or complaints.append(r.url))
        page.goto(report.as_uri())
        return page

    yield open_page
    for page in pages:
        page.close()
    assert complaints == []


def overlaps(page: Any, selector: str) -> list[list[str]]:
    """Pairs of visible elements that lie over each other."""
    return page.evaluate(
        """selector => {
            const all = [...document.querySelectorAll(selector)].map(e => [e, e.getBoundingClientRect()])
                .filter(([e, r]) => r.width && r.height);
            return all.flatMap(([e, a], i) => all.slice(i + 1).filter(([f, b]) => !e.contains(f)
                && a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1
                && b.top < a.bottom - 1).map(([f]) => [e.textContent, f.textContent]));
        }""",
        selector,
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_and_nothing_overlaps(visit, width, scheme) -> None:
    page = visit(width, scheme)
    keep(page, f"report-{width}-{scheme}", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for selector in ("h1, h2, dt, dd, .axis span", ".card", ".card .score, .card .name", "header > *"):
        assert overlaps(page, selector) == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    assert dark == (scheme == "dark")
    page.locator(".card").first.click()
    keep(page, f"report-{width}-{scheme}-map")
    assert page.evaluate("viewer.scrollWidth <= viewer.clientWidth")
    assert overlaps(page, "dialog h2, #viewer-facts, figcaption, .limits span, dialog button") == []


def test_keys(visit) -> None:
    page = visit()

    def place() -> int:
        return page.evaluate("cards.indexOf(document.activeElement)")

    page.locator(".card").first.focus()
    page.keyboard.press("ArrowRight")
    assert place() == 1
    page.keyboard.press("ArrowDown")
    assert place() == 1 + page.evaluate("columns()")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    assert page.evaluate("viewer.open")
    page.keyboard.press("ArrowRight")
    name = page.locator("#viewer-name").text_content()
    page.keyboard.press("Escape")
    assert not page.evaluate("viewer.open") and place() == 1
    assert name == page.evaluate("cards[1].dataset.name")


def test_sorting(visit) -> None:
    page = visit()

    def shown(field: str) -> list[float]:
        return page.evaluate(f"[...document.querySelectorAll('.card')].map(c => +c.dataset.{field})")

    assert shown("score") == sorted(shown("score"), reverse=True)
    page.locator("[data-sort=score]").click()
    assert shown("score") == sorted(shown("score"))
    page.locator("[data-sort=place]").click()
    assert shown("place") == sorted(shown("place"))


def test_a_bar_filters(visit) -> None:
    page = visit()
    bar = page.evaluate("cards[0].dataset.bin")
    count = page.evaluate(f"all.filter(c => c.dataset.bin === '{bar}').length")
    page.locator(f".bin[data-bin='{bar}']").click()
    assert page.locator(".card").count() == count
    assert page.locator("#shown").text_content() == f"{count} of 9 shown"
    lines = page.evaluate("csv()").strip().split("\n")
    assert lines[0] == "path,score,reason" and len(lines) == 1 + count
    with page.expect_download() as saved:
        page.locator("#export").click()
    assert saved.value.suggested_filename == "scores.csv"
    page.locator("#clear").click()
    assert page.locator(".card").count() == 9


def test_folders_filter_and_group(visit) -> None:
    page = visit()
    page.locator("#group").click()
    assert page.locator(".folder h3").count() == 2
    first = page.locator(".folder h3").first.text_content()
    page.locator("#folder").select_option(first)
    assert page.evaluate("cards.every(c => c.dataset.folder === document.getElementById('folder').value)")
    assert 0 < page.locator(".card").count() < 9


def test_nothing_is_wasted(visit) -> None:
    """On a wide page the strips stand beside the histogram."""
    page = visit(1200)
    plot, strip = (page.locator(name).first.bounding_box() for name in (".plot", ".strip"))
    assert strip["x"] > plot["x"] + plot["width"] and strip["y"] < plot["y"] + plot["height"]


def test_the_map_is_painted(visit) -> None:
    page = visit()
    page.locator(".mini").first.click()
    colours = page.evaluate(
        """() => { const c = document.getElementById("map");
            const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
            return [c.width, c.height, new Set(new Uint32Array(d.buffer)).size]; }"""
    )
    assert max(colours[:2]) == 48 and colours[2] > 20
    assert page.locator("#middle").text_content().startswith("score 0.")


def test_the_choice_of_colours_is_kept(visit) -> None:
    page = visit(scheme="light")
    page.locator("#theme").click()
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    assert page.locator("#theme").text_content() == "Light theme"
