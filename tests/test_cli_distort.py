"""`qmamba distort`: what is written, what is refused, and that refusals are one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import qmamba
from qmamba.cli import app
from qmamba.data import DISTORTIONS
from qmamba.data.distortions import KADID_KINDS


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((40, 32)).save(path)
    return path


def run(*arguments: str | Path | int) -> Result:
    return CliRunner().invoke(app, ["distort", *map(str, arguments)])


def refused(*arguments: str | Path | int) -> str:
    result = run(*arguments)
    assert result.exit_code == 2 and not result.stdout
    assert result.stderr.startswith("qmamba: ") and result.stderr.count("\n") == 1
    return result.stderr


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def test_it_writes_what_the_library_makes(photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "noisy.png"
    result = run(photo, "white_noise", "--level", 4, "--seed", 7, "-o", out)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{out}\n", "")
    expected = qmamba.distort(photo, "white_noise", level=4, seed=7)
    np.testing.assert_array_equal(pixels(out), np.asarray(expected))
    assert run(photo, "white_noise", "-o", out, "--force").exit_code == 0
    np.testing.assert_array_equal(pixels(out), np.asarray(qmamba.distort(photo, "white_noise", 3)))


def test_all(photo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "damaged"
    result = run(photo, "--all", "-o", folder)
    assert result.exit_code == 0, result.stderr
    names = [f"{name}-{level}.png" for name in DISTORTIONS for level in range(1, 6)]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert result.stdout.splitlines() == [str(folder / name) for name in names]
    np.testing.assert_array_equal(
        pixels(folder / "jitter-2.png"), np.asarray(qmamba.distort(photo, "jitter", 2))
    )
    assert "gaussian_blur-2.png: exists already" in refused(photo, "--all", "--level", 2, "-o", folder)
    assert run(photo, "--all", "--level", 2, "-o", folder, "--force").exit_code == 0


@pytest.mark.parametrize(("suffix", "kind"), [(".jpg", "JPEG"), (".PNG", "PNG"), (".webp", "WEBP")])
def test_the_name_chooses_the_format(photo: Path, tmp_path: Path, suffix: str, kind: str) -> None:
    out = tmp_path / f"damaged{suffix}"
    assert run(photo, "brighten", "-o", out).exit_code == 0
    with Image.open(out) as image:
        assert image.format == kind and image.size == (40, 32)


def test_list() -> None:
    result = run("--list")
    assert result.exit_code == 0
    rows = result.stdout.splitlines()
    assert [row.split()[0] for row in rows] == ["name", *DISTORTIONS]
    assert "0.7 1.2 2 3.2 5" in rows[1] and "in pixels" in rows[1]
    assert result.stdout.isascii(), "terminals of any encoding can show it"


def test_refusals(photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    assert "near names: gaussian_blur" in refused(photo, "gaussian", "-o", out)
    assert "from 1 to 5, got 6" in refused(photo, "jpeg", "--level", 6, "-o", out)
    assert "give the NAME of a distortion" in refused(photo, "-o", out)
    assert "give the NAME of a distortion" in refused(photo, "jpeg", "--all", "-o", out)
    assert "none.png: no such file" in refused(tmp_path / "none.png", "jpeg", "-o", out)
    assert "images cannot be written as .txt" in refused(photo, "jpeg", "-o", tmp_path / "out.txt")
    assert "no extension" in refused(photo, "jpeg", "-o", tmp_path / "out")
    assert "a folder; give the name" in refused(photo, "jpeg", "-o", tmp_path)
    assert "no such folder" in refused(photo, "jpeg", "-o", tmp_path / "none" / "out.png")
    assert "exists already; give --force" in refused(photo, "jpeg", "-o", photo)
    assert list(tmp_path.iterdir()) == [photo], "nothing was written"


def test_an_image_that_the_format_cannot_hold(tmp_path: Path) -> None:
    wide = tmp_path / "wide.png"
    Image.new("RGB", (20_000, 1)).save(wide)
    assert "cannot be written as WEBP" in refused(wide, "mean_shift", "-o", tmp_path / "wide.webp")
    assert not (tmp_path / "wide.webp").exists()


def test_without_a_file_to_write(photo: Path) -> None:
    result = run(photo, "jpeg")
    assert result.exit_code == 2 and "--out" in result.stderr


def test_the_scale_of_kadid(photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "blocks.png"
    assert run(photo, "jpeg", "--scale", "kadid", "--level", 3.5, "-o", out).exit_code == 0
    expected = qmamba.distort(photo, "jpeg", 3.5, scale="kadid")
    np.testing.assert_array_equal(pixels(out), np.asarray(expected))
    folder = tmp_path / "damaged"
    assert run(photo, "--all", "--scale", "kadid", "--level", 2.5, "-o", folder).exit_code == 0
    names = {f"{name}-2.5.png" for name in KADID_KINDS}
    assert {path.name for path in folder.iterdir()} == names
    assert "43 36 24 7 4" in run("--list").stdout


def test_what_a_scale_lacks_is_refused(photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "new.png"
    assert "an integer from 1 to 5, got 2.5" in refused(photo, "jpeg", "--level", 2.5, "-o", out)
    assert "from 1 to 5 on the scale 'kadid', got 5.5" in refused(
        photo, "jpeg", "--scale", "kadid", "--level", 5.5, "-o", out
    )
    assert "has no 'denoise'" in refused(photo, "denoise", "--scale", "kadid", "-o", out)
    assert "one of qmamba, kadid, got 'tid'" in refused(
        photo, "--all", "--scale", "tid", "-o", tmp_path / "n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def test_a_contact_sheet(photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    result = run(photo, "--sheet", "-o", out, "--seed", 2)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{out}\n", "")
    sheet = pixels(out)
    assert sheet.shape == (26 + 102 * len(DISTORTIONS), 1005, 3)
    row = list(DISTORTIONS).index("pixelate")
    for level in range(1, 6):
        top, left = 26 + 102 * row, 245 + 152 * (level - 1)
        expected = np.asarray(qmamba.distort(photo, "pixelate", level, seed=2))
        np.testing.assert_array_equal(sheet[top : top + 32, left : left + 40], expected)
    assert run(photo, "jpeg", "--sheet", "--scale", "kadid", "-o", tmp_path / "one.jpg").exit_code == 0
    assert pixels(tmp_path / "one.jpg").shape == (128, 1005, 3)
    assert "--force" in refused(photo, "--sheet", "-o", out)
    assert "leave out --all and --level" in refused(photo, "--sheet", "--all", "-o", tmp_path / "x.png")
    assert "leave out" in refused(photo, "--sheet", "--level", 2, "-o", tmp_path / "x.png")
    assert "no distortion is named" in refused(photo, "blurr", "--sheet", "-o", tmp_path / "x.png")
