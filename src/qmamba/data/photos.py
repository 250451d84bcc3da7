"""Prepare photographs for pretraining: read git repositories, cut crops, pack shards.

A shard is an array of crops on disk that can be mapped into memory; ``mos.npy`` has the rating of each crop,
or NaN. Repositories are read through git, so that bare clones work too.
"""

from __future__ import annotations

import io
import json
import math
import subprocess
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import RecipeError
from ..toml import from_table, parse_toml
from .ratings import Rated

CROP = 160  # side of a crop, in pixels
RATED_SIDES = (224, 480)  # rated images are cut at scales at which they have as many pixels as these squares
RATED_CROPS = 6000  # of a rated set, as far as the next two allow
LEAST_CROPS, MOST_CROPS = 3, 24  # of a rated image
SHARD = 768  # crops per shard; 59 MB
SUFFIXES = (".jpg", ".jpeg", ".png")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """A repository of photographs, and rules that select them; see ``sources/photos.toml``."""

    repository: str
    include: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    commit: str = "HEAD"
    limit: int | None = None
    crops: int = 1
    shrink: float = 1.3

    def takes(self, path: str) -> bool:
        """Return whether a path in the repository is a selected photograph."""
        wanted = any(fnmatchcase(path, pattern) for pattern in self.include)
        return (
            wanted
            and path.lower().endswith(SUFFIXES)
            and not any(fnmatchcase(path, pattern) for pattern in self.exclude)
        )


def list_sources() -> list[Source]:
    """Return the repositories that the default model was pretrained on."""
    text = (resources.files("qmamba.data") / "sources" / "photos.toml").read_text(encoding="utf-8")
    return [from_table(Source, table, "photos.toml") for table in parse_toml(text)["source"]]


# --- git ----------------------------------------------------------------------------------------------------


def find_clone(source: Source, folder: Path) -> Path | None:
    """Return a repository's clone in a folder: ``owner/name``, ``owner+name``, ``name`` or ``name.git``."""
    owner, name = source.repository.split("/")
    for place in (f"{owner}/{name}", f"{owner}+{name}", name, f"{name}.git"):
        if (folder / place).is_dir() and _git(folder / place, "rev-parse", "--git-dir", check=False):
            return folder / place
    return None


def clone(source: Source, folder: Path) -> Path:
    """Clone a repository from GitHub, bare, with a single commit.

    Raises:
        RecipeError: git is not installed, or failed.
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
    """Yield path and content of each photograph of a clone, sorted by path.

    Files missing from the clone, and contents in ``seen``, are skipped; new contents are added to ``seen``.
    """
    listing = _git(place, "ls-tree", "-r", "-z", source.commit).split("\0")
    found = sorted(
        (path, entry.split()[2]) for entry, _, path in (e.partition("\t") for e in listing) if path
    )
    chosen = _spread([item for item in found if source.takes(item[0])], source.limit)
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


def _spread(items: list[tuple[str, str]], limit: int | None) -> list[tuple[str, str]]:
    if limit is None or len(items) <= limit:
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def _git(place: Path, *args: str, check: bool = True) -> str:
    try:
        result = subprocess.run(["git", "-C", str(place), *args], capture_output=True, check=check)
    except FileNotFoundError as error:
        raise RecipeError("reading repositories of photographs needs git; install it") from error
    except subprocess.CalledProcessError as error:
        why = error.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no reason given"]
        raise RecipeError(f"git {args[0]} failed in {place}: {why[0]}") from error
    return result.stdout.decode("utf-8", errors="surrogateescape")


# --- crops --------------------------------------------------------------------------------------------------


def crops_of(image: Image.Image, count: int, shrink: float, rng: np.random.Generator) -> list[np.ndarray]:
    """Return random crops (160, 160, 3) uint8 of a photograph, each at a random scale.

    The scale is log-uniform between 1 / ``shrink`` and the scale at which the shorter side is a crop's; a
    photograph that is too small is resized to the latter.
    """
    smallest = CROP / min(image.size)
    return _crops_between(image, count, smallest, max(1 / shrink, smallest), rng)


def rated_crops(image: Image.Image, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return random crops (160, 160, 3) uint8 of a rated image, each at a random scale.

    The scale is log-uniform between those at which the image has as many pixels as squares of
    :data:`RATED_SIDES`, the range that quality is judged in. An image is enlarged where it must be.
    """
    side = math.sqrt(image.width * image.height)
    smallest, largest = (max(each / side, CROP / min(image.size)) for each in RATED_SIDES)
    return _crops_between(image, count, smallest, largest, rng)


def _crops_between(
    image: Image.Image, count: int, smallest: float, largest: float, rng: np.random.Generator
) -> list[np.ndarray]:
    """Return random crops, each at a scale that is log-uniform between two."""
    image = image.convert("RGB")
    crops = []
    for _ in range(count):
        scale = float(np.exp(rng.uniform(np.log(smallest), np.log(largest))))
        width, height = (max(CROP, round(side * scale)) for side in image.size)
        # `reducing_gap` shrinks much larger pictures in two steps, for speed.
        small = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
        crops.append(_random_crop(small, rng))
    return crops


def _random_crop(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    left, top = int(rng.integers(image.width - CROP + 1)), int(rng.integers(image.height - CROP + 1))
    return np.asarray(image.crop((left, top, left + CROP, top + CROP)))


# --- shards -------------------------------------------------------------------------------------------------


class _Writer:
    def __init__(self, out: Path) -> None:
        self.out, self._waiting = out, list[np.ndarray]()
        self.mos: list[float] = []
        self.sets: list[int] = []
        self.shards = 0

    def add(self, crops: Iterable[np.ndarray], mos: float = float("nan"), of: int = -1) -> None:
        for crop in crops:
            self._waiting.append(crop)
            self.mos.append(mos)
            self.sets.append(of)
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
            for unrated crops, ``sets.npy``, int16, the index of the set that rated them or -1, and
            ``photos.json``, the number of photographs of each source, those of rated sets as ``rated NAME``.
        sources: repositories; by default :func:`list_sources`.
        clones: folder with clones of all repositories; by default they are cloned into ``out/clones``.
        rated: rated images to add, of one or more sets (``Rated.set``); pass training images only. The crops
            of an image are more the fewer images its set has: about 6,000 a set, 3 to 24 an image.
        say: called with lines of progress.

    Returns:
        ``out``.

    Raises:
        RecipeError: a repository cannot be cloned or found, or ``out`` holds shards already.
        OSError: a rated photograph cannot be read.
    """
    out = Path(out)
    if (out / "photos.json").exists():
        raise RecipeError(f"{out} holds shards already; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    writer, seen, say = _Writer(out), set[str](), say or (lambda line: None)
    counts: dict[str, int] = {}
    for source in list_sources() if sources is None else sources:
        place = clone(source, out / "clones") if clones is None else find_clone(source, Path(clones))
        if place is None:
            raise RecipeError(f"no clone of {source.repository} in {clones}; clone it there")
        counts[source.repository] = _pack_source(source, place, writer, seen)
        say(f"{source.repository}: {counts[source.repository]} photographs, {len(writer.mos)} crops so far")
    for index, name in enumerate(dict.fromkeys(r.set for r in rated)):
        members = [r for r in rated if r.set == name]
        each = min(max(round(RATED_CROPS / len(members)), LEAST_CROPS), MOST_CROPS)
        for r in members:
            with Image.open(r.path) as image:
                writer.add(rated_crops(image, each, _rng(r.path.name)), r.mos, index)
        counts[f"rated {name}".strip()] = len(members)
        say(f"rated {name}: {len(members)} images, {len(writer.mos)} crops so far")
    writer.flush()
    np.save(out / "mos.npy", np.asarray(writer.mos, dtype=np.float32))
    np.save(out / "sets.npy", np.asarray(writer.sets, dtype=np.int16))
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
        except OSError:  # a damaged file among thousands
            continue
        count += 1
    return count


def _rng(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode("utf-8", errors="surrogateescape")))


def rated_sets(folder: str | Path) -> list[str]:
    """Return the names of the sets whose ratings are packed in a folder; "ratings" for one without a name."""
    counts = json.loads((Path(folder) / "photos.json").read_text(encoding="utf-8"))
    return [name.removeprefix("rated").strip() or "ratings" for name in counts if name.split()[0] == "rated"]


class Shards:
    """Crops of a folder of shards, mapped into memory.

    Attributes:
        mos: (n,) float32, NaN for unrated crops.
        sets: (n,) int16, index of the set that a crop's rating is from, -1 for unrated crops.

    Raises:
        RecipeError: there are no shards, or crops and ratings differ in number.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        files = sorted(folder.glob("crops-*.npy"))
        if not files or not all((folder / name).is_file() for name in ("mos.npy", "sets.npy")):
            raise RecipeError(f"no shards of photographs in {folder}; make them with qmamba photos")
        self._arrays = [np.load(file, mmap_mode="r") for file in files]
        self._starts = np.cumsum([0, *(len(a) for a in self._arrays)])
        self.mos: np.ndarray = np.load(folder / "mos.npy")
        self.sets: np.ndarray = np.load(folder / "sets.npy")
        if not len(self.mos) == len(self.sets) == len(self):
            raise RecipeError(f"{folder} holds {len(self)} crops but {len(self.mos)} ratings; pack it again")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> np.ndarray:
        """Return a crop (160, 160, 3) uint8."""
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        crop: np.ndarray = self._arrays[shard][index - self._starts[shard]]
        return crop
