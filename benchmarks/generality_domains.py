"""Domains of ``benchmarks/generality.py``: rated images and pairs, read from clones of repositories."""

from __future__ import annotations

import hashlib
import io
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from adapter_domains import stills, upscaled
from qmamba.data import DISTORTIONS, Rated, read_biq2021, read_dataset
from qmamba.data.distortions import KADID_KINDS, kadid_quality
from qmamba.data.photos import Source, photographs

BIQ2021_FITTED = 3000  # photographs of its train fold that models are fitted to
PHOTOGRAPHS = 40  # pristine ones, which the KADID scale is applied to
T = TypeVar("T")
LEVELS = 5  # of the KADID scale
LEVELS_EACH = 3  # levels of one kind and photograph
PIXELS = 512 * 384  # of a KADID-10k image
PRISTINE = Source(
    "jbhuang0604/SelfExSR",
    include=("data/Urban100/image_SRF_4/*HR.png", "data/Sun-Hays80/image_SRF_8/*HR.png"),
)


@dataclass(frozen=True)
class Domain:
    """One kind of images, with opinions or true orders.

    Attributes:
        name: key in caches and results.
        title: as it stands in a checkpoint's `trained_on`, and in tables.
        test: images that models are tested on. `reference` names the content, by which they are resampled;
            `distortion` the part within which they can be compared: a generator, a kind of distortion.
        fit: images that models of other domains are fitted to; empty where there are no opinions.
        pairs: True if `test` holds pairs, `mos` 1 the better and 0 the worse image of a `reference`.
    """

    name: str
    title: str
    test: tuple[Rated, ...]
    fit: tuple[Rated, ...]
    pairs: bool = False

    @property
    def rated(self) -> bool:
        """Whether models of other domains can be fitted to its opinions."""
        return bool(self.fit)


def opinions(ratings: Sequence[Rated]) -> np.ndarray:
    """Return the mean opinion scores (n,) float64."""
    return np.array([rated.mos for rated in ratings])


def contents(ratings: Sequence[Rated]) -> np.ndarray:
    """Return the contents (n,) str: images of one content are resampled together."""
    return np.array([rated.reference for rated in ratings])


def parts(ratings: Sequence[Rated]) -> np.ndarray:
    """Return the generators or kinds of distortion (n,) str."""
    return np.array([rated.distortion for rated in ratings])


def digest(ratings: Sequence[Rated]) -> str:
    """Return eight hexadecimal digits that change with the names, sizes or order of the image files."""
    listing = "\n".join(f"{rated.path.name} {rated.path.stat().st_size}" for rated in ratings)
    return hashlib.sha256(listing.encode()).hexdigest()[:8]


def read_domains(sources: dict[str, Path | None], cache: Path) -> list[Domain]:
    """Return the domains whose source is given, in the order of `READERS`.

    Args:
        sources: by a domain's name, the clone that it is read from.
        cache: folder for distorted copies.
    """
    domains = []
    for name, reader in READERS.items():
        source = sources.get(name)
        if source is not None:
            domains.append(reader(source, cache))
    return domains


def read_biq2021_domain(root: Path, cache: Path) -> Domain:
    """Return BIQ2021: part of its train fold to fit, its val fold to test. Its test fold is not opened."""
    train, val = (read_biq2021(root, [fold]) for fold in ("train", "val"))
    return Domain("biq2021", "BIQ2021", tuple(val), tuple(spread(train, BIQ2021_FITTED)))


def read_agiqa3k(root: Path, cache: Path) -> Domain:
    """Return AGIQA-3K from a clone of qiyan111/AIGC: the images of even prompt numbers, by all generators."""
    rated = tuple(r for r in agiqa3k(root) if int(r.reference) % 2 == 0)
    return Domain("agiqa3k", "AGIQA-3K", rated, rated)


def agiqa3k(root: Path) -> list[Rated]:
    """Return the images of a clone of qiyan111/AIGC, prompts as references and generators as distortions."""
    rated = read_dataset("agiqa3k", root)
    return [replace(r, distortion=r.path.stem.rpartition("_")[0]) for r in rated]


def read_stills(root: Path, cache: Path) -> Domain:
    """Return the video stills of Telecommunication-Telemedia-Assessment/image_quality_test."""
    rated = tuple(Rated(Path(path), mos, reference=video) for path, mos, video, _ in stills(root))
    return Domain("stills", "video stills", rated, rated)


def read_srij(root: Path, cache: Path) -> Domain:
    """Return the super-resolved photographs of juanpaberon/IQA_SR, without the originals."""
    rated = tuple(
        Rated(Path(path), mos, reference=scene, distortion=method)
        for path, mos, scene, method in upscaled(root)
    )
    return Domain("srij", "SRIJ", rated, rated)


def read_kadid_scale(clone: Path, cache: Path) -> Domain:
    """Return pristine photographs of a clone of jbhuang0604/SelfExSR, distorted on KADID-10k's scale.

    The opinion of a copy is the mean rating that KADID-10k's images of that kind and level got. Copies are
    made once, in a folder of the cache.
    """
    folder = cache / "kadid-scale"
    folder.mkdir(parents=True, exist_ok=True)
    chosen = spread(list(photographs(PRISTINE, clone, set())), PHOTOGRAPHS)
    rated = []
    for index, (path, content) in enumerate(chosen):
        with Image.open(io.BytesIO(content)) as image:
            pixels = np.asarray(to_kadid_size(image.convert("RGB")))
        for kind in KADID_KINDS:
            for level in levels_of(index):
                copy = folder / f"{Path(path).stem}-{kind}-{level}.png"
                if not copy.is_file():
                    seed = zlib.crc32(copy.name.encode())
                    save(DISTORTIONS[kind](pixels, level, seed=seed, scale="kadid"), copy)
                mos = kadid_quality(kind, level).mean
                rated.append(Rated(copy, mos, reference=Path(path).stem, distortion=kind))
    return Domain("kadid-scale", "KADID scale", tuple(rated), tuple(rated))


def read_polyu(root: Path, cache: Path) -> Domain:
    """Return the pairs of csjunxu/PolyU-Real-World-Noisy-Images-Dataset: mean of many shots, and one shot."""
    rated = []
    for folder, part in (("CroppedImages", "crop"), ("OriginalImages", "camera")):
        found: dict[str, dict[float, Path]] = {}
        for path in sorted((root / folder).iterdir()):
            if match := re.fullmatch(r"(.+)_(mean|real)\.jpe?g", path.name, re.IGNORECASE):
                found.setdefault(match[1], {})[float(match[2].lower() == "mean")] = path
        for scene, pair in found.items():
            if len(pair) == 2:
                reference = f"{part} {scene}"
                rated += [Rated(pair[mos], mos, reference=reference, distortion=part) for mos in (1.0, 0.0)]
    return Domain("polyu", "PolyU", tuple(rated), (), pairs=True)


READERS = {
    "biq2021": read_biq2021_domain,
    "agiqa3k": read_agiqa3k,
    "stills": read_stills,
    "srij": read_srij,
    "kadid-scale": read_kadid_scale,
    "polyu": read_polyu,
}
"""Readers by the name of their domain."""


def spread(items: Sequence[T], count: int) -> list[T]:
    """Return `count` items at even distances, or all if there are no more.

    >>> spread("abcdefgh", 3)
    ['a', 'c', 'f']
    """
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def levels_of(index: int) -> list[int]:
    """Return the levels of the photograph at an index; over five photographs each level comes equally often.

    >>> [levels_of(index) for index in range(3)]
    [[1, 3, 5], [1, 2, 4], [2, 3, 5]]
    """
    return sorted((index + 2 * step) % LEVELS + 1 for step in range(LEVELS_EACH))


def to_kadid_size(image: Image.Image) -> Image.Image:
    """Return the image with about as many pixels as a KADID-10k image, its aspect ratio kept."""
    ratio = (PIXELS / (image.width * image.height)) ** 0.5
    return image.resize((round(image.width * ratio), round(image.height * ratio)), Image.Resampling.LANCZOS)


def save(pixels: np.ndarray, path: Path) -> None:
    """Write a PNG file as a whole or not at all."""
    partial = path.with_suffix(".partial")
    Image.fromarray(pixels).save(partial, format="PNG", compress_level=1)
    partial.replace(path)
