"""What cannot be decoded gets one clear line, whatever is wrong with it."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pictures import encode, message, photo, planes
from qmamba.errors import ImageError, MissingImageError
from qmamba.images import decode


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG whose header claims a size, whatever its data hold."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere.jpg"
    with pytest.raises(MissingImageError, match="no such file") as caught:
        decode(missing)
    assert str(missing) in str(caught.value) and isinstance(caught.value, FileNotFoundError)
    assert "folder" in message(tmp_path)
    (tmp_path / "empty.jpg").touch()
    assert "zero bytes" in message(tmp_path / "empty.jpg")
    with pytest.raises(MissingImageError):
        decode(tmp_path / "empty.jpg" / "a.jpg")
    assert "cannot be read" in message("a\0b.jpg")
    assert "cannot be read" in message("x" * 5000)
    assert "fetch" in message("https://example.org/a.jpg")
    assert "no such file" in message("two\nlines.jpg")


def test_files_that_are_no_images(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("just words\n" * 20)
    assert str(text) in message(text) and "not an image" in message(text)
    assert "not an image" in message(b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    assert "not an image" in message(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    assert "zero bytes" in message(b"") and "zero bytes" in message(io.BytesIO())


@pytest.mark.filterwarnings("ignore:(Corrupt EXIF|Truncated File)")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "JPEG2000", "AVIF"])
def test_truncated_at_any_length(kind: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    data = encode(Image.fromarray(noise), kind)
    for keep in (1, 2, 8, 20, 40, 100, len(data) // 2, len(data) * 9 // 10):
        text = message(data[:keep])
        assert "truncated" in text or "damaged" in text or "not an image" in text
    path = tmp_path / "cut.img"
    path.write_bytes(data[: len(data) // 2])
    assert str(path) in message(path)


def test_noise_after_a_signature_gives_one_line() -> None:
    heads = [
        b"\xff\xd8\xff\xe0",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"BM",
        b"II*\x00",
        b"MM\x00*",
        b"RIFF\x00\x00\x00\x00WEBP",
    ]
    heads += [b"P6 9 9 255\n", b"qoif", b"\x00\x00\x00\x0cjP  \r\n\x87\n", b"\x00\x00\x00\x1cftypavif"]
    rng = np.random.default_rng(1)
    for head in heads:
        for _ in range(20):
            data = head + rng.integers(0, 256, int(rng.integers(0, 200)), np.uint8).tobytes()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    decode(data)
            except ImageError as error:
                assert "\n" not in str(error)


def test_decompression_bombs_are_refused_by_their_header() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for width, height in ((8000, 8000), (12_000, 9_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)):
            text = message(png(width, height))
            assert "megapixels" in text and "max_pixels" in text
        # A larger limit lets the same header through to the decoder, and Pillow's own limit stays silent.
        assert "truncated" in message(png(20_000, 10_000), max_pixels=10**9)


def test_max_pixels_holds_for_every_kind() -> None:
    pixels = photo(10, 10)
    kinds = [pixels, planes(pixels), Image.fromarray(pixels), encode(Image.fromarray(pixels)), pixels / 255.0]
    for image in kinds:
        assert decode(image, max_pixels=100).shape == (3, 10, 10)
        assert "max_pixels" in message(image, max_pixels=99)


@pytest.mark.parametrize(
    ("image", "word"),
    [
        (np.full((8, 8, 3), np.nan), "NaN"),
        (torch.full((3, 8, 8), float("nan")), "NaN"),
        (np.full((8, 8, 3), np.inf), "[0, 1]"),
        (torch.full((3, 8, 8), 128.0), "divide by 255"),
        (torch.full((3, 8, 8), -1.0), "[0, 1]"),
        (np.zeros((8, 8, 5), np.uint8), "three of its bands"),
        (np.zeros((3, 8, 8), np.uint8), "transpose(1, 2, 0)"),
        (np.zeros((2, 8, 8, 3), np.uint8), "list"),
        (np.zeros(8, np.uint8), "shape (8,)"),
        (np.zeros((0, 8, 3), np.uint8), "empty"),
        (np.zeros((8, 8, 3), np.int64), "int64"),
        (np.zeros((8, 8, 3), np.complex64), "complex64"),
        (torch.zeros(8, 8, 3), "permute(2, 0, 1)"),
        (torch.zeros(8, 8), "unsqueeze(0)"),
        (torch.zeros(1, 3, 8, 8), "list"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "int64"),
        (torch.zeros(3, 8, 0), "empty"),
        (torch.zeros(3, 8, 8).to_sparse(), "dense"),
        (None, "NoneType"),
        (float("nan"), "float"),
        (7, "int"),
    ],
)
def test_bad_arrays_and_types(image: Any, word: str) -> None:
    assert word in message(image)


def test_closed_images_and_files(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(Image.fromarray(photo())))
    image = Image.open(path)
    image.close()
    assert str(path) in message(image)
    with path.open("rb") as file:
        pass
    assert "cannot be read" in message(file)
    with path.open(encoding="latin-1") as text:
        assert "'rb'" in message(text)
    with path.open("rb") as file:
        assert decode(file).equal(decode(file)), "a second reading gives the same"
        assert file.tell() == 0


def test_stream_without_seek() -> None:
    class Pipe:
        def __init__(self, data: bytes) -> None:
            self.data = data

        def read(self) -> bytes:
            return self.data

    assert decode(Pipe(encode(Image.fromarray(photo())))).equal(planes(photo()))


def test_a_file_object_that_fails_in_its_own_way_is_one_line() -> None:
    class Broken(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise zlib.error("incomplete\nstream")

    assert "cannot be read (incomplete stream)" in message(Broken())


def test_inputs_without_a_name_or_without_pixels() -> None:
    assert message("") == "the path is empty; pass the name of an image file"
    assert "no pixels" in message(torch.empty(3, 8, 8, device="meta"))


@pytest.mark.parametrize("text", [b"h", b"hi\n", b"\n\n\n\n\n"])
def test_a_text_of_a_few_bytes_is_not_an_image(text: bytes) -> None:
    assert "not an image" in message(text)
