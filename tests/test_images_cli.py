"""Images that the command line meets: standard input, folders from a telephone, raw camera files."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from pictures import encode, photo
from qmamba.checkpoints import save_checkpoint
from qmamba.cli import app
from tiny_scorer import quick_config, tiny_network


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "quick"
    save_checkpoint(folder, tiny_network(), quick_config())
    return folder


def rows(quick: Path, *arguments: object, data: bytes = b"") -> dict[str, dict[str, object]]:
    command = ["score", *map(str, arguments), "--model", str(quick), "-f", "jsonl"]
    result = CliRunner().invoke(app, command, input=data)
    assert result.exit_code in (0, 1), result.output
    return {Path(row["path"]).name: row for row in map(json.loads, result.stdout.splitlines())}


def test_standard_input_is_scored_as_what_it_holds(
    quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = encode(Image.fromarray(photo(64, 64)))
    Path("a.png").write_bytes(data)
    found = rows(quick, "-", "a.png", data=data)
    assert found["-"]["score"] == found["a.png"]["score"] is not None
    assert "zero bytes" in str(rows(quick, "-")["-"]["error"])
    assert "not an image" in str(rows(quick, "-", data=b"just words")["-"]["error"])
    Path("-").write_bytes(data)
    assert rows(quick, "-", data=b"just words")["-"]["score"] is not None, "a file of that name"


def test_a_folder_of_a_telephone(quick: Path, tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif")
    pytest.importorskip("pillow_jxl", reason="needs pillow-jxl-plugin")
    image = Image.fromarray(photo(64, 64))
    buffer = io.BytesIO()
    heif.from_pillow(image).save(buffer)
    for name in ("a.heic", "b.HEIF", "c.hif"):
        (tmp_path / name).write_bytes(buffer.getvalue())
    (tmp_path / "d.jxl").write_bytes(encode(image, "JXL"))
    found = rows(quick, tmp_path)
    assert set(found) == {"a.heic", "b.HEIF", "c.hif", "d.jxl"}
    assert all(row["score"] is not None for row in found.values())


def test_what_cannot_be_read_has_its_row(quick: Path, tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1" + bytes(32))
    (tmp_path / "b.tif").write_bytes(b"II*\0\x10\0\0\0CR\x02\0" + bytes(40))
    Image.fromarray(photo(64, 64)).save(tmp_path / "c.png")
    found = rows(quick, tmp_path)
    assert found["c.png"]["score"] is not None
    assert all(found[name]["error"] for name in ("a.heic", "b.tif"))
