"""Write pip constraints that hold each dependency at its lower bound in pyproject.toml.

Run with ``python tools/lower_bounds.py [--extras A,B] [--torch VERSION] > bounds.txt``, then
``pip install --constraint bounds.txt -e ".[A,B]"``; ``make lower-bounds`` does both and runs tests. It needs
Python 3.10 or 3.11: the oldest releases have no wheels for newer ones.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
REQUIREMENT = re.compile(r'"([A-Za-z-]+)(?:\[[a-z,]+\])?>=([0-9.]+)(; [^"]*)?"')


def bounds(text: str, extras: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the lower bounds of dependencies in the text of a pyproject.toml; of several, the highest.

    Requirements of other Python versions or platforms (with a marker) are left to pip.

    >>> text = 'dependencies = [\\n  "torch>=2.5",\\n]\\nplot = ["numpy>=1.9", "tomli>=2; marker"]'
    >>> bounds(text)
    {'torch': '2.5'}
    >>> bounds(text + '\\nray = ["ray[data]>=2.40", "numpy>=1.24"]', extras=("plot", "ray"))
    {'torch': '2.5', 'numpy': '1.24', 'ray': '2.40'}
    """
    found: dict[str, str] = {}
    for name in ("dependencies", *extras):
        section = re.search(rf"^{re.escape(name)} = \[(.*?)\](?:  #.*)?$", text, re.DOTALL | re.MULTILINE)
        if section is None:
            raise SystemExit(f"pyproject.toml has no list named {name}")
        for package, version, marker in REQUIREMENT.findall(section[1]):
            if not marker and _numbers(version) > _numbers(found.get(package, "0")):
                found[package] = version
    return found


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--extras", default="", help="also those of these extras, separated by commas")
    parser.add_argument("--torch", help="version of torch in place of its lower bound")
    options = parser.parse_args()
    extras = tuple(filter(None, options.extras.split(",")))
    found = bounds((ROOT / "pyproject.toml").read_text(encoding="utf-8"), extras)
    if options.torch:
        found["torch"] = options.torch
    for name, version in found.items():
        print(f"{name}=={version}")


if __name__ == "__main__":
    main()
