"""Data sets of images from text-to-image models: AGIQA-3K, AIGCIQA2023."""

from __future__ import annotations

from pathlib import Path

from .._tables import files_below, locate, number, read_csv, read_mat, same_length
from ._base import DataSet, Label


def _agiqa3k(root: Path) -> list[Label]:
    # A clone of github.com/qiyan111/AIGC has everything in data/, and its images are JPEG.
    root = root / "data" if (root / "data" / "data.csv").is_file() else root
    rows = read_csv(root / "data.csv", ("name", "mos_quality", "std_quality"))
    # Copies differ in the folder of the images, and names are unique: any folder is accepted.
    paths = locate([row["name"] for row in rows], files_below(root, by_name=True), "the folder")
    return [
        Label(
            path,
            number(row["mos_quality"], f"data.csv: mos_quality of {row['name']}"),
            number(row["std_quality"], f"data.csv: std_quality of {row['name']}"),
            reference=Path(row["name"]).stem.rpartition("_")[2],  # the number of the prompt
        )
        for row, path in zip(rows, paths, strict=True)
    ]


AGIQA3K = DataSet(
    name="agiqa3k",
    title="AGIQA-3K",
    images=2982,
    scale=(0, 5),
    licence="MIT",
    home="https://github.com/lcysyzxdxc/AGIQA-3k-Database",
    tree="""\
data.csv                            (name, mos_quality, std_quality)
AttnGAN_normal_000.jpg …            (here or in any folder below)
or all of it in data/               (a clone of github.com/qiyan111/AIGC, a JPEG copy)""",
    labels=_agiqa3k,
    split_by="image",  # as published results do, though prompts are then in both folds
)


def _aigciqa2023(root: Path) -> list[Label]:
    (mos,) = read_mat(root / "DATA" / "MOS" / "mosz1.mat", "MOSz")
    spread = root / "DATA" / "STD" / "SD1.mat"
    std = read_mat(spread, "SD")[0] if spread.is_file() else None
    if std is not None:
        same_length(MOSz=mos, SD=std)
    names = [f"{i}.png" for i in range(len(mos))]
    paths = locate(names, files_below(root, "Image/allimg"), "Image/allimg")
    return [
        Label(
            path,
            number(mos[i], f"MOSz of {names[i]}"),
            None if std is None else number(std[i], f"SD of {names[i]}"),
        )
        for i, path in enumerate(paths)
    ]


AIGCIQA2023 = DataSet(
    name="aigciqa2023",
    title="AIGCIQA2023",
    images=2400,
    scale=(0, 100),
    licence="not stated",
    home="https://github.com/wangjiarui153/AIGCIQA2023",
    tree="""\
DATA/MOS/mosz1.mat                  (quality)
DATA/STD/SD1.mat                    (standard deviations; may be left out)
Image/allimg/0.png … 2399.png""",
    labels=_aigciqa2023,
)
