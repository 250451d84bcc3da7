"""Splits: parts, references kept together, conventions, and files that give back what was saved."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from qmamba.data import Rated
from qmamba.data.splitting import CONVENTIONS, make_splits, read_split, save_split
from qmamba.errors import DataSetError


def photos(count: int, references: int = 0) -> list[Rated]:
    return [
        Rated(Path(f"set/{i}.png"), i / count, reference=f"I{i % references:02d}" if references else "")
        for i in range(count)
    ]


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_four_fifths_by_image(convention: str) -> None:
    splits = make_splits(photos(1162), convention)
    assert len(splits) == 10 and len({split.folds for split in splits}) == 10
    for split in splits:
        assert split.by == "image"
        assert (split.folds.count("train"), split.folds.count("test")) == (930, 232)


# The numbers of references that LoDa trains on, of those that LIVE, TID2013 and KADID-10k have.
@pytest.mark.parametrize(("references", "most"), [(29, 23), (25, 20), (81, 65)])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_by_reference(convention: str, references: int, most: int) -> None:
    rated = photos(references * 3, references)
    splits = make_splits(rated, convention)
    assert len(splits) == 10
    for split in splits:
        assert split.by == "reference"
        folds = {fold: {r.reference for r in split.of(rated) if r.fold == fold} for fold in ("train", "test")}
        assert not folds["train"] & folds["test"]
        assert (len(folds["train"]), len(folds["test"])) == (most, references - most)


def test_one_image_without_a_reference_splits_by_image() -> None:
    assert make_splits([*photos(9, 3), Rated(Path("x.png"), 1.0)], count=1)[0].by == "image"


def test_what_is_split_can_be_chosen() -> None:
    rated = photos(60, 6)
    by_image, by_reference = (make_splits(rated, count=1, by=by)[0] for by in ("image", "reference"))
    assert (by_image.by, by_reference.by) == ("image", "reference")
    assert by_reference == make_splits(rated, count=1)[0]
    plain = make_splits(photos(60), count=1)[0]
    assert by_image.folds == plain.folds != by_reference.folds
    with pytest.raises(DataSetError, match="needs a reference for each image; split by image"):
        make_splits(photos(9), by="reference")


def test_loda_shuffles_the_same_list_again_and_again() -> None:
    generator, order = random.Random(3407), [str(i) for i in range(10)]
    splits = make_splits(photos(10), "loda", count=3)
    assert len(splits) == 3
    for split in splits:
        generator.shuffle(order)
        assert {str(i) for i, fold in enumerate(split.folds) if fold == "train"} == set(order[:8])


def test_deiqt_gives_each_split_a_seed_of_its_own() -> None:
    splits = make_splits(photos(10), count=3, seed=5)
    assert len(splits) == 3
    for i, split in enumerate(splits):
        order = list(range(10))
        random.Random(5 + i).shuffle(order)
        assert {i for i, fold in enumerate(split.folds) if fold == "train"} == set(order[:8])
        assert split.name == f"deiqt-5-0{i}"


def test_splits_are_the_same_everywhere() -> None:
    """Fixed here, so that no change of ours or Python's goes by unseen."""
    tests = {
        c: [i for i, f in enumerate(make_splits(photos(10), c)[9].folds) if f == "test"] for c in CONVENTIONS
    }
    assert tests == {"deiqt": [5, 7], "loda": [2, 6]}


def test_fewer_are_the_first_of_more() -> None:
    for convention in CONVENTIONS:
        assert make_splits(photos(20), convention, count=3) == make_splits(photos(20), convention)[:3]


def test_two_images_are_enough_and_one_is_not() -> None:
    assert sorted(make_splits(photos(2))[0].folds) == ["test", "train"]
    with pytest.raises(DataSetError, match="at least two images, got 1"):
        make_splits(photos(1))
    with pytest.raises(DataSetError, match="at least two references"):
        make_splits(photos(6, 1))
    with pytest.raises(DataSetError, match="must be one of deiqt, loda, got 'random'"):
        make_splits(photos(9), "random")


def test_files(tmp_path: Path) -> None:
    rated = [Rated(tmp_path / "set" / name, 0.5) for name in ("a.png", "b, c.png", "deep/é.png", "d.png")]
    rated.append(Rated(tmp_path / "beside.png", 0.5))
    (split,) = make_splits(rated, count=1)
    path = tmp_path / "splits" / "one.csv"
    save_split(split, rated, tmp_path / "set", path)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("image,fold\na.png,") and '\n"b, c.png",' in text and "\n../beside.png," in text
    assert [f.name for f in path.parent.iterdir()] == ["one.csv"]
    assert read_split(path, rated, tmp_path / "set") == split.of(rated)
    assert read_split(path, rated[::-1], tmp_path / "set") == split.of(rated)[::-1]
    save_split(split, rated, tmp_path / "set", path)  # the same again
    other = make_splits(rated, count=1, seed=3)[0]
    assert other.folds != split.folds
    with pytest.raises(DataSetError, match="holds another split"):
        save_split(other, rated, tmp_path / "set", path)
    assert path.read_text(encoding="utf-8") == text


def test_files_of_other_photographs(tmp_path: Path) -> None:
    rated = photos(5)
    path = tmp_path / "one.csv"
    save_split(make_splits(rated, count=1)[0], rated, "set", path)
    with pytest.raises(DataSetError, match=r"lacks 5\.png"):
        read_split(path, photos(6), "set")
    with pytest.raises(DataSetError, match=r"also has 4\.png"):
        read_split(path, rated[:4], "set")
    with pytest.raises(DataSetError, match=r"none\.csv is missing"):
        read_split(tmp_path / "none.csv", rated, "set")
