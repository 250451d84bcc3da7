"""`python -m qmamba`: the same as the `qmamba` command."""

from __future__ import annotations

from qmamba.cli import main

if __name__ == "__main__":
    main()
