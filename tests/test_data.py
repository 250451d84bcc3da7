"""Rated photographs: degradations of rising strength, and the readers of data sets."""

from __future__ import annotations

import csv
from importlib import resources
from pathlib import Path

import pytest

from qmamba.data import Rated, read_biq2021, read_manifest
from qmamba.data import ratings as readers
from qmamba.errors import RecipeError

EXAMPLES = Path(__file__).parents[1] / "examples"
PHOTOS = sorted(p for p in EXAMPLES.rglob("*") if p.suffix in (".jpg", ".png"))


# BIQ2021, in the layout of its repository

SPLIT = (
    ("ss01 (1).jpg", "train"),
    ("ss01 (2).jpg", "val"),
    ("ss02 (1014).JPG", "test"),
    ("ss03 (9).jpg", "train"),
)


@pytest.fixture
def biq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four photographs of the data set; one has a name in another case in the labels than on the disk."""
    root, package = tmp_path / "BIQ2021", tmp_path / "package"
    (root / "Images").mkdir(parents=True)
    (package / "splits").mkdir(parents=True)
    for name, _ in SPLIT:
        (root / "Images" / name).write_bytes(b"a photograph")
    header = "Image Name,MOS\n"
    (root / "Train (Images and MOS).csv").write_text(
        header + "ss01 (1).jpg,0.25\nss02 (1014).jpg,0.5\n", encoding="utf-8-sig"
    )
    (root / "Test (Images and MOS).csv").write_text(header + "ss03 (9).jpg,0.75\nss01 (2).jpg,1\n")
    rows = "".join(f"{name},{fold},{i}\n" for i, (name, fold) in enumerate(SPLIT))
    (package / "splits" / "biq2021.csv").write_text("image,fold,content\n" + rows)
    monkeypatch.setattr(readers.resources, "files", lambda _: package)
    return root


def test_biq2021(biq: Path) -> None:
    images = biq / "Images"
    assert read_biq2021(biq) == [
        Rated(images / "ss01 (1).jpg", 0.25, "train", reference="0"),
        Rated(images / "ss01 (2).jpg", 1.0, "val", reference="1"),
        Rated(images / "ss02 (1014).JPG", 0.5, "test", reference="2"),
        Rated(images / "ss03 (9).jpg", 0.75, "train", reference="3"),
    ]
    assert [r.fold for r in read_biq2021(str(biq), ["train"])] == ["train", "train"]


def test_biq2021_does_not_need_the_files_of_other_folds(biq: Path) -> None:
    (biq / "Images" / "ss02 (1014).JPG").unlink()
    assert len(read_biq2021(biq, ("train", "val"))) == 3
    with pytest.raises(RecipeError, match=r"'ss02 \(1014\)\.JPG' has no file"):
        read_biq2021(biq)


def test_biq2021_incomplete(biq: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no BIQ2021 at .*clone"):
        read_biq2021(tmp_path / "elsewhere")
    with pytest.raises(RecipeError, match="no fold 'tset': choose from train, val, test"):
        read_biq2021(biq, ("tset",))
    labels = biq / "Test (Images and MOS).csv"
    labels.write_text("Image Name,MOS\nss03 (9).jpg,0.75\n")
    with pytest.raises(RecipeError, match=r"'ss01 \(2\)\.jpg' has no label"):
        read_biq2021(biq)
    labels.write_text("Image Name,MOS\nss03 (9).jpg,good\n")
    with pytest.raises(RecipeError, match=r"'ss03 \(9\)\.jpg' must be a number, got 'good'"):
        read_biq2021(biq)
    labels.write_text("Name,MOS\nss03 (9).jpg,0.75\n")
    with pytest.raises(RecipeError, match="no column 'Image Name'"):
        read_biq2021(biq)
    labels.unlink()
    with pytest.raises(RecipeError, match=r"'Test \(Images and MOS\)\.csv' is missing"):
        read_biq2021(biq)


def test_the_shipped_split_has_names_and_folds_but_no_scores() -> None:
    text = (resources.files("qmamba.data") / "splits" / "biq2021.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    assert set(rows[0]) == {"image", "fold", "content"}
    assert len(rows) == len({row["image"].lower() for row in rows}) == 12_000
    folds: dict[str, set[str]] = {}
    for row in rows:
        folds.setdefault(row["fold"], set()).add(row["content"])
    assert set(folds) == {"train", "val", "test"}
    assert not folds["train"] & folds["test"] and not folds["train"] & folds["val"]
    assert not folds["val"] & folds["test"]


# Manifests


def manifest(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    (folder / "photos").mkdir(exist_ok=True)
    for name in ("a.jpg", "b, c.jpg", "é.jpg"):
        (folder / "photos" / name).write_bytes(b"a photograph")
    path = folder / "ratings.csv"
    path.write_text(text, encoding=encoding)
    return path


def test_manifest(tmp_path: Path) -> None:
    text = 'mos,image,fold,camera\n0.5,photos/a.jpg,train,x\n1e-1,"photos/b, c.jpg",val,y\n3,photos/é.jpg,,\n'
    for encoding in ("utf-8", "utf-8-sig"):  # the second is what spreadsheets write
        assert read_manifest(manifest(tmp_path, text, encoding)) == [
            Rated(tmp_path / "photos/a.jpg", 0.5, "train"),
            Rated(tmp_path / "photos/b, c.jpg", 0.1, "val"),
            Rated(tmp_path / "photos/é.jpg", 3.0, ""),
        ]


def test_manifest_with_all_columns(tmp_path: Path) -> None:
    header = "image,mos,std,reference,distortion\n"
    path = manifest(tmp_path, header + 'a.jpg,0.5,0.1,I01,blur\n"b, c.jpg",0.25,,,\n')
    assert read_manifest(path, root=tmp_path / "photos") == [
        Rated(tmp_path / "photos/a.jpg", 0.5, std=0.1, reference="I01", distortion="blur"),
        Rated(tmp_path / "photos/b, c.jpg", 0.25),
    ]
    path = manifest(tmp_path, "image,dmos\nphotos/a.jpg,7\n")
    assert [r.mos for r in read_manifest(path, score="dmos")] == [7.0]
    with pytest.raises(RecipeError, match="no column 'mos'"):
        read_manifest(path)
    with pytest.raises(RecipeError, match="row 1: std must be a number, got 'wide'"):
        read_manifest(manifest(tmp_path, "image,mos,std\nphotos/a.jpg,1,wide\n"))


def test_manifest_with_absolute_paths_and_without_folds(tmp_path: Path) -> None:
    image = tmp_path / "photos" / "a.jpg"
    assert read_manifest(manifest(tmp_path, f"image,mos\n{image},0.5\n")) == [Rated(image, 0.5)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("image,mos\n", "lists no images"),
        ("", "no column 'image'; its columns are none"),
        ("name,mos\nphotos/a.jpg,1\n", "no column 'image'; its columns are name, mos"),
        ("image,score\nphotos/a.jpg,1\n", "no column 'mos'"),
        ("image,mos\nphotos/a.jpg,1\nphotos/z.jpg,1\n", "row 2: no image at .*z.jpg"),
        ("image,mos\n,1\n", "row 1: no image"),
        ("mos,image\n1\n", "row 1: no image"),
        ("image,mos\nphotos/a.jpg,good\n", "row 1: mos must be a number, got 'good'"),
        ("image,mos\nphotos/a.jpg,nan\n", "mos must be a number, got 'nan'"),
        ("image,mos\nphotos/a.jpg,inf\n", "mos must be a number, got 'inf'"),
        ("image,mos\nphotos/a.jpg\n", "mos must be a number, got ''"),
    ],
)
def test_bad_manifests(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says) as raised:
        read_manifest(manifest(tmp_path, text))
    assert "\n" not in str(raised.value)


def test_manifests_that_are_no_csv(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no manifest at .*give a CSV"):
        read_manifest(tmp_path / "none.csv")
    with pytest.raises(RecipeError, match="no manifest"):
        read_manifest(tmp_path)
    with pytest.raises(RecipeError, match="cannot be read as CSV in UTF-8"):
        read_manifest(manifest(tmp_path, "image,mos\nphotos/é.jpg,1\n", "latin-1"))
