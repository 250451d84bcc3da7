"""The site that `make docs` has built: its links, and what a reader sees at two widths, light and dark."""

from __future__ import annotations

import os
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from browsing import keep

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


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    """Opens pages; what one of them complains of, or asks the network for, is an error."""
    contexts, complaints = [], []

    def make_reader(width: int, scheme: str) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append((page.url, str(error))))
        page.on("console", lambda m: m.type == "error" and complaints.append((page.url, m.text)))
        page.on(
            "request", lambda r: r.url.startswith(("file:", "data:", "blob:")) or complaints.append(r.url)
        )
        return page

    yield make_reader
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_pages_fit_and_are_whole(visit: Any, width: int, scheme: str) -> None:
    page, wrong = visit(width, scheme), []
    for name in PAGES:
        page.goto((SITE / name).as_uri())
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
