"""Write pip constraints that hold each dependency at its lower bound in pyproject.toml.

Run with ``python tools/lower_bounds.py [--torch VERSION] > bounds.txt``, then
``pip install --constraint bounds.txt -e .``; ``make lower-bounds`` does both and runs tests. It needs Python
3.10 or 3.11: the oldest releases have no wheels for newer ones.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def bounds(text: str) -> dict[str, str]:
    """Return the lower bound of each dependency in the text of a pyproject.toml.

    >>> bounds('dependencies = [\\n  "torch>=2.5",\\n  "numpy>=1.24",\\n]')
    {'torch': '2.5', 'numpy': '1.24'}
    """
    section = re.search(r"^dependencies = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE)
    if section is None:
        raise SystemExit("pyproject.toml has no list of dependencies")
    return dict(re.findall(r'"([a-z-]+)>=([0-9.]+)(?:;[^"]*)?"', section[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", help="version of torch in place of its lower bound")
    options = parser.parse_args()
    found = bounds((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    if options.torch:
        found["torch"] = options.torch
    for name, version in found.items():
        print(f"{name}=={version}")


if __name__ == "__main__":
    main()
