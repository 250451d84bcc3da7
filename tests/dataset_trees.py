"""Small copies of the data sets' official layouts: real image and label files, made-up pictures and scores.

`TREES[name](root)` makes one and returns the labels it wrote, in the order of the label files, as
(path below root, score, std, reference, distortion). LIVE has all its images, since its arrays have no names.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Row = tuple[str, float, float | None, str, str]


def picture(kind: str, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    Image.fromarray(pixels).resize((12, 9)).save(buffer, kind)
    return buffer.getvalue()


def put(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {".bmp": "BMP", ".png": "PNG"}.get(path.suffix.lower(), "JPEG")
    path.write_bytes(picture(kind, seed))


def savemat(path: Path, **variables: object) -> None:
    scipy_io = pytest.importorskip("scipy.io", reason="scipy, which reads .mat files, is not installed")
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy_io.savemat(path, variables)


def column(names: list[str]) -> np.ndarray:
    """A MATLAB cell array of strings, one column."""
    array = np.empty((len(names), 1), dtype=object)
    array[:, 0] = names
    return array


def save_xlsx(path: Path, rows: list[list[object]], sheet: str, above: int = 0, left: int = 0) -> None:
    """A sheet behind another one, its rows below and right of empty cells."""
    openpyxl = pytest.importorskip("openpyxl", reason="openpyxl, which reads .xlsx files, is not installed")
    path.parent.mkdir(parents=True, exist_ok=True)
    book = openpyxl.Workbook()
    book.active.title = sheet
    for _ in range(above):
        book[sheet].append(["About this sheet"])
    for row in rows:
        book[sheet].append([None] * left + row)
    book.create_sheet("notes").append(["nothing of note"])
    book.save(path)


def live(root: Path) -> list[Row]:
    bmp = picture("BMP")
    rows: list[Row] = []
    dmos, std, copies, references = [], [], [], []
    # 203 of the 982 images are copies of their originals, seven of each here.
    sizes = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}
    for folder, count in sizes.items():
        (root / folder).mkdir(parents=True)
        for i in range(1, count + 1):
            (root / folder / f"img{i}.bmp").write_bytes(bmp)
            k = len(dmos)
            copy = k // 29 % 5 == 0
            copies.append(int(copy))
            dmos.append(0.0 if copy else k / 10)
            std.append(0.0 if copy else 5 + k / 1000)
            references.append(f"original{k % 29}.bmp")
            if not copy:
                rows.append((f"{folder}/img{i}.bmp", dmos[k], std[k], references[k][:-4], folder))
    savemat(root / "dmos_realigned.mat", dmos_new=dmos, dmos_std=std, orgs=copies)
    savemat(root / "refnames_all.mat", refnames_all=column(references).T)
    return rows


def csiq(root: Path) -> list[Row]:
    kinds = {
        "noise": "awgn/{}.AWGN.{}.png",
        "blur": "blur/{}.BLUR.{}.png",
        "contrast": "contrast/{}.contrast.{}.png",
        "fnoise": "fnoise/{}.fnoise.{}.png",
        "jpeg": "jpeg/{}.JPEG.{}.png",
        "jpeg 2000": "jpeg2000/{}.jpeg2000.{}.png",
    }
    sheet: list[list[object]] = [["image", "dst_idx", "dst_type", "dst_lev", "dmos_std", "dmos"]]
    rows: list[Row] = []
    for original in (1600, "aerial_city"):
        for index, (kind, form) in enumerate(kinds.items(), start=1):
            for level in (1, 2):
                name = form.format(original, level)
                put(root / "dst_imgs" / name, index)
                score, std = round(0.05 * index + 0.3 * level, 3), 0.01 * level
                sheet.append([original, index, kind, level, std, score])
                rows.append((f"dst_imgs/{name}", score, std, str(original), name.split("/")[0]))
    save_xlsx(root / "csiq.DMOS.xlsx", sheet, "all_by_image", above=3, left=3)
    return rows


def tid2013(root: Path) -> list[Row]:
    from qmamba.data.datasets.synthetic import TID2013_KINDS

    rows: list[Row] = []
    for reference in (1, 2):
        for kind in (1, 8, 24):
            for level in (1, 5):
                # On the disk they begin with a small letter or a large one.
                name = f"I{reference:02d}_{kind:02d}_{level}.bmp"
                disk = name if reference == 1 else name.lower()
                put(root / "distorted_images" / disk, kind)
                score = 6.0 - level + 0.1 * kind
                path = f"distorted_images/{disk}"
                rows.append(
                    (path, round(score, 5), 0.1 * level, f"I{reference:02d}", TID2013_KINDS[kind - 1])
                )
    lines = [f"{score:.5f} {Path(path).name.capitalize()}\n" for path, score, *_ in rows]
    (root / "mos_with_names.txt").write_text("".join(lines))
    (root / "mos_std.txt").write_text("".join(f"{std:.5f}\n" for _, _, std, *_ in rows))
    return rows


def kadid10k(root: Path) -> list[Row]:
    kinds = {1: "gaussian_blur", 9: "jpeg2000", 10: "jpeg", 25: "contrast_change"}
    rows: list[Row] = []
    for reference in ("I01", "I81"):
        for number, kind in kinds.items():
            name = f"{reference}_{number:02d}_03.png"
            put(root / "images" / name, number)
            rows.append((f"images/{name}", 1 + number / 10, 0.5, reference, kind))
    lines = [f"{Path(path).name},{ref}.png,{score},{std}\n" for path, score, std, ref, _ in rows]
    (root / "dmos.csv").write_text("dist_img,ref_img,dmos,var\n" + "".join(lines))
    return rows


def livec(root: Path) -> list[Row]:
    practice = [f"t{i}.bmp" for i in range(1, 8)]
    names = ["3.bmp", "4.bmp", "10.bmp", "1024.JPG", "a photo.jpg"]
    for i, name in enumerate(names):
        put(root / "Images" / name, i)
    for name in practice:
        put(root / "Images" / "trainingImages" / name)
    mos = [*[99.0] * 7, *[10.0 * i for i in range(1, 6)]]
    std = [*[1.0] * 7, *[15.0 + i for i in range(1, 6)]]
    savemat(root / "Data" / "AllImages_release.mat", AllImages_release=column(practice + names))
    savemat(root / "Data" / "AllMOS_release.mat", AllMOS_release=mos)
    savemat(root / "Data" / "AllStdDev_release.mat", AllStdDev_release=std)
    return [(f"Images/{n}", 10.0 * i, 15.0 + i, "", "") for i, n in enumerate(names, start=1)]


def koniq10k(root: Path) -> list[Row]:
    lines = ["image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,MOS_zscore\n"]
    rows: list[Row] = []
    for i in range(1, 6):
        put(root / "1024x768" / f"{i}00.jpg", i)
        lines.append(f'"{i}00.jpg",0,0,25,73,7,105,3.8,0.5{i},{60 + i}.25\n')
        rows.append((f"1024x768/{i}00.jpg", 60.25 + i, 25 * (0.5 + i / 100), "", ""))
    (root / "koniq10k_scores_and_distributions.csv").write_text("".join(lines))
    return rows


def flive(root: Path) -> list[Row]:
    names = ["voc_emotic_ava/AVA__149.jpg", "blur_dataset/motion0001.jpg", "EE371R/rq59.jpg"]
    for i, name in enumerate(names):
        put(root / "database" / name, i)
    rows: list[Row] = [(f"database/{name}", 70.5 + i, None, "", "") for i, name in enumerate(names)]
    lines = [f"{path.removeprefix('database/')},{mos},True\n" for path, mos, *_ in rows]
    (root / "labels_image.csv").write_text("name,mos,is_valid\n" + "".join(lines))
    return rows


def spaq(root: Path) -> list[Row]:
    sheet: list[list[object]] = [["Image name", "MOS", "Brightness", "Colorfulness", "Contrast", "Noisiness"]]
    rows: list[Row] = []
    for i in range(1, 5):
        put(root / "TestImage" / f"{i:05d}.jpg", i)
        sheet.append([f"{i:05d}.jpg", 12.5 * i, 1, 2, 3, 4])
        rows.append((f"TestImage/{i:05d}.jpg", 12.5 * i, None, "", ""))
    save_xlsx(root / "Annotations" / "MOS and Image attribute scores.xlsx", sheet, "Sheet1")
    return rows


def agiqa3k(root: Path) -> list[Row]:
    lines = ["name,prompt,adj1,adj2,style,mos_quality,std_quality,mos_align,std_align\n"]
    rows: list[Row] = []
    for i in range(4):
        name = f"AttnGAN_normal_{i:03d}.jpg"
        put(root / "images" / name, i)
        lines.append(f'{name},"statue, of a man",,,,{i / 2},{0.1 + i / 10},4.5,0.2\n')
        rows.append((f"images/{name}", i / 2, 0.1 + i / 10, f"{i:03d}", ""))
    (root / "data.csv").write_text("".join(lines))
    return rows


def add_generator(root: Path, name: str = "glide") -> None:
    """Add to AGIQA-3K the images of a second generator, of the same prompts."""
    for path in list((root / "images").iterdir()):
        (root / "images" / path.name.replace("AttnGAN", name)).write_bytes(path.read_bytes())
    labels = (root / "data.csv").read_text()
    (root / "data.csv").write_text(labels + labels.partition("\n")[2].replace("AttnGAN", name))


def aigciqa2023(root: Path) -> list[Row]:
    rows: list[Row] = []
    for i in range(12):  # 10 comes before 2 on the disk
        put(root / "Image" / "allimg" / f"{i}.png", i)
        rows.append((f"Image/allimg/{i}.png", 40.0 + i, 7.0 + i, "", ""))
    savemat(root / "DATA" / "MOS" / "mosz1.mat", MOSz=[[mos] for _, mos, *_ in rows])
    savemat(root / "DATA" / "STD" / "SD1.mat", SD=[[std] for _, _, std, *_ in rows])
    return rows


def biq2021(root: Path) -> list[Row]:
    """All names and no pictures: the reader goes by the split that comes with the package."""
    split = (resources.files("qmamba.data") / "splits" / "biq2021.csv").read_text(encoding="utf-8")
    listed = [line.split(",") for line in split.splitlines()[1:]]
    (root / "Images").mkdir(parents=True)
    for name, _, _ in listed:
        (root / "Images" / name).touch()
    for part, label in enumerate(("Train (Images and MOS).csv", "Test (Images and MOS).csv")):
        lines = [f"{name},0.25,,\n" for name, _, _ in listed[part::2]]
        (root / label).write_text("Image Name,MOS,,\n" + "".join(lines))
    return [(f"Images/{name}", 0.25, None, content, "") for name, _, content in listed]


TREES: dict[str, Callable[[Path], list[Row]]] = {
    each.__name__: each
    for each in (live, csiq, tid2013, kadid10k, livec, koniq10k, flive, spaq, agiqa3k, aigciqa2023, biq2021)
}
