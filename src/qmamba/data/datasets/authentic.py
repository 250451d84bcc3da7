"""Data sets of authentic distortions: LIVE Challenge, KonIQ-10k, LIVE-FB, SPAQ, BIQ2021."""

from __future__ import annotations

from pathlib import Path

from .._tables import files_below, locate, number, read_csv, read_mat, read_xlsx, same_length
from ..ratings import read_biq2021
from ._base import DataSet, Label

LIVEC_TRAINING = 7  # the first images trained the raters, and are excluded by convention


def _livec(root: Path) -> list[Label]:
    (names,) = read_mat(root / "Data" / "AllImages_release.mat", "AllImages_release")
    (mos,) = read_mat(root / "Data" / "AllMOS_release.mat", "AllMOS_release")
    (std,) = read_mat(root / "Data" / "AllStdDev_release.mat", "AllStdDev_release")
    same_length(AllImages_release=names, AllMOS_release=mos, AllStdDev_release=std)
    rated = list(zip(map(str, names), mos, std, strict=True))[LIVEC_TRAINING:]
    paths = locate([name for name, _, _ in rated], files_below(root, "Images"), "Images")
    return [
        Label(path, number(m, f"AllMOS_release of {name}"), number(s, f"AllStdDev_release of {name}"))
        for (name, m, s), path in zip(rated, paths, strict=True)
    ]


LIVEC = DataSet(
    name="livec",
    title="LIVE Challenge",
    images=1162,
    scale=(0, 100),
    licence="any purpose, with its copyright notice and acknowledgement",
    home="https://live.ece.utexas.edu/research/ChallengeDB/",
    tree="""\
Data/AllImages_release.mat
Data/AllMOS_release.mat
Data/AllStdDev_release.mat
Images/3.bmp …""",
    labels=_livec,
)

KONIQ10K_FOLDERS = ("1024x768", "512x384")


def _koniq10k(root: Path) -> list[Label]:
    rows = read_csv(root / "koniq10k_scores_and_distributions.csv", ("image_name", "SD", "MOS_zscore"))
    folder = next((f for f in KONIQ10K_FOLDERS if (root / f).is_dir()), KONIQ10K_FOLDERS[0])
    paths = locate([row["image_name"] for row in rows], files_below(root, folder), folder)
    # MOS_zscore, 0 to 100, is the label of most published results; SD is in units of the scale 1 to 5.
    return [
        Label(
            path,
            number(row["MOS_zscore"], f"MOS_zscore of {row['image_name']}"),
            25 * number(row["SD"], f"SD of {row['image_name']}"),
        )
        for row, path in zip(rows, paths, strict=True)
    ]


KONIQ10K = DataSet(
    name="koniq10k",
    title="KonIQ-10k",
    images=10073,
    scale=(0, 100),
    licence="see its page; its photographs are from YFCC100M, under Creative Commons",
    home="https://database.mmsp-kn.de/koniq-10k-database.html",
    tree="""\
koniq10k_scores_and_distributions.csv   (image_name, SD, MOS_zscore)
1024x768/826373.jpg …                   (or 512x384/, where 1024x768/ is not there)""",
    labels=_koniq10k,
)


def _flive(root: Path) -> list[Label]:
    rows = read_csv(root / "labels_image.csv", ("name", "mos"))
    paths = locate([row["name"] for row in rows], files_below(root, "database"), "database")
    return [
        Label(path, number(row["mos"], f"labels_image.csv: mos of {row['name']}"))
        for row, path in zip(rows, paths, strict=True)
    ]


FLIVE = DataSet(
    name="flive",
    title="LIVE-FB",
    images=39810,
    scale=(0, 100),
    licence="not stated; its photographs are AVA's, VOC's, EMOTIC's and others'",
    home="https://github.com/niu-haoran/FLIVE_Database",
    tree="""\
labels_image.csv                    (name, mos)
database/voc_emotic_ava/AVA__149.jpg …
database/blur_dataset/motion0001.jpg …
database/EE371R/…""",
    labels=_flive,
)


def _spaq(root: Path) -> list[Label]:
    sheet = "MOS and Image attribute scores.xlsx"
    rows = read_xlsx(root / "Annotations" / sheet, ("Image name", "MOS"))
    names = [str(row["Image name"]) for row in rows]
    paths = locate(names, files_below(root, "TestImage"), "TestImage")
    return [
        Label(path, number(row["MOS"], f"{sheet}: MOS of {name}"))
        for row, name, path in zip(rows, names, paths, strict=True)
    ]


SPAQ = DataSet(
    name="spaq",
    title="SPAQ",
    images=11125,
    scale=(0, 100),
    licence="not stated",
    home="https://github.com/h4nwei/SPAQ",
    tree="""\
Annotations/MOS and Image attribute scores.xlsx   (Image name, MOS)
TestImage/00001.jpg … 11125.jpg""",
    labels=_spaq,
)


def _biq2021(root: Path) -> list[Label]:
    return [Label(r.path, r.mos, reference=r.reference, fold=r.fold) for r in read_biq2021(root)]


BIQ2021 = DataSet(
    name="biq2021",
    title="BIQ2021",
    images=12000,
    scale=(0, 1),
    licence="not stated",
    home="https://github.com/nisarahmedrana/BIQ2021",
    tree="""\
Train (Images and MOS).csv          (Image Name, MOS)
Test (Images and MOS).csv           (Image Name, MOS)
Images/ss01 (1).jpg …""",
    labels=_biq2021,
    verified=True,
)
