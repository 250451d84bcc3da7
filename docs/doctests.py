"""For the site: examples in docstrings as blocks of code. Markdown would take their >>> for quotations."""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^( *)(>>> .*(?:\n *\S.*)*)$", re.MULTILINE)


class Doctests(griffe.Extension):
    """Puts a fence around each example, up to the next empty line."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(r"\1```pycon\n\1\2\n\1```", obj.docstring.value)
