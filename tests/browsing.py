"""Pages in a real browser, and pictures of them.

It needs playwright (the extra `browser`) and a Chromium: playwright's own, one on the PATH, or the program
that QMAMBA_CHROMIUM names. Screenshots are kept in the folder QMAMBA_SCREENSHOTS, if it is set.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def started() -> Iterator[Any]:
    """A Chromium, ended afterwards; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    program = os.environ.get("QMAMBA_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    with playwright.sync_playwright() as driver:
        try:
            made = driver.chromium.launch(
                executable_path=program,
                args=["--no-sandbox", "--headless=old", "--disable-gpu", "--disable-dev-shm-usage"],
            )
        except playwright.Error as error:
            pytest.skip(f"no Chromium can be started: {str(error).splitlines()[0]}")
        yield made
        made.close()


def keep(page: Any, name: str, **options: Any) -> None:
    """Keep a screenshot, if a folder for them is named."""
    if folder := os.environ.get("QMAMBA_SCREENSHOTS"):
        page.screenshot(path=Path(folder, f"{name}.png"), **options)
