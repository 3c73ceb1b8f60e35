"""`vggt-int8 quantize` writes a whole checkpoint or nothing."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vggt_int8 import VGGTInt8, available_recipes


@pytest.mark.slow
def test_writes_what_from_pretrained_quantizes(cli, tiny: Path, tmp_path: Path) -> None:
    text = cli("quantize", tiny, "-o", tmp_path / "out", "--recipe", "int8_weight_only")
    assert "W8A16" in text
    expected = VGGTInt8.from_pretrained(tiny, recipe="int8_weight_only").state_dict()
    found = VGGTInt8.from_pretrained(tmp_path / "out").state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["recipe"]["name"] == "int8_weight_only"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_report_counts_what_is_stored(cli, tiny: Path, tmp_path: Path) -> None:
    text = cli("quantize", tiny, "-o", tmp_path / "out")
    stored = sum(t.nbytes for t in load_file(tmp_path / "out" / "model.safetensors").values())
    (total,) = [line for line in text.splitlines() if line.endswith("in all")]
    assert float(total.split()[2]) == pytest.approx(stored / 1e6, abs=0.01)


def test_shards(cli, tiny: Path, tmp_path: Path) -> None:
    cli("quantize", tiny, "-o", tmp_path / "out", "--max-shard-size", "200KB")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    VGGTInt8.from_pretrained(tmp_path / "out")


def test_default_recipe_is_int8_dynamic(cli, tiny: Path, tmp_path: Path) -> None:
    assert "W8A8 dynamic" in cli("quantize", tiny, "-o", tmp_path / "out")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--recipe", "int9"], ", ".join(available_recipes())),
        (["--backend", "tensorrt"], "tensorrt"),
        (["--backend", "bitsandbytes", "--recipe", "int8_weight_only"], "bitsandbytes"),
        (["--device", "tpu"], "tpu"),
    ],
)
def test_bad_options_leave_nothing(cli, tiny: Path, tmp_path: Path, extra: list[str], message: str) -> None:
    error = cli("quantize", tiny, "-o", tmp_path / "out", *extra, code=2)
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_quantized_checkpoint_is_refused(cli, tiny_int8: Path, tmp_path: Path) -> None:
    assert "quantized already" in cli("quantize", tiny_int8, "-o", tmp_path / "out", code=2)
    assert list(tmp_path.iterdir()) == []


def test_existing_results_are_kept(cli, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert "not empty" in cli("quantize", tiny, "-o", tmp_path / "out", code=2)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_missing_model(cli, tmp_path: Path) -> None:
    error = cli("quantize", tmp_path / "absent", "-o", tmp_path / "out", code=2)
    assert "absent" in error
