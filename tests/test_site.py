"""The site that `make docs` has built: its links, and what a reader sees at two widths, light and dark."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from browsing import keep
from qmamba.version import __version__

SITE = Path(os.environ.get("QMAMBA_SITE", Path(__file__).parents[1] / "site"))
PAGES = sorted(path.name for path in SITE.glob("*.html"))
pytestmark = pytest.mark.skipif(not PAGES, reason="there is no site; `make docs` builds it")


class Links(HTMLParser):
    """What a page links to and loads, and the places in it that can be linked to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.places: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.targets.append(value)
            elif name in ("id", "name") and value:
                self.places.add(value)


def test_every_link_leads_somewhere() -> None:
    pages = {name: Links(SITE / name) for name in PAGES}
    dead = []
    for name, page in pages.items():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc or name == "404.html":
                continue
            file = SITE / (unquote(parts.path) or name)
            place = unquote(parts.fragment)
            known = pages[file.name].places if file.suffix == ".html" and file.parent == SITE else {place}
            if not file.exists() or (place and place not in known):
                dead.append((name, target))
    assert dead == []


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of the site, on this machine: its search is a worker, which browsers do not start from a disk."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Any]:
    """Opens pages; what one of them complains of, or asks another machine for, is an error."""
    contexts, complaints = [], []

    def make_reader(width: int, scheme: str) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append((page.url, str(error))))
        page.on("console", lambda m: m.type == "error" and complaints.append((page.url, m.text)))
        local = (address, "data:", "blob:")
        page.on("request", lambda request: request.url.startswith(local) or complaints.append(request.url))
        return page

    yield make_reader
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_pages_fit_and_are_whole(visit: Any, address: str, width: int, scheme: str) -> None:
    page, wrong = visit(width, scheme), []
    for name in PAGES:
        page.goto(address + name)
        keep(page, f"site-{name.removesuffix('.html')}-{width}-{scheme}", full_page=True)
        seen = page.evaluate(
            """() => ({
                wide: document.documentElement.scrollWidth - innerWidth,
                absent: [...document.images].filter(i => !i.naturalWidth).map(i => i.src),
                cut: [...document.querySelectorAll("article img")]
                    .filter(i => i.getBoundingClientRect().right > innerWidth).map(i => i.src),
            })"""
        )
        if seen["wide"] > 0 or seen["absent"] or seen["cut"]:
            wrong.append((name, seen))
    assert wrong == []


@pytest.mark.parametrize(("scheme", "shown"), [("light", "only-light"), ("dark", "only-dark")])
def test_figures_are_of_the_readers_colours(visit: Any, address: str, scheme: str, shown: str) -> None:
    page, seen = visit(1280, scheme), set()
    for name in ("index.html", "seeing.html", "distortions.html", "loss.html", "speed.html"):
        page.goto(address + name)
        figures = page.evaluate(
            """() => [...document.querySelectorAll("article img[src*='#only-']")]
                .filter(i => i.getBoundingClientRect().width).map(i => i.src)"""
        )
        assert figures and all(source.endswith(f"#{shown}") for source in figures)
        seen |= {source.split("/")[-1].split(".")[0].removesuffix("-dark") for source in figures}
    assert seen == {"strip", "map", "distortions", "ascent", "speed"}


def test_every_page_has_the_version() -> None:
    for name in PAGES:
        assert f"qmamba {__version__}" in (SITE / name).read_text(encoding="utf-8"), name


def test_tables_can_be_read_on_a_telephone(visit: Any, address: str) -> None:
    """A table fits the page or scrolls by itself; lines hold words, and letters are not shrunk."""
    page, wrong = visit(390, "light"), []
    for name in PAGES:
        page.goto(address + name)
        wrong += page.evaluate(
            """name => [...document.querySelectorAll("article table:not([class])")].flatMap(table => {
                const box = table.getBoundingClientRect(), outer = table.parentElement;
                const scrolls = ["auto", "scroll"].some(
                    o => getComputedStyle(outer).overflowX === o
                        || getComputedStyle(outer.parentElement).overflowX === o);
                const narrow = [...table.querySelectorAll("td")].filter(
                    cell => cell.textContent.trim().length > 40 && cell.clientWidth < 80).length;
                const small = parseFloat(getComputedStyle(table).fontSize) < 11;
                return (box.right > innerWidth && !scrolls) || narrow || small
                    ? [[name, table.rows[0].textContent.trim().slice(0, 60), narrow, small]] : [];
            })""",
            name,
        )
    assert wrong == []


def test_the_search_finds(visit: Any, address: str) -> None:
    page = visit(1280, "light")
    page.goto(address + "index.html")
    page.locator(".md-search__button").click()
    page.locator("input:visible").fill("StylePrompt")
    page.get_by_text(re.compile(r"^[1-9]\d* results$")).wait_for()
    keep(page, "site-search")
