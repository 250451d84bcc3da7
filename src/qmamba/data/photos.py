"""Photographs for pretraining: read out of git repositories, cut into crops, packed into shards.

A shard is an array of crops on disk, small enough to be moved about and mapped into memory; beside them
``mos.npy`` has the rating of each crop where there is one. Repositories are read through git itself, so that
a bare clone serves as well as a checkout.
"""

from __future__ import annotations

import io
import json
import subprocess
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import RecipeError
from ..toml import parse_toml
from .ratings import Rated

CROP = 160  # pixels a side
SHARD = 768  # crops; 59 MB
SUFFIXES = (".jpg", ".jpeg", ".png")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """A repository of photographs, and which of them to take; see ``sources/photos.toml``."""

    repository: str
    include: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    commit: str = "HEAD"
    most: int | None = None
    crops: int = 1
    shrink: float = 1.3

    def takes(self, path: str) -> bool:
        """Whether a path in the repository is one of its photographs."""
        wanted = any(fnmatchcase(path, pattern) for pattern in self.include)
        return (
            wanted
            and path.lower().endswith(SUFFIXES)
            and not any(fnmatchcase(path, pattern) for pattern in self.exclude)
        )


def list_sources() -> list[Source]:
    """The repositories that the default model was pretrained on."""
    text = (resources.files("qmamba.data") / "sources" / "photos.toml").read_text(encoding="utf-8")
    return [_source(entry) for entry in parse_toml(text)["source"]]


def _source(entry: dict[str, Any]) -> Source:
    fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in entry.items()}
    return Source(**fields)


# --- git ----------------------------------------------------------------------------------------------------


def find_clone(source: Source, folder: Path) -> Path | None:
    """A clone of a repository in a folder: ``owner/name``, ``owner+name``, ``name`` or ``name.git``."""
    owner, name = source.repository.split("/")
    for place in (f"{owner}/{name}", f"{owner}+{name}", name, f"{name}.git"):
        if (folder / place).is_dir() and _git(folder / place, "rev-parse", "--git-dir", check=False):
            return folder / place
    return None


def clone(source: Source, folder: Path) -> Path:
    """The repository from GitHub, bare; only the commit that is needed.

    Raises:
        RecipeError: git is not installed, or it failed.
    """
    place = folder / source.repository.replace("/", "+")
    place.mkdir(parents=True, exist_ok=True)
    _git(place, "init", "--bare", "--quiet")
    url = f"https://github.com/{source.repository}.git"
    _git(place, "fetch", "--quiet", "--depth", "1", url, source.commit)
    fetched = _git(place, "rev-parse", "FETCH_HEAD").strip()
    _git(place, "update-ref", "--no-deref", "HEAD", fetched)
    return place


def photographs(source: Source, place: Path, seen: set[str]) -> Iterator[tuple[str, bytes]]:
    """Path and content of each photograph of a clone, in the order of their paths.

    Files that the clone does not hold, and those whose content ``seen`` has, are left out; it grows.
    """
    listing = _git(place, "ls-tree", "-r", "-z", source.commit).split("\0")
    found = sorted(
        (path, entry.split()[2]) for entry, _, path in (e.partition("\t") for e in listing) if path
    )
    chosen = _spread([item for item in found if source.takes(item[0])], source.most)
    with subprocess.Popen(
        ["git", "-C", str(place), "cat-file", "--batch"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        for path, name in chosen:
            if name in seen:
                continue
            seen.add(name)
            process.stdin.write(f"{name}\n".encode())
            process.stdin.flush()
            header = process.stdout.readline().split()
            if header[-1:] == [b"missing"] or len(header) != 3:
                continue
            content = process.stdout.read(int(header[2]) + 1)[:-1]
            yield path, content
        process.stdin.close()


def _spread(items: list[tuple[str, str]], most: int | None) -> list[tuple[str, str]]:
    if most is None or len(items) <= most:
        return items
    return [items[i * len(items) // most] for i in range(most)]


def _git(place: Path, *args: str, check: bool = True) -> str:
    try:
        result = subprocess.run(["git", "-C", str(place), *args], capture_output=True, check=check)
    except FileNotFoundError as error:
        raise RecipeError(
            "git is needed to read repositories of photographs, and is not installed"
        ) from error
    except subprocess.CalledProcessError as error:
        why = error.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no reason given"]
        raise RecipeError(f"git {args[0]} failed in {place}: {why[0]}") from error
    return result.stdout.decode("utf-8", errors="surrogateescape")


# --- crops --------------------------------------------------------------------------------------------------


def crops_of(image: Image.Image, count: int, shrink: float, rng: np.random.Generator) -> list[np.ndarray]:
    """Random crops (160, 160, 3) uint8 of a photograph, each at a scale of its own.

    A scale lies between 1 / ``shrink`` and the one at which the shorter side is a crop's, uniform in its
    logarithm; a photograph too small for that is brought to that one.
    """
    image = image.convert("RGB")
    shorter = min(image.size)
    least, most = CROP / shorter, max(1 / shrink, CROP / shorter)
    crops = []
    for _ in range(count):
        scale = float(np.exp(rng.uniform(np.log(least), np.log(most))))
        width, height = (max(CROP, round(side * scale)) for side in image.size)
        # `reducing_gap` lets a much larger picture be shrunk in two steps, for speed.
        small = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
        crops.append(_random_crop(small, rng))
    return crops


def rated_crops(image: Image.Image, rng: np.random.Generator) -> list[np.ndarray]:
    """A rated photograph three ways: all of it at 160 × 160, and a crop at half size and one at its own.

    Never enlarged, except to the size of a crop.
    """
    image = image.convert("RGB")
    views = [np.asarray(image.resize((CROP, CROP), Image.Resampling.BICUBIC, reducing_gap=3.0))]
    for shrink in (2.0, 1.0):
        scale = max(1 / shrink, CROP / min(image.size))
        width, height = (max(CROP, round(side * scale)) for side in image.size)
        sized = image.resize((width, height), Image.Resampling.BICUBIC)  # a copy where it has that size
        views.append(_random_crop(sized, rng))
    return views


def _random_crop(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    left, top = int(rng.integers(image.width - CROP + 1)), int(rng.integers(image.height - CROP + 1))
    return np.asarray(image.crop((left, top, left + CROP, top + CROP)))


# --- shards -------------------------------------------------------------------------------------------------


class _Writer:
    def __init__(self, out: Path) -> None:
        self.out, self._waiting = out, list[np.ndarray]()
        self.mos: list[float] = []
        self.shards = 0

    def add(self, crops: Iterable[np.ndarray], mos: float = float("nan")) -> None:
        for crop in crops:
            self._waiting.append(crop)
            self.mos.append(mos)
            if len(self._waiting) == SHARD:
                self.flush()

    def flush(self) -> None:
        if self._waiting:
            np.save(self.out / f"crops-{self.shards:04d}.npy", np.stack(self._waiting))
            self.shards += 1
            self._waiting = []


def pack(
    out: str | Path,
    *,
    sources: Sequence[Source] | None = None,
    clones: str | Path | None = None,
    rated: Sequence[Rated] = (),
    say: Say | None = None,
) -> Path:
    """Cut photographs into crops and write them as shards.

    Args:
        out: folder for ``crops-0000.npy`` …, each (≤ 768, 160, 160, 3) uint8, ``mos.npy``, float32 with NaN
            where there is no rating, and ``photos.json``, which says how many came from where.
        sources: repositories; :func:`list_sources` by default.
        clones: a folder with clones of them that are there already; those that are not there are an error.
            Without it they are cloned into ``out/clones``.
        rated: rated photographs to add, three crops each: only such as may be learnt from.
        say: called with a line now and then.

    Returns:
        ``out``.

    Raises:
        RecipeError: a repository cannot be had, or ``out`` holds shards already.
        OSError: a rated photograph cannot be read.
    """
    out = Path(out)
    if (out / "photos.json").exists():
        raise RecipeError(f"{out} holds shards already: choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    writer, seen, say = _Writer(out), set[str](), say or (lambda line: None)
    counts: dict[str, int] = {}
    for source in list_sources() if sources is None else sources:
        place = clone(source, out / "clones") if clones is None else find_clone(source, Path(clones))
        if place is None:
            raise RecipeError(f"no clone of {source.repository} in {clones}")
        counts[source.repository] = _pack_source(source, place, writer, seen)
        say(f"{source.repository}: {counts[source.repository]} photographs, {len(writer.mos)} crops so far")
    for r in rated:
        with Image.open(r.path) as image:
            writer.add(rated_crops(image, _rng(r.path.name)), r.mos)
    if rated:
        counts["rated"] = len(rated)
        say(f"rated: {len(rated)} photographs, {len(writer.mos)} crops in all")
    writer.flush()
    np.save(out / "mos.npy", np.asarray(writer.mos, dtype=np.float32))
    (out / "photos.json").write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
    return out


def _pack_source(source: Source, place: Path, writer: _Writer, seen: set[str]) -> int:
    count = 0
    for path, content in photographs(source, place, seen):
        try:
            with Image.open(io.BytesIO(content)) as image:
                if min(image.size) < CROP:
                    continue
                writer.add(crops_of(image, source.crops, source.shrink, _rng(f"{source.repository}/{path}")))
        except OSError:  # a broken picture among thousands
            continue
        count += 1
    return count


def _rng(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode("utf-8", errors="surrogateescape")))


class Shards:
    """The crops of a folder of shards, mapped into memory.

    Attributes:
        mos: (n,) float32, NaN where there is no rating.

    Raises:
        RecipeError: there are no shards, or they do not fit together.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        files = sorted(folder.glob("crops-*.npy"))
        if not files or not (folder / "mos.npy").is_file():
            raise RecipeError(f"no shards of photographs in {folder}: make them with qmamba photos")
        self._arrays = [np.load(file, mmap_mode="r") for file in files]
        self._starts = np.cumsum([0, *(len(a) for a in self._arrays)])
        self.mos: np.ndarray = np.load(folder / "mos.npy")
        if len(self.mos) != len(self):
            raise RecipeError(f"{folder} holds {len(self)} crops and {len(self.mos)} ratings: pack it again")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> np.ndarray:
        """Crop (160, 160, 3) uint8."""
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        crop: np.ndarray = self._arrays[shard][index - self._starts[shard]]
        return crop
