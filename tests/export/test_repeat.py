"""Reports tell models, images and commands apart."""

import hashlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import zeros

from vggt_int8.export.repeat import command_line, identify_file, identify_model, readable


def test_weights_are_told_apart_by_samples(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    weights = zeros(3_000_000)  # 12 MB: not read as a whole
    save_file({"x": weights}, tmp_path / "a" / "model.safetensors")
    save_file({"x": weights}, tmp_path / "b" / "model.safetensors")
    first = identify_model(str(tmp_path / "a"))
    assert first["kind"] == "samples"
    assert identify_model(str(tmp_path / "b")) == first
    weights += 1e-3
    save_file({"x": weights}, tmp_path / "b" / "model.safetensors")
    assert identify_model(str(tmp_path / "b")) != first
    assert identify_model(str(tmp_path / "b" / "model.safetensors")) == identify_model(str(tmp_path / "b"))


@pytest.mark.parametrize("size", [0, 1, (1 << 20) + 64 * (1 << 16), (1 << 20) + 64 * (1 << 16) + 1, 9_999_999])
def test_samples_reach_the_end_of_a_file(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(bytes(size))
    before = identify_model(str(path))
    if size:
        path.write_bytes(bytes(size - 1) + b"1")
        assert identify_model(str(path)) != before
    path.write_bytes(bytes(size + 1))
    assert identify_model(str(path)) != before


def test_a_save_has_an_id(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"save": {"id": "0123", "sha256": {}}}))
    assert identify_model(str(tmp_path)) == {"kind": "save_id", "value": "0123"}


def test_the_embedded_model_has_a_name() -> None:
    assert identify_model("embedded")["value"] is not None


def test_a_hub_model_is_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    cached = tmp_path / "snapshots" / "abc123" / "config.json"
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, file: str(cached))
    assert identify_model("me/model") == {"kind": "commit", "value": "abc123"}
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, file: None)
    assert identify_model("me/model") == {"kind": None, "value": None}


def test_files_by_their_content(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"abc")
    expected = {"sha256": hashlib.sha256(b"abc").hexdigest(), "bytes": 3}
    assert identify_file(tmp_path / "a.jpg") == expected


def test_a_shell_reads_the_command_again(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["run", "my photos/*.jpg", "it's", "line\nbreak", os.fsdecode(b"caf\xe9's.jpg"), "é€"]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/vggt-int8", *words])
    line = command_line()
    json.dumps(line).encode("utf-8")
    line.encode("utf-8")
    shown = f"{shlex.quote(sys.executable)} -c 'import sys, os; print(list(map(os.fsencode, sys.argv[1:])))'"
    seen = subprocess.run(
        ["bash", "-c", line.replace("vggt-int8", shown, 1)], capture_output=True, check=True, text=True
    )
    assert seen.stdout.strip() == str([os.fsencode(word) for word in words])


def test_text_that_is_not_utf8_is_readable() -> None:
    assert readable(os.fsdecode(b"caf\xe9")) == "caf\\xe9"
    assert readable("é") == "é"
