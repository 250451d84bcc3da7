"""Write the manifest of all ratings that the default model learns from.

    python benchmarks/general_ratings.py --biq2021 BIQ2021 --agiqa3k AIGC --stills image_quality_test \\
        --srij IQA_SR --kadid-scale SelfExSR --polyu PolyU --cache cache --out ratings.csv

Each option names a clone, as in ``generality.py``. Opinion scores stay in the units of their set, which the
column ``set`` names. BIQ2021 has its own folds; "test" is left out. Of AGIQA-3K odd prompt numbers are in the
fold "train" and even ones, which the bench measures on, in "val"; ``--all-prompts`` puts all of them in
"train". Of the video stills and the super-resolved images a fifth of the contents is in "test", the one that
the shipped adapters are tested on. ``--without`` leaves a set out, to ask how a model does without it.
``--add`` appends another manifest with a column ``set``, such as those of ``general_copies.py`` and
``general_unrated.py``.

Photographs of SelfExSR, distorted on KADID-10k's scale, and PolyU's pairs are for heads fitted in closed
form; pretraining makes its own distorted copies.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from generality_domains import READERS, agiqa3k
from qmamba.data import Rated, read_biq2021, read_manifest
from qmamba.data.splitting import make_splits

SETS = tuple(READERS)
COLUMNS = ("image", "mos", "fold", "reference", "distortion", "set")


def ratings(name: str, root: Path, cache: Path, all_prompts: bool) -> Iterator[Rated]:
    """Yield the rated images of a set, with folds."""
    if name == "biq2021":
        yield from read_biq2021(root, ["train", "val"])
    elif name == "agiqa3k":
        for r in agiqa3k(root):
            yield replace(r, fold="train" if all_prompts or int(r.reference) % 2 else "val")
    elif name in ("stills", "srij"):
        rated = READERS[name](root, cache).test
        yield from make_splits(rated, count=1, seed=0)[0].of(rated)
    else:
        for r in READERS[name](root, cache).test:
            yield replace(r, fold="train")


def main(argv: Sequence[str] | None = None) -> None:
    """Write the manifest."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in SETS:
        parser.add_argument(f"--{name}", type=Path, metavar="CLONE")
    parser.add_argument("--without", action="append", default=[], choices=SETS, help="set to leave out")
    parser.add_argument("--all-prompts", action="store_true", help="train on all of AGIQA-3K")
    parser.add_argument(
        "--add", type=Path, action="append", default=[], metavar="CSV", help="manifest to append"
    )
    parser.add_argument("--cache", type=Path, default=Path("cache"), help="folder for distorted copies")
    parser.add_argument("--out", type=Path, required=True, help="CSV file to write")
    args = parser.parse_args(argv)
    with args.out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for name in SETS:
            root = getattr(args, name.replace("-", "_"))
            if root is None or name in args.without:
                continue
            for r in ratings(name, root.resolve(), args.cache.resolve(), args.all_prompts):
                writer.writerow([r.path, r.mos, r.fold, r.reference, r.distortion, name])
        for manifest in args.add:
            for r in read_manifest(manifest):
                row = [r.path.resolve(), r.mos, r.fold, r.reference, r.distortion, r.set]
                writer.writerow(row)


if __name__ == "__main__":
    main()
