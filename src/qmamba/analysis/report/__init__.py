"""One page about many images: scores, thumbnails, maps, in a file that needs nothing else."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import math
import os
import re
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files as resources
from pathlib import Path
from typing import IO

import numpy as np
import torch

from qmamba.errors import ImageError
from qmamba.images import label, thumbnail
from qmamba.scoring import QualityMap, Scorer
from qmamba.scoring.pipeline import decode_ahead, pixel_limit, senseless

THUMBNAIL = 360  # pixels of the longer side
JPEG_QUALITY = 78
BINS = 20
STRIP = 8  # images in the strips of the best and of the worst, at most


@dataclasses.dataclass(frozen=True)
class Summary:
    """How many images a report shows with a score, and how many with an error."""

    scored: int
    failed: int


@dataclasses.dataclass(frozen=True)
class _Scored:
    """What is kept of an image once it has been written."""

    place: int
    name: str
    score: float


def write_report(
    path: str | os.PathLike[str],
    scorer: Scorer,
    images: Sequence[str | os.PathLike[str]],
    *,
    title: str = "Image quality",
    batch_size: int = 32,
    max_pixels: int | None = None,
    done: Callable[[], object] = lambda: None,
) -> Summary:
    """Score image files and write a page about them: one HTML file that loads nothing else.

    The page has a thumbnail and a map of each image, sorts them by score or name, and shows a histogram, the
    best and the worst, and the errors of what could not be scored. Of an image no more than that is kept
    while the next ones are scored, and it is kept on disk: about 20 KB each.

    Args:
        path: of the page. It is written when all images have been scored, in place of what was there.
        scorer: with the adapter that is active.
        images: paths, in the order that counts as that of their names.
        title: of the page.
        batch_size, max_pixels: as for `Scorer.score`.
        done: called after each image.

    Returns:
        How many images were scored, and how many were not.

    Raises:
        BackendError: the network is none that `create_model` builds.
        OSError: the page cannot be written.
    """
    limit = pixel_limit(batch_size, max_pixels)
    scored: list[_Scored] = []
    errors: list[str] = []
    with tempfile.TemporaryFile("w+", encoding="utf-8") as cards:
        for place, decoded in enumerate(decode_ahead(iter(images), limit)):
            name = label(images[place])
            try:
                if isinstance(decoded, ImageError):
                    raise decoded
                found = scorer.quality_map(decoded[0], batch_size=batch_size, max_pixels=limit)
                if not math.isfinite(found.score):
                    raise senseless(found.score)
            except ImageError as error:
                errors.append(_error(name, str(error)))
            else:
                cards.write(_card(place, images[place], decoded[0], found))
                scored.append(_Scored(place, name, found.score))
            done()
        cards.seek(0)
        slots = _slots(title, scorer, scored, errors)
        _write(Path(path), slots, cards)
    return Summary(len(scored), len(errors))


def _write(path: Path, slots: dict[str, str], cards: IO[str]) -> None:
    """The template with its slots filled, and in its slot `cards` what was written meanwhile."""
    template = resources(__package__).joinpath("template.html").read_text(encoding="utf-8")
    unfinished = path.with_name(f"{path.name}.part")  # no half a page where a disk is full
    try:
        with unfinished.open("w", encoding="utf-8", newline="\n") as page:
            # Split once: what comes from names is never searched for slots.
            for i, piece in enumerate(re.split(r"\{\{(\w+)\}\}", template)):
                if i % 2 == 0:
                    page.write(piece)
                elif piece == "cards":
                    shutil.copyfileobj(cards, page)
                else:
                    page.write(slots[piece])
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _card(place: int, path: str | os.PathLike[str], pixels: torch.Tensor, found: QualityMap) -> str:
    buffer = io.BytesIO()
    small = thumbnail(pixels, THUMBNAIL)
    small.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    text, short = html.escape(label(path)), html.escape(label(Path(path).name))
    return (
        f'<li><button type="button" class="card" id="image-{place}" data-place="{place}" '
        f'data-score="{found.score:.6f}" data-name="{text}" data-size="{found.width} × {found.height}" '
        f'data-map="{_map_text(found)}"><img src="data:image/jpeg;base64,{data}" width="{small.width}" '
        f'height="{small.height}" alt="" loading="lazy"><span class="score">{found.score:.3f}</span>'
        f'<span class="name" title="{text}">{short}</span></button></li>\n'
    )


def _map_text(found: QualityMap) -> str:
    """Columns, rows, lower and upper limit, and a byte for each value: 0 for none, 1 to 255 for the range."""
    low, high = found.limits()
    values = (found.coarse() - low) / (high - low)
    levels = np.where(np.isnan(values), 0, 1 + np.rint(254 * np.nan_to_num(values).clip(0, 1)))
    data = base64.b64encode(levels.astype(np.uint8).tobytes()).decode("ascii")
    return f"{values.shape[1]} {values.shape[0]} {low:.4f} {high:.4f} {data}"


def _error(name: str, message: str) -> str:
    reason = message.removeprefix(f"{name}: ").removeprefix("tensor: ")
    return f"<li><b>{html.escape(name)}</b> <span>{html.escape(reason)}</span></li>\n"


def _slots(title: str, scorer: Scorer, scored: Sequence[_Scored], errors: Sequence[str]) -> dict[str, str]:
    best_first = sorted(scored, key=lambda image: -image.score)
    length = min(STRIP, max(1, len(scored) // 2))
    histogram, tallest = _histogram([image.score for image in scored])
    adapter = scorer.active_adapter
    model = scorer.name if adapter is None else f"{scorer.name} with the adapter {adapter}"
    return {
        "title": html.escape(title),
        "model": html.escape(model),
        "protocol": html.escape(scorer.protocol.kind),
        "trained_on": html.escape(", ".join(scorer.trained_on) or "unknown data"),
        "summary": _summary([image.score for image in scored], len(errors)),
        "histogram": histogram,
        "tallest": tallest,
        "worst": "".join(_strip(best_first[::-1][:length])),
        "best": "".join(_strip(best_first[:length])),
        "scored_hidden": "" if scored else "hidden",
        "errors_hidden": "" if errors else "hidden",
        "error_count": str(len(errors)),
        "errors": "".join(errors),
    }


def _summary(scores: Sequence[float], failed: int) -> str:
    numbers: dict[str, str] = {"images scored": str(len(scores))}
    if scores:
        numbers |= {
            "mean": f"{statistics.fmean(scores):.3f}",
            "median": f"{statistics.median(scores):.3f}",
            "lowest": f"{min(scores):.3f}",
            "highest": f"{max(scores):.3f}",
        }
    if failed:
        numbers["not scored"] = str(failed)
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in numbers.items())


def _histogram(scores: Sequence[float]) -> tuple[str, str]:
    """Bars only, to be stretched over the page, which has the numbers under them; and how high they reach."""
    counts = np.histogram(np.clip(scores, 0, 1), bins=BINS, range=(0, 1))[0].tolist()
    most = max(1, *counts)
    bars = []
    for place, count in enumerate(counts):
        height = 100 * count / most
        bars.append(
            f'<rect x="{place + 0.06:.2f}" y="{100 - height:.2f}" width="0.88" height="{height:.2f}">'
            f"<title>{place / BINS:.2f} to {(place + 1) / BINS:.2f}: {count}</title></rect>"
        )
    drawing = (
        f'<svg viewBox="0 0 {BINS} 100" preserveAspectRatio="none" role="img" '
        f'aria-label="Histogram of {len(scores)} scores">{"".join(bars)}</svg>'
    )
    return drawing, f"The tallest bar stands for {most} image{'s' * (most > 1)}."


def _strip(images: Sequence[_Scored]) -> Iterator[str]:
    for image in images:
        yield (
            f'<li><button type="button" class="mini" data-for="image-{image.place}" '
            f'title="{html.escape(image.name)}"><img alt=""><span>{image.score:.3f}</span></button></li>\n'
        )
