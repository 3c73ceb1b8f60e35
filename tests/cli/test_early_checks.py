"""What can be said without the model is said before it is loaded, and leaves nothing behind."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from vggt_int8.cli import console, loading, main
from vggt_int8.cli.guard import guarded


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever loads one, fails."""

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded before this was said")

    for module in ("run", "quantize", "compare", "eval"):
        monkeypatch.setattr(sys.modules[f"vggt_int8.cli.{module}"], "load_model", load)
    monkeypatch.setattr("vggt_int8.bench.source.load_source", load)
    monkeypatch.setattr("vggt_int8.pretrained.VGGTInt8.from_pretrained", load)


PLACES = {
    "link": "a link to nowhere",
    "file/out": "file is a file",
    "file": "is a file, a folder is needed",
    "full": "is not empty",
}


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("command", ["run", "quantize", "demo", "eval"])
@pytest.mark.parametrize("place", PLACES)
def test_the_output_folder(cli, tiny: Path, photos: list[Path], tmp_path: Path, command: str, place: str) -> None:
    (tmp_path / "link").symlink_to("gone")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    inputs = {"run": [tiny, photos[0]], "quantize": [tiny], "demo": [], "eval": [tiny]}[command]
    said = cli(command, *inputs, "-o", tmp_path / place, code=2)
    assert PLACES[place] in said
    assert str(tmp_path / place) in said
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("options", [["-o", "file/rows.jsonl"], ["-o", "rows.jsonl", "--profile", "file"], ["-o", "x"]])
def test_the_files_of_bench(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "x").write_text("no rows")
    before = sorted(tmp_path.rglob("*"))
    assert "Error:" in cli("bench", "random:small", *options, "--device", "cpu", code=2)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("size", ["5", "0GB", "-1GB", "many", "5GiB"])
def test_the_size_of_shards(cli, tiny: Path, tmp_path: Path, size: str) -> None:
    assert "is no size" in cli("quantize", tiny, "-o", tmp_path / "out", f"--max-shard-size={size}", code=2)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("command", ["run", "quantize", "demo", "eval"])
def test_the_room_on_the_disk(
    cli, tiny: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("vggt_int8.disk.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    inputs = {"run": [tiny, photos[0]], "quantize": [tiny], "demo": [], "eval": [tiny]}[command]
    said = cli(command, *inputs, "-o", tmp_path / "out", code=1)
    assert f"{tmp_path}/out: No space left on device: about" in said
    assert list(tmp_path.iterdir()) == []


def test_a_full_standard_output_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        with open("/dev/full", "w") as full:
            full.write("results")

    with pytest.raises(SystemExit) as ended:
        guarded(command)()
    assert ended.value.code == 1
    assert "standard output: No space left on device" in capsys.readouterr().err


def test_sizes_of_models_that_are_here(tiny: Path, tmp_path: Path) -> None:
    assert loading.local_bytes(str(tiny)) == (tiny / "model.safetensors").stat().st_size
    assert loading.local_bytes("facebook/VGGT-1B") == 0
    assert loading.local_input_size("facebook/VGGT-1B") is None
    config = json.loads((tiny / "config.json").read_text())
    assert loading.local_input_size(str(tiny)) == (config["img_size"], config["patch_size"])
    assert loading.local_input_size("embedded") == (112, 8)
    for damaged in ('{"img_size": 1e99, "patch_size": 14}', '{"img_size": 56, "patch_size": 9}', "[]", "{"):
        (tmp_path / "config.json").write_text(damaged)
        assert loading.local_input_size(str(tmp_path)) is None


def test_what_needs_no_command_into_a_full_disk(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["vggt-int8", "--version"])
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(console, "out", Console(file=full))  # its own: what it could not write stays in it
        with pytest.raises(SystemExit) as ended:
            main()
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()
    assert ended.value.code == 1
    assert "standard output: No space left on device" in capsys.readouterr().err
