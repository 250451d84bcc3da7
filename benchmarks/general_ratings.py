"""Write the manifest of all ratings that the default model learns from.

    python benchmarks/general_ratings.py --biq2021 BIQ2021 --agiqa3k AIGC --stills image_quality_test \\
        --srij IQA_SR --out ratings.csv

Each option names a clone, as in ``generality.py``. Opinion scores stay in the units of their set, which the
column ``set`` names. BIQ2021 has its own folds; "test" is left out. Of AGIQA-3K odd prompt numbers are
in the fold "train" and even ones, which the bench measures on, in "val". ``--without`` leaves a set out, to
ask how a model does without it.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from adapter_domains import stills, upscaled
from generality_domains import agiqa3k
from qmamba.data import Rated, read_biq2021

SETS = ("biq2021", "agiqa3k", "stills", "srij")
COLUMNS = ("image", "mos", "fold", "reference", "distortion", "set")


def ratings(name: str, root: Path) -> Iterator[Rated]:
    """Yield the rated images of a set, with folds."""
    if name == "biq2021":
        yield from read_biq2021(root, ["train", "val"])
    elif name == "agiqa3k":
        for generator, prompt, path, mos in agiqa3k(root):
            fold = "train" if int(prompt) % 2 else "val"
            yield Rated(path, mos, fold, reference=prompt, distortion=generator)
    elif name == "stills":
        for image, mos, video, _ in stills(root):
            yield Rated(Path(image), mos, "train", reference=video)
    else:
        for image, mos, scene, method in upscaled(root):
            yield Rated(Path(image), mos, "train", reference=scene, distortion=method)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the manifest."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in SETS:
        parser.add_argument(f"--{name}", type=Path, metavar="CLONE")
    parser.add_argument("--without", action="append", default=[], choices=SETS, help="set to leave out")
    parser.add_argument("--out", type=Path, required=True, help="CSV file to write")
    args = parser.parse_args(argv)
    with args.out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for name in SETS:
            root = getattr(args, name)
            if root is None or name in args.without:
                continue
            for r in ratings(name, root.resolve()):
                writer.writerow([r.path, r.mos, r.fold, r.reference, r.distortion, name])


if __name__ == "__main__":
    main()
