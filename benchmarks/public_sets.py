r"""Make a data root for `qmamba reproduce public` and `agiqa3k-…`.

    python benchmarks/public_sets.py --biq2021 BIQ2021 --agiqa3k AIGC --video video.csv --sr sr.csv \
        --root DATA

``AIGC`` is a clone of github.com/qiyan111/AIGC, whose copy of AGIQA-3K is JPEG; all sets but the root may be
left out.

``video.csv`` and ``sr.csv`` list image and mos of the repositories
Telecommunication-Telemedia-Assessment/image_quality_test and juanpaberon/IQA_SR. The output adds each image's
content as its reference, by which splits are drawn: the source video, before ``_1frame`` in the file name, or
the photograph, NAME in ``METHOD-FACTOR-NAMENUMBER``.
"""

from __future__ import annotations

import argparse
import csv
import re
from pathlib import Path


def content_of(kind: str, name: str) -> str:
    """Return the content of a picture, from its file name.

    >>> content_of("video", "air_show_4k.mkv_1frame_crf_22_height_0256.png")
    'air_show_4k.mkv'
    >>> content_of("sr", "Dong11-2-books-and-papers1.tif")
    'books-and-papers'
    """
    if kind == "video":
        return name.partition("_1frame")[0]
    found = re.fullmatch(r".+?-\d-(.+?)\d+\.\w+", name)
    if found is None:
        raise SystemExit(f"names in IQA_SR must be like METHOD-FACTOR-NAMENUMBER, got {name}")
    return found[1]


def write(kind: str, manifest: Path, root: Path) -> None:
    """Write a manifest with absolute paths and references."""
    with manifest.open(newline="", encoding="utf-8") as file:
        rows = [(manifest.parent / row["image"], row["mos"]) for row in csv.DictReader(file)]
    with (root / f"{kind}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "mos", "reference"])
        writer.writerows([path.resolve(), mos, content_of(kind, path.name)] for path, mos in rows)


def main(arguments: list[str] | None = None) -> None:
    """Make the data root."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name in ("biq2021", "agiqa3k", "video", "sr", "root"):
        parser.add_argument(f"--{name}", type=Path, required=name == "root")
    args = parser.parse_args(arguments)
    args.root.mkdir(parents=True, exist_ok=True)
    for name in ("biq2021", "agiqa3k"):
        folder, link = getattr(args, name), args.root / name
        if folder is not None and not link.exists():
            link.symlink_to(folder.resolve(), target_is_directory=True)
    for kind in ("video", "sr"):
        if getattr(args, kind) is not None:
            write(kind, getattr(args, kind), args.root)


if __name__ == "__main__":
    main()
