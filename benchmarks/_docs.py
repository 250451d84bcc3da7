"""Parts of documentation pages that scripts write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def replace_part(page: str, name: str, text: str) -> None:
    """Put a text between a page's marks ``<!-- name -->`` and ``<!-- end of name -->``."""
    path, begin, end = DOCS / page, f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, rest = path.read_text(encoding="utf-8").split(begin)
    path.write_text(f"{before}{begin}{text.rstrip()}\n{end}{rest.split(end)[1]}", encoding="utf-8")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first column is text, the others are numbers."""
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
