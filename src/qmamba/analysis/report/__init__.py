"""Report about many images: scores, thumbnails and maps in one HTML file that loads nothing else."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
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
from PIL import Image

from qmamba.errors import ImageError
from qmamba.images import Decoded, label, thumbnail
from qmamba.scoring import Explanation, QualityMap, Scorer
from qmamba.scoring.explanation import Explainer
from qmamba.scoring.pipeline import pixel_limit
from qmamba.scoring.quality_map import mappable

THUMBNAIL = 360  # pixels of the longer side
JPEG_QUALITY = 78
BINS = 20
REASONS = "below each score: what it may be due to, where the model is sure, and measures that stand out"
STRIP = 8  # maximum number of images in the strips of the best and of the worst


@dataclasses.dataclass(frozen=True)
class Summary:
    """Number of images in a report with a score, and with an error."""

    scored: int
    failed: int


@dataclasses.dataclass(frozen=True)
class _Scored:
    """An image whose card has been written."""

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

    The page has a thumbnail, a map and the reasons (`Scorer.explain`) of each image. It sorts them by score
    or name, and shows a histogram, the best and the worst, and the errors of images that could not be scored.
    While the next images are scored, cards of the earlier ones are kept on disk, about 20 KB each.

    Args:
        path: of the page. It is written when all images have been scored, and replaces a file of that name.
        scorer: is used with its active adapter.
        images: paths, in the order of their names.
        title: of the page.
        batch_size, max_pixels: as for `Scorer.score`.
        done: called after each image.

    Returns:
        Number of images that were scored, and that were not.

    Raises:
        CapabilityError: the network does not give values of its positions, which maps are made of.
        ArgumentError: an option of a wrong type or out of range.
        OSError: the page cannot be written.
    """
    limit, edges = pixel_limit(batch_size, max_pixels), np.linspace(*scorer.score_range, BINS + 1)
    mappable(scorer.network, scorer.config)  # before images are read

    explain = Explainer(scorer, batch_size=batch_size, max_pixels=limit)

    def look(image: Decoded) -> tuple[Explanation, QualityMap, Image.Image]:
        explanation, found = explain(image)
        assert found is not None  # the network is mappable
        return explanation, found, thumbnail(image.pixels, THUMBNAIL)

    scored: list[_Scored] = []
    errors: list[str] = []
    with tempfile.TemporaryFile("w+", encoding="utf-8") as cards:
        for place, result in enumerate(scorer.each(images, look, max_pixels=limit)):
            if isinstance(result, ImageError):
                errors.append(_error(label(images[place]), str(result)))
            else:
                explanation, found, small = result
                bin_index = _bin(found.score, edges)
                cards.write(_card(place, images[place], small, found, bin_index, explanation.reason))
                scored.append(_Scored(place, label(images[place]), found.score))
            done()
        cards.seek(0)
        slots = _slots(title, scorer, scored, errors) | {"reasons": html.escape(explain.no_probe or REASONS)}
        _write(Path(path), slots, cards)
    return Summary(len(scored), len(errors))


def _write(path: Path, slots: dict[str, str], cards: IO[str]) -> None:
    """Write the template with its slots filled, and the file `cards` in the slot of that name."""
    template = resources(__package__).joinpath("template.html").read_text(encoding="utf-8")
    unfinished = path.with_name(f"{path.name}.part")  # a full disk must not leave half a page
    try:
        with unfinished.open("w", encoding="utf-8", newline="\n") as page:
            # Split once: text from file names is never searched for slots.
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


def _bin(score: float, edges: np.ndarray) -> int:
    """Return the zero-based index of a score's bar; the first and the last bar hold what lies beyond.

    >>> [_bin(score, np.linspace(0, 1, 5)) for score in (-0.1, 0.25, 0.3, 1.0, 1.2)]
    [0, 1, 1, 3, 3]
    """
    return int(np.clip(np.searchsorted(edges, score, side="right") - 1, 0, len(edges) - 2))


def _card(
    place: int,
    path: str | os.PathLike[str],
    small: Image.Image,
    found: QualityMap,
    bin_index: int,
    reason: str,
) -> str:
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    text, short = html.escape(label(path)), html.escape(label(Path(path).name))
    folder, why = html.escape(label(Path(path).parent)), html.escape(reason)
    return (
        f'<li><button type="button" class="card" id="image-{place}" data-place="{place}" '
        f'data-score="{found.score:.6f}" data-bin="{bin_index}" data-folder="{folder}" '
        f'data-name="{text}" data-reason="{why}" data-size="{found.width} × {found.height}" '
        f'data-map="{_map_text(found)}"><img src="data:image/jpeg;base64,{data}" width="{small.width}" '
        f'height="{small.height}" alt="" loading="lazy"><span class="score">{found.score:.3f}</span>'
        f'<span class="name" title="{text}">{short}</span>'
        f'<span class="reason" title="{why}">{why}</span></button></li>\n'
    )


def _map_text(found: QualityMap) -> str:
    """Return columns, rows, both limits, and a byte per value: 0 for none, 1 to 255 for the range."""
    low, high = found.limits()
    values = (found.coarse() - low) / (high - low)
    levels = np.where(np.isnan(values), 0, 1 + np.rint(254 * np.nan_to_num(values).clip(0, 1)))
    data = base64.b64encode(levels.astype(np.uint8).tobytes()).decode("ascii")
    return f"{values.shape[1]} {values.shape[0]} {low:.4f} {high:.4f} {data}"


def _error(name: str, message: str) -> str:
    reason = message.removeprefix(f"{name}: ").removeprefix("tensor: ")
    return f"<li><b>{html.escape(name)}</b> <span>{html.escape(reason)}</span></li>\n"


def _slots(title: str, scorer: Scorer, scored: Sequence[_Scored], errors: Sequence[str]) -> dict[str, str]:
    best_first = sorted(scored, key=lambda image: image.score if scorer.lower_better else -image.score)
    length = min(STRIP, max(1, len(scored) // 2))
    low, high = scorer.score_range
    histogram, counts = _histogram([image.score for image in scored], low, high)
    adapter = scorer.active_adapter
    model = scorer.name if adapter is None else f"{scorer.name} with the adapter {adapter}"
    return {
        "title": html.escape(title),
        "model": html.escape(model),
        "protocol": html.escape(scorer.protocol.kind),
        "trained_on": html.escape(", ".join(scorer.trained_on) or "unknown data"),
        "better": "lower" if scorer.lower_better else "higher",
        "low": f"{low:g}",
        "high": f"{high:g}",
        "axis": "".join(f"<span>{low + (high - low) * i / 5:.3g}</span>" for i in range(6)),
        "summary": _summary([image.score for image in scored], len(errors)),
        "histogram": histogram,
        "counts": counts,
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


def _histogram(scores: Sequence[float], low: float, high: float) -> tuple[str, str]:
    """Return a drawing of bars only, which the page stretches; and the labels of its axis, from the top."""
    edges = np.linspace(low, high, BINS + 1)
    counts = np.bincount([_bin(score, edges) for score in scores], minlength=BINS).tolist()
    top = max(1, *counts)
    top += top % 2 if top > 1 else 0  # so that the label in the middle is a whole number
    bars = []
    for place, count in enumerate(counts):
        height, title = 100 * count / top, f"{edges[place]:.2f} to {edges[place + 1]:.2f}: {count}"
        bars.append(
            f'<g class="bin" data-bin="{place}" role="button" tabindex="0" aria-pressed="false">'
            f"<title>{title}</title>"
            f'<rect class="hit" x="{place}" y="0" width="1" height="100"/>'
            f'<rect class="bar-of-bin" x="{place + 0.06:.2f}" y="{100 - height:.2f}" width="0.88" '
            f'height="{height:.2f}"/></g>'
        )
    drawing = (
        f'<svg viewBox="0 0 {BINS} 100" preserveAspectRatio="none" role="group" '
        f'aria-label="Histogram of {len(scores)} scores">{"".join(bars)}</svg>'
    )
    labels = (top, top // 2, 0) if top > 1 else (1, 0)
    return drawing, "".join(f"<span>{label}</span>" for label in labels)


def _strip(images: Sequence[_Scored]) -> Iterator[str]:
    for image in images:
        yield (
            f'<li><button type="button" class="mini" data-for="image-{image.place}" '
            f'title="{html.escape(image.name)}"><img alt=""><span>{image.score:.3f}</span></button></li>\n'
        )
