"""What holds an image: arrays of every kind, columns, records, archives, file objects, Pillow images."""

from __future__ import annotations

import importlib.resources
import io
import mmap
import sys
import tempfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from pictures import encode, message, photo, planes
from qmamba.errors import ImageError, MissingImageError
from qmamba.images import as_list, decode, label

PIXELS = photo()
PNG = encode(Image.fromarray(PIXELS))


# --- arrays


class Named(np.ndarray):
    """An array with a name, as `imageio` has them."""


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_subclasses_are_scored_as_what_they_hold(tmp_path: Path) -> None:
    (tmp_path / "pixels").write_bytes(PIXELS.tobytes())
    mapped = np.memmap(tmp_path / "pixels", np.uint8, "r", shape=PIXELS.shape)
    for array in (PIXELS.view(Named), mapped, np.ma.masked_array(PIXELS), np.ma.masked_array(PIXELS, False)):
        assert decode(array).equal(planes(PIXELS))
    matrix = np.asmatrix(PIXELS[..., 0])
    assert decode(matrix).equal(planes(PIXELS)[:1].expand(3, -1, -1))


def test_masked_elements_are_refused() -> None:
    mask = np.zeros(PIXELS.shape, bool)
    mask[3, 4] = True
    for array in (PIXELS, PIXELS / 255):
        text = message(np.ma.masked_array(array, mask))
        assert "3 masked elements" in text and "filled" in text
    assert decode(np.ma.masked_array(PIXELS, mask).filled(0)).shape == (3, 24, 36)


def test_arrays_of_objects_and_records() -> None:
    assert "astype(numpy.uint8)" in message(PIXELS.astype(object))
    with pytest.raises(ImageError, match=r"astype\(numpy.uint8\)"):
        as_list(PIXELS.astype(object))
    with pytest.raises(ImageError, match=r"array.ravel\(\)"):
        as_list(np.full((2, 2), "a.png", object))
    column = np.empty(2, object)
    column[:] = [Image.fromarray(PIXELS), PNG]
    items, single = as_list(column)
    assert not single and all(decode(item).equal(planes(PIXELS)) for item in items)
    alone = np.empty((), object)
    alone[()] = PNG
    assert as_list(alone)[1] and decode(alone).equal(planes(PIXELS))
    fields = PIXELS.view([("red", "u1"), ("green", "u1"), ("blue", "u1")])
    text = message(fields)
    assert "red, green, blue" in text and "structured_to_unstructured" in text


def test_two_channels_are_grey_and_alpha() -> None:
    la = np.dstack([PIXELS[..., 0], PIXELS[..., 1]])
    want = decode(
        encode(Image.merge("LA", [Image.fromarray(np.ascontiguousarray(b)) for b in la.transpose(2, 0, 1)]))
    )
    assert decode(la).equal(want) and decode(planes(la)).equal(want)
    for array in (la / 255, la.astype(np.uint16) * 257):
        got = decode(array)
        assert torch.allclose(got, want / 255, atol=0.6 / 255) and got.shape == (3, 24, 36)
        assert decode(torch.from_numpy(array).permute(2, 0, 1)).equal(got)


def test_arrays_of_other_libraries() -> None:
    class Other:
        """Has what xarray, jax and TensorFlow arrays have."""

        ndim = 3

        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return PIXELS

        def __iter__(self) -> Any:
            return iter(PIXELS)

    class Elsewhere(Other):
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            raise TypeError("on a GPU\nfor good")

    items, single = as_list(Other())
    assert single and decode(items[0]).equal(planes(PIXELS))
    assert "on a GPU for good" in message(Elsewhere())


# --- columns and records


def test_columns_of_pyarrow(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    records = [{"bytes": PNG, "path": None}, {"bytes": None, "path": str(path)}]
    columns = [
        arrow.array([PNG, PNG]),
        arrow.array([str(path)] * 2),
        arrow.chunked_array([[str(path)], [str(path)]]),
        arrow.array([str(path)] * 2).dictionary_encode(),
        arrow.array(records),
        arrow.table({"image": records})["image"],
    ]
    for column in columns:
        items, single = as_list(column)
        assert not single and len(items) == 2
        assert all(decode(item).equal(planes(PIXELS)) for item in items), column.type
        assert as_list(column[0])[1]
    assert label(columns[1][0]) == str(path) == label(columns[4][1])
    assert decode(arrow.py_buffer(PNG)).equal(planes(PIXELS))
    with pytest.raises(ImageError, match="one column of a table"):
        as_list(arrow.table({"image": records}))
    assert "NoneType" in message(arrow.array([None, PNG])[0])


def test_records_of_datasets(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    for record in (
        {"bytes": PNG, "path": None},
        {"bytes": PNG, "path": "x.png"},
        {"path": str(path)},
        {"bytes": PNG},
    ):
        items, single = as_list(record)
        assert single and decode(items[0]).equal(planes(PIXELS))
    assert label({"bytes": PNG, "path": "x.png"}) == "x.png" and label({"bytes": PNG}) == "dict"
    assert "are None" in message({"bytes": None, "path": None})
    assert "row['image']" in message({"image": PNG, "label": 1})
    with pytest.raises(ImageError, match="pass the image in it"):
        as_list({"image": PNG})


def test_rows_of_datasets() -> None:
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    rows = datasets.Dataset.from_dict({"image": [{"bytes": PNG, "path": None}] * 2})
    rows = rows.cast_column("image", datasets.Image(decode=False))
    items, single = as_list(rows["image"])
    assert not single and all(decode(item).equal(planes(PIXELS)) for item in items)
    assert "row['image']" in message(rows[0])


# --- archives and other things that open


def test_paths_into_archives(tmp_path: Path) -> None:
    archive = tmp_path / "photos.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("sub/a.png", PNG)
        file.writestr("notes.txt", "just words")
        file.writestr("empty.png", b"")
    root = zipfile.Path(archive)
    inside = root / "sub" / "a.png"
    assert as_list(inside)[1] and decode(inside).equal(planes(PIXELS))
    assert label(inside) == str(inside) and str(inside) in message(inside, max_pixels=1)
    assert "folder" in message(root / "sub/") and "not an image" in message(root / "notes.txt")
    assert "zero bytes" in message(root / "empty.png")
    with pytest.raises(MissingImageError):
        decode(root / "none.png")
    with zipfile.ZipFile(archive) as file, file.open("sub/a.png") as member:
        assert decode(member).equal(planes(PIXELS))
    in_memory = zipfile.Path(zipfile.ZipFile(io.BytesIO(archive.read_bytes())))  # its str() is an error
    assert as_list(in_memory / "sub/a.png")[1] and decode(in_memory / "sub/a.png").equal(planes(PIXELS))
    assert message(in_memory / "none.png").startswith("Path: no such file")


def test_a_view_of_an_array_is_no_file() -> None:
    assert decode(memoryview(PIXELS)).equal(planes(PIXELS))
    assert "not an image" in message(memoryview(b"just words"))


def test_rows_say_which_image_to_pass() -> None:
    for row in ({"image": PNG, "label": 3}, {"path": "a.png", "score": 1.0}):
        with pytest.raises(ImageError, match=r"a row \(.*\); pass the image in it"):
            as_list(row)


def test_an_archive_cannot_ask_for_memory(tmp_path: Path) -> None:
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.png", PNG + bytes(40_000_000))
    assert "more than an image" in message(zipfile.Path(archive) / "a.png", max_pixels=1000)


def test_resources_of_packages() -> None:
    folder = importlib.resources.files("qmamba")
    assert "not an image" in message(folder / "py.typed") or "zero bytes" in message(folder / "py.typed")


def test_standard_input_says_what_to_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"abc")))
    assert ".buffer" in message(sys.stdin)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(PNG)))
    assert decode(sys.stdin.buffer).equal(planes(PIXELS))
    assert "sys.stdin.buffer" in message("-")


class Bare:
    """Seeks, and has no `seekable`."""

    def __init__(self, data: bytes) -> None:
        self.file = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self.file.read(size)

    def seek(self, place: int) -> int:
        return self.file.seek(place)

    def tell(self) -> int:
        return self.file.tell()


class Trickle(io.RawIOBase):
    """Gives a few bytes at a time, and cannot seek."""

    def __init__(self, data: bytes) -> None:
        self.file = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self.file.read(100)


def test_file_objects_are_read_from_their_start_and_left_where_they_were(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    with (
        path.open("rb", buffering=0) as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        tempfile.SpooledTemporaryFile() as spooled,
    ):
        spooled.write(PNG)
        for file in (Bare(PNG), spooled, mapped, io.BytesIO(PNG), opened):
            for place in (0, 7, len(PNG)):
                file.seek(place)
                assert decode(file).equal(planes(PIXELS)), type(file)
                assert file.tell() == place
    assert decode(Trickle(PNG)).equal(planes(PIXELS))
    broken = io.BytesIO(b"no image")
    broken.seek(3)
    assert message(broken) and broken.tell() == 3


def test_a_file_object_without_end_is_refused() -> None:
    class Endless(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            return bytes(1 << 20)

    assert "more than an image" in message(Endless(), max_pixels=1000)


# --- names


@pytest.mark.parametrize(
    "text", ["s3://bucket/a.png", "gs://a/b.jpg", "hf://datasets/a/b.jpg", "file:///a.png"]
)
def test_addresses_are_not_paths(text: str) -> None:
    assert "nothing is downloaded here" in message(text)


def test_other_texts_that_are_no_paths() -> None:
    text = message("data:image/png;base64," + "A" * 5000)
    assert "base64.b64decode" in text and len(text) < 200
    assert "os.fsdecode" in message(b"folder/photo.JPG")


# --- Pillow images


def test_a_turned_image_keeps_its_flag_and_is_turned_again(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn to the left of how it is shown
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path, exif=exif)
    upright = planes(np.rot90(PIXELS, -1))
    with Image.open(path) as image:
        assert decode(image).equal(upright) and decode(path).equal(upright)
        for derived in (image.copy(), image.convert("RGBA"), image.crop((0, 0, 36, 24))):
            assert decode(derived).equal(upright), "what was not turned is shown as its file is"
        turned = image.rotate(-90, expand=True)
        assert np.array_equal(np.asarray(turned), np.rot90(PIXELS, -1))
        assert decode(turned).equal(planes(np.rot90(PIXELS, -2))), "as docs/scoring.md says"
        del turned.getexif()[0x0112]
        assert decode(turned).equal(upright)
        assert decode(ImageOps.exif_transpose(image)).equal(upright)


def test_a_lazy_image_in_many_threads(tmp_path: Path) -> None:
    big = np.asarray(Image.fromarray(PIXELS).resize((600, 400)))
    for kind in ("PNG", "TIFF", "JPEG"):
        path = tmp_path / f"a.{kind}"
        Image.fromarray(big).save(path, kind)
        want = decode(path)
        for _ in range(5):
            gate = threading.Barrier(4)
            with Image.open(path) as image, ThreadPoolExecutor(4) as pool:

                def work(_: int, image: Image.Image = image, gate: threading.Barrier = gate) -> torch.Tensor:
                    gate.wait()
                    return decode(image)

                assert all(got.equal(want) for got in pool.map(work, range(4)))
