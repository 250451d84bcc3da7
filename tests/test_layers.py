"""The floors of the package: which room imports which, and that arrows point one way.

A room is a folder or a module of `src/qmamba`. Every import counts: also those in functions and for types.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import qmamba

PACKAGE = Path(qmamba.__file__).parent
MAXIMUM_FLOORS = 9
ENTRIES = {"__init__", "__main__"}  # what users import and start: nothing imports them but for the version


def rooms() -> dict[str, set[str]]:
    """Return the rooms that each room imports."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] in ENTRIES:
            continue
        imports = found.setdefault(parts[0], set())
        folder = ("qmamba", *parts[:-1])
        imports |= {name for name in imported(ast.parse(path.read_text("utf-8")), folder) if name != parts[0]}
    assert set().union(*found.values()) <= found.keys()
    return found


def imported(tree: ast.Module, folder: tuple[str, ...]) -> Iterator[str]:
    """Yield the rooms that a module in a folder imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = folder[: len(folder) - node.level + 1] if node.level else ()
            start += tuple((node.module or "").split(".")) if node.module else ()
            names = [(*start, alias.name) for alias in node.names]
        else:
            continue
        for name in names:
            if name[0] == "qmamba" and len(name) > 1 and is_room(name[1]):
                yield name[1]


def is_room(name: str) -> bool:
    """Return whether a name of the package is one of its modules or folders, rather than a function."""
    return (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()


def longest_chain(imports: dict[str, set[str]]) -> tuple[str, ...]:
    """Return the longest chain of rooms, each of which imports the next.

    Raises:
        AssertionError: rooms import each other in a circle.
    """
    above: list[str] = []

    @cache
    def below(room: str) -> tuple[str, ...]:
        assert room not in above, f"circle: {' → '.join((*above, room))}"
        above.append(room)
        chain = (room, *max((below(other) for other in sorted(imports[room])), key=len, default=()))
        above.pop()
        return chain

    return max((below(room) for room in sorted(imports)), key=len)


def test_the_house_has_few_floors_and_no_circles() -> None:
    chain = longest_chain(rooms())
    assert len(chain) <= MAXIMUM_FLOORS, " → ".join(chain)


def test_a_circle_and_a_chain_are_found() -> None:
    assert longest_chain({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == ("a", "b", "c")
    with pytest.raises(AssertionError, match="circle: a → b → a"):
        longest_chain({"a": {"b"}, "b": {"a"}})


@pytest.mark.parametrize(
    ("room", "allowed"),
    [
        ("errors", set()),
        ("ops", {"errors"}),
        ("images", {"errors"}),
        ("protocol", {"errors"}),
        ("preprocessing", {"errors"}),
        ("quantization", {"checks", "errors", "ops"}),
        ("models", {"errors", "ops", "preprocessing", "protocol"}),
        ("data", {"errors", "images", "toml"}),
    ],
)
def test_a_room_knows_only_what_lies_below(room: str, allowed: set[str]) -> None:
    assert rooms()[room] <= allowed


def test_only_the_command_line_knows_the_command_line() -> None:
    assert {room for room, imports in rooms().items() if "cli" in imports} == set()
