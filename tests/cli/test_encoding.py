"""Names that are not UTF-8 and consoles of any encoding, from the command line to every file that is written."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

import pytest

from vggt_int8.encoding import accept_any_character
from vggt_int8.images import find_images

ROOT = Path(__file__).parent.parent.parent
LATIN = os.fsdecode(b"caf\xe9")


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", rb"caf\xe9 90 deg - 8 x 3 ... \u7167"),
        ("latin-1", b"caf\\xe9 90\xb0 \xb7 8 \xd7 3 ... \\u7167"),
        ("utf-8", "caf\\xe9 90° · 8 × 3 … 照".encode()),
    ],
)
def test_what_a_console_cannot_show_is_spelt_out(
    monkeypatch: pytest.MonkeyPatch, encoding: str, expected: bytes
) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict"))
    accept_any_character()
    for stream in (sys.stdout, sys.stderr):
        stream.write(f"{LATIN} 90° · 8 × 3 … 照")
        stream.flush()
        assert stream.buffer.getvalue() == expected


@pytest.mark.slow
def test_a_name_that_is_not_utf8_works_from_end_to_end(tiny: Path, photos: list[Path], tmp_path: Path) -> None:
    folder, out = tmp_path / LATIN, tmp_path / f"{LATIN}_out"
    folder.mkdir()
    (folder / f"{LATIN}.png").write_bytes(photos[0].read_bytes())
    (folder / f"{LATIN}.txt").write_text("left out, and said so")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    environment |= {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "COLUMNS": "200"}
    command = [sys.executable, "-m", "vggt_int8", "run", str(tiny), str(folder), "-o", str(out), "--device", "cpu"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert rb"caf\xe9_out" in done.stdout
    assert rb"1 .txt (caf\xe9.txt)" in done.stderr
    assert done.stdout.isascii()
    assert done.stderr.isascii()
    maps = sorted(path.name for path in (out / "depth").iterdir())
    assert maps == ["0000_caf%E9.npy", "0000_caf%E9.png"]
    for name, key in (("cameras.json", "images"), ("report.json", "inputs")):
        uri = json.loads((out / name).read_bytes().decode("utf-8"))[key][0]["file"]
        assert os.fsdecode(unquote_to_bytes(urlsplit(uri).path)) == str(folder / f"{LATIN}.png")
        assert find_images(uri) == [folder / f"{LATIN}.png"]


def test_a_model_whose_path_safetensors_cannot_open_is_not_called_damaged(cli, tiny_int8: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_int8, tmp_path / LATIN)
    error = cli("inspect", tmp_path / LATIN, code=2)
    assert "is not UTF-8, which safetensors cannot open: rename the file or its folder" in error
