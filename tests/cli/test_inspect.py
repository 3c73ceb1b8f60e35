"""`vggt-int8 inspect` reads headers, and what it says agrees with the model that they describe."""

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import safetensors
from safetensors.torch import load_file
from typer.testing import CliRunner

from vggt_int8 import VGGTInt8
from vggt_int8.cli import app, console
from vggt_int8.cli.inspect import layer_table, read_checkpoint


def size_of(folder: Path) -> int:
    return sum(t.numel() * t.element_size() for t in load_file(folder / "model.safetensors").values())


def test_sizes_are_those_of_the_file(cli, tiny_int8: Path) -> None:
    text = cli("inspect", tiny_int8)
    assert text == cli("inspect", "--brief", tiny_int8)
    assert "recipe int8_dynamic" in text
    assert f"{size_of(tiny_int8) / 1e6:,.1f} MB" in text
    shares = [float(line.split()[-1][:-1]) for line in text.splitlines() if line.endswith("%")]
    assert sum(shares) == pytest.approx(200, abs=0.5)  # dtypes and parts
    assert "point head" in text


def test_every_layer_has_a_line(cli, tiny_int8: Path) -> None:
    lines = {line.split()[0]: line for line in cli("inspect", tiny_int8, "--all").splitlines() if line.strip()}
    assert "W8A8 dynamic" in lines["aggregator.frame_blocks.0.attn.qkv"]
    assert "LayerNorm is not quantized" in lines["aggregator.frame_blocks.0.norm1"]
    assert "W8A16" in lines["depth_head.projects.0"]


def test_containers_show_what_is_their_own(cli, tiny_int8: Path) -> None:
    table = cli("inspect", tiny_int8).partition("\npart ")[0]
    lines = {line.split()[0]: line for line in table.splitlines() if line.strip()}
    assert "its own camera_token, register_token" in lines["aggregator"]
    assert "camera_head.trunk" not in lines


@pytest.mark.parametrize("width", [80, 100])
def test_a_terminal_gets_lines_that_fit_and_whole_names(
    cli, tiny_int8: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    layers = [layer for layer in layer_table(*read_checkpoint(str(tiny_int8)), every=False) if layer.holds_anything]
    monkeypatch.setattr(console.out, "_force_terminal", True)
    monkeypatch.setattr(console.out, "_width", width)
    monkeypatch.setenv("NO_COLOR", "1")
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", cli("inspect", tiny_int8))
    lines = text.splitlines()
    titles = {layer.title for layer in layers}
    # Longer are only a name that is whole, and the last line, which names the model's folder.
    assert {line for line in lines[:-1] if len(line) > width} <= titles
    assert "…" not in text
    found = set()
    for line, after in pairwise(lines):
        name, rest = (line, after) if line in titles else (line.partition("  ")[0], line)
        if match := re.search(r"  (\S.*?) +\d+\.\d{3}  (\[\d+\])$", rest):
            found |= {(name, match[1].rpartition("  ")[2])} if name else set()  # "": seen with the line before
            assert sum(line.startswith(f"{match[2]} ") for line in lines) == 1
    assert found == {(layer.title, layer.scheme) for layer in layers}


def test_as_json(cli, tiny_int8: Path) -> None:
    found = json.loads(cli("inspect", tiny_int8, "--json"))
    assert found["bytes"] == sum(layer["bytes"] for layer in found["layers"]) == size_of(tiny_int8)
    assert found["bytes"] == sum(found["parts"].values()) == sum(found["dtypes"].values())
    assert (found["recipe"], found["model"]) == ("int8_dynamic", str(tiny_int8))
    assert {"aggregator.frame_blocks.0.attn.qkv", "aggregator.frame_blocks.1.attn.qkv"} <= {
        layer["name"] for layer in found["layers"] if layer["scheme"] == "W8A8 dynamic"
    }


def test_layers_agree_with_the_loaded_model(tiny_int8: Path) -> None:
    layers = layer_table(*read_checkpoint(str(tiny_int8)), every=True)
    report = {row.name: row for row in VGGTInt8.from_pretrained(tiny_int8).quantization_report()}
    assert {layer.name for layer in layers} == set(report)
    for layer in layers:
        row = report[layer.name]
        if row.backend != "pytorch":
            assert (layer.scheme, layer.runs_on) == (row.scheme, f"{row.backend}: {row.kernel}")
    assert sum(layer.size for layer in layers) == size_of(tiny_int8)


def test_layers_alike_share_a_row(tiny_int8: Path) -> None:
    config, tensors = read_checkpoint(str(tiny_int8))
    every, grouped = (layer_table(config, tensors, every=flag) for flag in (True, False))
    assert len(grouped) < len(every) == sum(layer.count for layer in grouped)
    assert sum(layer.size for layer in grouped) == sum(layer.size for layer in every)
    qkv = next(layer for layer in grouped if layer.name == "aggregator.frame_blocks.*.attn.qkv")
    assert qkv.count == config.depth


def test_no_weight_is_read(cli, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a weight was read")

    class HeadersOnly:
        def __init__(self, *args: object, **kwargs: object) -> None:
            self.file = safetensors.safe_open(*args, **kwargs)

        def __enter__(self) -> "HeadersOnly":
            return self

        def __exit__(self, *_: object) -> None: ...

        get_tensor = refuse

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

    monkeypatch.setattr("vggt_int8.pretrained.checkpoint.safe_open", HeadersOnly)
    assert "not quantized" in cli("inspect", tiny)


def test_damaged_file_is_named(cli, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((tiny / "model.safetensors").read_bytes()[:1000])
    assert "model.safetensors" in cli("inspect", tmp_path, code=2)


def test_folder_without_weights(cli, tmp_path: Path) -> None:
    assert "no .safetensors" in cli("inspect", tmp_path, code=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"quantization_config": {}}, "is quantized by None, which is not supported"),
        ({"quantization_config": {"quant_method": "vggt_int8"}}, "must hold the whole recipe"),
        (
            {"quantization_config": {"quant_method": "vggt_int8", "format_version": 3, "recipe": {}}},
            "format_version 3; this vggt-int8 reads 1 and 2",
        ),
    ],
)
def test_a_bad_config_is_explained(cli, tiny_int8: Path, tmp_path: Path, change: dict, message: str) -> None:
    config = json.loads((tiny_int8 / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    (tmp_path / "model.safetensors").write_bytes((tiny_int8 / "model.safetensors").read_bytes())
    assert message in cli("inspect", tmp_path, code=2)


def test_only_safetensors_files_have_headers(cli, tiny: Path) -> None:
    assert "is no .safetensors file" in cli("inspect", tiny / "config.json", code=2)


def test_files_of_two_saves_are_told(cli, tiny_int8: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_int8, tmp_path / "mixed")
    assert "format 2" in cli("inspect", tmp_path / "mixed")
    config = json.loads((tiny_int8 / "config.json").read_text())
    config["save"]["id"] = config["save"]["id"][::-1]
    (tmp_path / "mixed" / "config.json").write_text(json.dumps(config))
    assert "holds files of different saves" in cli("inspect", tmp_path / "mixed", code=2)


def test_verify_reads_what_the_headers_do_not_tell(tmp_path: Path, tiny_int8: Path) -> None:
    shutil.copytree(tiny_int8, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    for source in (tmp_path / "model", weights):
        result = CliRunner().invoke(app, ["inspect", str(source), "--verify"])
        assert result.exit_code == 0
        assert result.output.rstrip().endswith("all of it agrees with its digests")
    content = bytearray(weights.read_bytes())
    content[-9] ^= 1
    weights.write_bytes(content)
    for source in (tmp_path / "model", weights):
        assert CliRunner().invoke(app, ["inspect", str(source)]).exit_code == 0
        result = CliRunner().invoke(app, ["inspect", str(source), "--verify"])
        assert result.exit_code == 2
        assert "has been changed or damaged since it was saved" in " ".join(result.output.split())
    result = CliRunner().invoke(app, ["inspect", "owner/name", "--verify"])  # the Hub is not asked
    assert result.exit_code == 2
    assert "download it" in " ".join(result.output.split())
