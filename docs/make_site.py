"""Build the documentation's site into site/: `make docs`.

The pages are gathered in build/pages: those of docs/, and a few that lie elsewhere because that is where
people look for them in a repository. On the way their links are turned: to a page that was gathered, to its
new place; to any other file of the repository, to a copy of it. So the same text reads well in the repository
and on the site, and a link to nothing ends the build, as every warning of the site's generator does.

The foot of each page has the version, and its head a link to the repository, if git knows a public address of
it (the remote `origin`, or the environment variable QMAMBA_REPOSITORY).

    python docs/make_site.py  # Python 3.11 or newer, with pip install "qmamba[docs]"
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import tomllib

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = ROOT / "build" / "pages"
ELSEWHERE = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "src/qmamba/weights/lqmamba-n/README.md": "lqmamba-n.md",
}
CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)\s#]+)")
IMAGE = re.compile(r"!\[([^\]]*)\]\(assets/([\w-]+)\.(\w+)\)")
NESTED = re.compile(r"^(  |    )(?=- )", re.MULTILINE)  # the generator wants four spaces for each level
FRONT_MATTER = re.compile(r"\A---\n.*?^---\n", re.MULTILINE | re.DOTALL)


def main() -> None:
    pages = gathered()
    shutil.rmtree(PAGES, ignore_errors=True)
    for source, place in pages.items():
        text = turned(source, pages)
        (PAGES / place).parent.mkdir(parents=True, exist_ok=True)
        (PAGES / place).write_text(text, encoding="utf-8")
    shutil.copytree(DOCS / "assets", PAGES / "assets", dirs_exist_ok=True)
    check_navigation(set(pages.values()))
    # Beside zensical.toml, since paths in it are relative to it.
    with tempfile.NamedTemporaryFile("w", suffix=".toml", dir=ROOT, prefix=".site-", delete=False) as file:
        file.write(configured((ROOT / "zensical.toml").read_text(encoding="utf-8"), repository()))
    try:
        generator = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "-f", file.name]
        code = subprocess.run(generator, cwd=ROOT, check=False).returncode
    finally:
        Path(file.name).unlink()
    sys.exit(code)


def repository() -> str:
    """Return the public address of the repository, or an empty string."""
    command = ["git", "remote", "get-url", "origin"]
    try:
        known = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git
        known = ""
    address = os.environ.get("QMAMBA_REPOSITORY", known)
    address = re.sub(r"^git@([^:]+):", r"https://\1/", address).removesuffix(".git")
    return address if address.startswith("https://") and "@" not in address else ""


def configured(text: str, address: str) -> str:
    """Return zensical.toml with the version, and with a link to the repository if its address is known."""
    version = re.search(r'__version__ = "([^"]+)"', (ROOT / "src/qmamba/version.py").read_text())[1]
    lines = [f'copyright = "qmamba {version}"']
    if address:
        lines = [f'repo_url = "{address}"', f'repo_name = "{"/".join(address.split("/")[-2:])}"', *lines]
    else:
        print("no link to the repository: git knows no public address of it")
    return text.replace("[project]", "\n".join(["[project]", *lines]), 1)


def gathered() -> dict[Path, str]:
    """Where each page lies in the repository, and on the site."""
    pages = {path: path.name for path in sorted(DOCS.glob("*.md"))}
    return pages | {ROOT / path: place for path, place in ELSEWHERE.items()}


def turned(source: Path, pages: dict[Path, str]) -> str:
    """A page's text with its links turned; code is left alone."""

    def turn(found: re.Match[str]) -> str:
        target = Path(os.path.normpath(source.parent / found[2]))
        if target in pages:
            return found[1] + pages[target]
        if DOCS / "assets" in target.parents and target.is_file():
            return found[1] + target.relative_to(DOCS).as_posix()
        if not target.is_file() or ROOT not in target.parents:
            sys.exit(f"{source.relative_to(ROOT)}: the link to {found[2]} leads to no file of the repository")
        copy = Path("files") / target.relative_to(ROOT)
        (PAGES / copy).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(target, PAGES / copy)
        return found[1] + copy.as_posix()

    text = NESTED.sub(r"\1\1", FRONT_MATTER.sub("", source.read_text(encoding="utf-8")))
    parts = CODE.split(text)
    return "".join(
        part if part.startswith("`") else IMAGE.sub(for_both_colours, LINK.sub(turn, part)) for part in parts
    )


def for_both_colours(found: re.Match[str]) -> str:
    """An image followed by its twin on dark paper, if it has one; site.css shows one of them."""
    alt, name, kind = found.groups()
    if not (DOCS / "assets" / f"{name}-dark.{kind}").is_file():
        return found[0]
    return f"![{alt}](assets/{name}.{kind}#only-light) ![{alt}](assets/{name}-dark.{kind}#only-dark)"


def check_navigation(places: set[str]) -> None:
    """Every page is in the navigation, and nothing else: the generator passes over both mistakes."""
    project = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
    named = set(_leaves(project["nav"]))
    if named != places:
        sys.exit(f"zensical.toml: nav and pages differ in {', '.join(sorted(named ^ places))}")


def _leaves(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [leaf for entry in nav for leaf in _leaves(entry.values() if isinstance(entry, dict) else entry)]


if __name__ == "__main__":
    main()
