"""The sample photographs: small, readable, and each with its licence written down."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from qmamba.images import decode

FOLDER = Path(__file__).parents[1] / "examples"
PHOTOGRAPHS = sorted(path for path in FOLDER.glob("*") if path.suffix in (".jpg", ".png"))


def test_licences_list_every_photograph_and_no_other() -> None:
    text = (FOLDER / "LICENSES.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip(" `") for line in text.splitlines() if line.startswith("| `")]
    assert 4 <= len(PHOTOGRAPHS) <= 6 and sorted(rows) == [path.name for path in PHOTOGRAPHS]
    licences = [line.split("|")[5].strip() for line in text.splitlines() if line.startswith("| `")]
    assert set(licences) <= {"public domain", "CC0"}


def test_size_on_disk() -> None:
    assert sum(path.stat().st_size for path in PHOTOGRAPHS) < 1_500_000


@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: path.name)
def test_photograph(path: Path) -> None:
    pixels = decode(path)
    assert pixels.dtype == torch.uint8 and max(pixels.shape[1:]) <= 640 and min(pixels.shape[1:]) >= 224
    with Image.open(path) as image:
        assert not image.getexif() and "icc_profile" not in image.info, "nothing hidden in it"
