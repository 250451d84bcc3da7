"""The data sets' readers, on small trees in each official layout, whole and broken."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from dataset_trees import TREES, column, save_xlsx, savemat
from qmamba.data import DATASETS, Rated, read_dataset
from qmamba.errors import DataSetError, RecipeError

DOCS = Path(__file__).parents[1] / "docs" / "data.md"
COUNTS = {
    "live": 779, "csiq": 866, "tid2013": 3000, "kadid10k": 10125, "livec": 1162, "koniq10k": 10073,
    "flive": 39810, "spaq": 11125, "agiqa3k": 2982, "aigciqa2023": 2400, "biq2021": 12000,
}  # fmt: skip


def refused(name: str, root: Path, **options: Path) -> str:
    with pytest.raises(DataSetError) as caught:
        read_dataset(name, root, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", TREES)
def test_official_layout(name: str, tmp_path: Path) -> None:
    rows = TREES[name](tmp_path)
    facts, rated = DATASETS[name], read_dataset(name, str(tmp_path))
    assert [r.path for r in rated] == [tmp_path / path for path, *_ in rows]
    low, high = facts.scale
    lower = name in ("live", "csiq")
    assert [r.mos for r in rated] == pytest.approx([low + high - s if lower else s for _, s, *_ in rows])
    assert [r.std for r in rated] == pytest.approx([std for _, _, std, *_ in rows])
    assert [(r.reference, r.distortion) for r in rated] == [(ref, kind) for *_, ref, kind in rows]
    assert {r.fold for r in rated} == ({"train", "val", "test"} if name == "biq2021" else {""})
    assert len(rated) == facts.images or name not in ("live", "biq2021")  # those trees are whole
    assert {(r.scale, r.direction) for r in rated} == {(facts.scale, "lower" if lower else "higher")}


def test_agiqa3k_as_a_clone_of_its_copy(tmp_path: Path) -> None:
    """github.com/qiyan111/AIGC has everything in data/, and the images in ACGIQA-3K."""
    TREES["agiqa3k"](tmp_path / "data")
    (tmp_path / "data" / "images").rename(tmp_path / "data" / "ACGIQA-3K")
    rated = read_dataset("agiqa3k", tmp_path)
    assert rated == read_dataset("agiqa3k", tmp_path / "data") and len(rated) == 4
    assert rated[2].path == tmp_path / "data" / "ACGIQA-3K" / "AttnGAN_normal_002.jpg"
    assert [r.reference for r in rated] == ["000", "001", "002", "003"]


def test_facts() -> None:
    assert {name: facts.images for name, facts in DATASETS.items()} == COUNTS
    assert set(TREES) == set(DATASETS)
    assert [name for name, facts in DATASETS.items() if facts.direction == "lower"] == ["live", "csiq"]
    assert [name for name, facts in DATASETS.items() if facts.verified] == ["biq2021"]
    assert {n: f.references for n, f in DATASETS.items() if f.references} == {
        "live": 29, "csiq": 30, "tid2013": 25, "kadid10k": 81,
    }  # fmt: skip


# What to take away from a tree, and what the line that follows has to name.
MISSING = [
    ("live", "dmos_realigned.mat", "dmos_realigned.mat is missing"),
    ("live", "refnames_all.mat", "refnames_all.mat is missing"),
    ("live", "jp2k/img227.bmp", "1 of 779 images are missing from .*, the first is jp2k/img227.bmp"),
    ("csiq", "csiq.DMOS.xlsx", "csiq.DMOS.xlsx is missing"),
    ("csiq", "dst_imgs/jpeg2000/1600.jpeg2000.2.png", "1 of 24 .* first is jpeg2000/1600.jpeg2000.2.png"),
    ("tid2013", "mos_with_names.txt", "mos_with_names.txt is missing"),
    ("tid2013", "mos_std.txt", "mos_std.txt is missing"),
    ("tid2013", "distorted_images/i02_24_5.bmp", "1 of 12 images are missing .* first is I02_24_5.bmp"),
    ("kadid10k", "dmos.csv", "dmos.csv is missing"),
    ("kadid10k", "images/I01_09_03.png", "1 of 8 images are missing from images, the first is I01_09_03.png"),
    ("livec", "Data/AllImages_release.mat", "AllImages_release.mat is missing"),
    ("livec", "Data/AllMOS_release.mat", "AllMOS_release.mat is missing"),
    ("livec", "Data/AllStdDev_release.mat", "AllStdDev_release.mat is missing"),
    ("livec", "Images/1024.JPG", "1 of 5 images are missing from Images, the first is 1024.JPG"),
    ("koniq10k", "koniq10k_scores_and_distributions.csv", "koniq10k_scores_and_distributions.csv is missing"),
    ("koniq10k", "1024x768/300.jpg", "1 of 5 images are missing from 1024x768, the first is 300.jpg"),
    ("flive", "labels_image.csv", "labels_image.csv is missing"),
    ("flive", "database/EE371R/rq59.jpg", "1 of 3 .* database, the first is EE371R/rq59.jpg"),
    ("spaq", "Annotations/MOS and Image attribute scores.xlsx", "attribute scores.xlsx is missing"),
    ("spaq", "TestImage/00003.jpg", "1 of 4 images are missing from TestImage, the first is 00003.jpg"),
    ("agiqa3k", "data.csv", "data.csv is missing"),
    ("agiqa3k", "images/AttnGAN_normal_002.jpg", "1 of 4 .*, the first is AttnGAN_normal_002.jpg"),
    ("aigciqa2023", "DATA/MOS/mosz1.mat", "mosz1.mat is missing"),
    ("aigciqa2023", "Image/allimg/7.png", "1 of 12 images are missing from Image/allimg, the first is 7.png"),
]


@pytest.mark.parametrize(("name", "path", "says"), MISSING)
def test_a_partial_tree_says_what_is_missing(name: str, path: str, says: str, tmp_path: Path) -> None:
    TREES[name](tmp_path)
    (tmp_path / path).unlink()
    message = refused(name, tmp_path)
    assert re.search(says, message), message
    assert message.count(f"{DATASETS[name].title} at {tmp_path}") == 1
    assert "layout unverified" in message and "--manifest FILE" in message


def test_a_partial_tree_of_a_layout_that_is_verified(tmp_path: Path) -> None:
    (tmp_path / "Images").mkdir()
    assert refused("biq2021", tmp_path) == (
        f"BIQ2021 at {tmp_path} is incomplete: 'Train (Images and MOS).csv' is missing;"
        " docs/data.md shows the expected files"
    )


@pytest.mark.parametrize("name", TREES)
def test_a_wrong_folder(name: str, tmp_path: Path) -> None:
    if name in ("live", "livec", "aigciqa2023"):
        pytest.importorskip("scipy", reason="scipy, which reads .mat files, is not installed")
    if name in ("csiq", "spaq"):
        pytest.importorskip("openpyxl", reason="openpyxl, which reads .xlsx files, is not installed")
    assert DATASETS[name].title in refused(name, tmp_path)  # empty
    where = f"{DATASETS[name].title} at {tmp_path / 'elsewhere'}"
    assert refused(name, tmp_path / "elsewhere") == f"{where}: no such folder; check the path"


@pytest.mark.parametrize("name", ["kadid10k", "koniq10k", "flive", "agiqa3k"])
def test_a_csv_without_its_columns_or_rows(name: str, tmp_path: Path) -> None:
    TREES[name](tmp_path)
    (labels,) = tmp_path.glob("*.csv")
    header, first, *_ = labels.read_text().splitlines()
    labels.write_text("a,b\n1,2\n")
    assert "has no column" in refused(name, tmp_path)
    labels.write_text(header + "\n")
    assert "name no images" in refused(name, tmp_path)
    cells = ["x" if cell.replace(".", "", 1).isdecimal() else cell for cell in first.split(",")]
    labels.write_text(f"{header}\n{','.join(cells)}\n")
    assert "must be a number, got 'x'" in refused(name, tmp_path)
    labels.write_bytes(b"\xff\xfe\xff")
    assert "cannot be read as CSV" in refused(name, tmp_path)


def test_broken_matlab_files(tmp_path: Path) -> None:
    TREES["livec"](tmp_path)
    mos = tmp_path / "Data" / "AllMOS_release.mat"
    savemat(mos, AllMOS_release=[1.0, 2.0])
    message = refused("livec", tmp_path)
    assert "12 AllImages_release, 2 AllMOS_release, 12 AllStdDev_release" in message
    savemat(mos, Other=[1.0])
    assert "no variable 'AllMOS_release'; its variables are Other" in refused("livec", tmp_path)
    mos.write_bytes(b"no MATLAB")
    assert "cannot be read as MATLAB" in refused("livec", tmp_path)
    savemat(mos, AllMOS_release=[*[1.0] * 11, float("nan")])
    assert "AllMOS_release of a photo.jpg must be" in refused("livec", tmp_path)


def test_live_arrays_of_another_length(tmp_path: Path) -> None:
    TREES["live"](tmp_path)
    savemat(tmp_path / "refnames_all.mat", refnames_all=column(["one.bmp", "two.bmp"]))
    assert "982 images, 982 dmos_new, 982 dmos_std, 982 orgs, 2 refnames_all" in refused("live", tmp_path)


def test_broken_sheets(tmp_path: Path) -> None:
    TREES["csiq"](tmp_path)
    sheet = tmp_path / "csiq.DMOS.xlsx"
    head: list[object] = ["image", "dst_type", "dst_lev", "dmos_std", "dmos"]
    save_xlsx(sheet, [head, ["1600", "sepia", 1, 0.1, 0.2]], "all_by_image")
    assert "dst_type must be noise" in refused("csiq", tmp_path)
    save_xlsx(sheet, [head, ["1600", "blur", 1, 0.1, "bad"]], "all_by_image")
    assert "dmos of blur/1600.BLUR.1.png must be a number, got 'bad'" in refused("csiq", tmp_path)
    save_xlsx(sheet, [head], "another")
    assert "cannot be read as Excel" in refused("csiq", tmp_path)
    save_xlsx(sheet, [["image", "dmos"]], "all_by_image")
    assert "no row with the headings image, dst_type" in refused("csiq", tmp_path)
    sheet.write_bytes(b"no zip")
    assert "cannot be read as Excel" in refused("csiq", tmp_path)


def test_broken_text_files_of_tid2013(tmp_path: Path) -> None:
    TREES["tid2013"](tmp_path)
    names = tmp_path / "mos_with_names.txt"
    whole = names.read_text()
    names.write_text(whole + "5.5 I01_01_2.bmp\n")
    assert "13 mos_with_names, 12 mos_std" in refused("tid2013", tmp_path)
    names.write_text(whole.replace(" I01_08_1.bmp", ""))
    assert "must be a score and a name" in refused("tid2013", tmp_path)
    names.write_text(whole.replace("I01_24_5", "I01_25_5"))
    (tmp_path / "distorted_images" / "I01_25_5.bmp").touch()
    assert "with distortions 1 to 24" in refused("tid2013", tmp_path)


def test_koniq_at_half_size(tmp_path: Path) -> None:
    TREES["koniq10k"](tmp_path)
    (tmp_path / "1024x768").rename(tmp_path / "512x384")
    assert {r.path.parent.name for r in read_dataset("koniq10k", tmp_path)} == {"512x384"}


def test_aigciqa2023_without_deviations(tmp_path: Path) -> None:
    TREES["aigciqa2023"](tmp_path)
    (tmp_path / "DATA" / "STD" / "SD1.mat").unlink()
    assert {r.std for r in read_dataset("aigciqa2023", tmp_path)} == {None}


# Files pointed at by hand


def test_manifest_in_place_of_the_label_files(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for name in "ab":
        (tmp_path / "pictures" / f"{name}.jpg").touch()
    labels = tmp_path / "labels" / "mine.csv"
    labels.parent.mkdir()
    labels.write_text("image,mos,std\npictures/a.jpg,3,0.5\npictures/b.jpg,4,\n")
    scale = {"scale": (1, 5)}
    assert read_dataset("kadid10k", tmp_path, manifest=labels) == [
        Rated(tmp_path / "pictures/a.jpg", 3.0, std=0.5, **scale),  # type: ignore[arg-type]
        Rated(tmp_path / "pictures/b.jpg", 4.0, **scale),  # type: ignore[arg-type]
    ]
    # A DMOS set takes DMOS, under their name, and turns them.
    assert "no column 'dmos'" in refused("live", tmp_path, manifest=labels)
    labels.write_text("image,dmos\npictures/a.jpg,30\n")
    (rated,) = read_dataset("live", tmp_path, manifest=labels)
    assert (rated.mos, rated.direction) == (70.0, "lower")


def test_own_ratings(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    labels = tmp_path / "mine.csv"
    labels.write_text("image,mos\na.jpg,3\n")
    assert read_dataset("manifest", labels) == [Rated(tmp_path / "a.jpg", 3.0)]
    assert "give the CSV file" in refused("manifest", labels, manifest=labels)


def test_unknown_name(tmp_path: Path) -> None:
    assert "near names: tid2013" in refused("TID-2031", tmp_path)


@pytest.mark.parametrize(("name", "module"), [("livec", "scipy.io"), ("spaq", "openpyxl")])
def test_a_library_that_is_not_installed(
    name: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TREES[name](tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RecipeError, match=r'pip install "qmamba\[data\]"') as caught:
        read_dataset(name, tmp_path)
    assert "--manifest" not in str(caught.value)


def test_the_page_tells_the_facts() -> None:
    if not DOCS.is_file():
        pytest.skip("the documentation is not here: this is an installed package")
    page = DOCS.read_text(encoding="utf-8")
    for name, facts in DATASETS.items():
        section = page.split(f"\n## {facts.title}\n")[1].split("\n## ")[0]
        assert f"```\n{facts.tree}\n```" in section, name
        low, high = facts.scale
        for fact in (f"`{name}`", f"{facts.images:,}", facts.licence, facts.home, f"{low} to {high}"):
            assert fact in section, (name, fact)
        assert ("layout unverified" in section) != facts.verified
        assert ("DMOS, inverted" in section) == (facts.direction == "lower")
