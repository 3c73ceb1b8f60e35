"""`vggt-int8 quantize --calibration`, and what `inspect` says of the result."""

import json
from pathlib import Path

import pytest

from vggt_int8 import VGGTInt8, load_recipe
from vggt_int8.calibration.images import content_hash
from vggt_int8.images import load_images
from vggt_int8.quant import Int8Linear


def static(cli, tiny: Path, out: Path, photos: list[Path], *extra: object) -> str:
    given = [word for photo in photos for word in ("--calibration", photo)]
    return cli("quantize", tiny, "-o", out, "--recipe", "int8_static_rotated", *given, *extra)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:calibrated with")
def test_quantize_and_inspect(cli, tiny: Path, tmp_path: Path, photos: list[Path]) -> None:
    text = static(cli, tiny, tmp_path / "out", photos, "--samples", 2, "--observer", "histogram", "--seed", 5)
    assert "W8A8 static rotated" in text
    line = "calibrated with 2 images in 1 call, observer histogram, seed 5: ranges of"
    assert line in text
    model = VGGTInt8.from_pretrained(tmp_path / "out")
    facts = model.config.quantization_config.calibration
    assert sorted(facts["sha256"]) == sorted(map(content_hash, load_images(photos, model=model)))
    shown = cli("inspect", tmp_path / "out")
    assert line in shown
    assert facts["sha256"][0][:16] in shown
    assert "aggregator.frame_blocks.*.attn.qkv: special tokens " in shown
    every = cli("inspect", tmp_path / "out", "--all")
    name = "aggregator.frame_blocks.1.mlp.fc2"
    layer = model.get_submodule(name)
    assert isinstance(layer, Int8Linear)
    assert layer.input_scale is not None
    special, others = (127 * layer.input_scale).tolist()
    assert f"  {name}: special tokens {special:.3g}, others {others:.3g}" in every.splitlines()
    assert json.loads(cli("inspect", tmp_path / "out", "--json"))["calibration"] == facts
    assert json.loads(cli("inspect", tiny, "--json"))["calibration"] is None


@pytest.mark.filterwarnings("ignore:calibrated with")
def test_strengths_of_smoothing_are_told(cli, tiny: Path, tmp_path: Path, photos: list[Path]) -> None:
    given = [word for photo in photos for word in ("--calibration", photo)]
    text = cli("quantize", tiny, "-o", tmp_path / "out", "--recipe", "int8_smooth_rotated", *given)
    strengths = VGGTInt8.from_pretrained(tmp_path / "out").config.quantization_config.calibration["smoothing"].values()
    line = f"smoothing before {len(strengths)} layers of strength {min(strengths):g} to {max(strengths):g}"
    assert line in text
    assert line in cli("inspect", tmp_path / "out")
    assert "observer" not in text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:calibrated with")
def test_channels_take_the_place_of_smoothing(cli, tiny: Path, tmp_path: Path, photos: list[Path]) -> None:
    static(cli, tiny, tmp_path / "out", photos, "--observer", "per_channel", "--rounding", "nearest")
    recipe = VGGTInt8.from_pretrained(tmp_path / "out").config.quantization_config.recipe
    assert "smoothing" not in recipe
    assert recipe.get("rounding", "nearest") == "nearest" != load_recipe("int8_static_rotated").rounding


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:calibrated with")
def test_the_order_of_images_does_not_matter(cli, tiny: Path, tmp_path: Path, photos: list[Path]) -> None:
    for name, given in (("one", photos), ("other", photos[::-1])):
        static(cli, tiny, tmp_path / name, given)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-r", "int8_static"], "computes with static scales, which are found on images: pass calibration="),
        (["-r", "int8_dynamic", "--calibration", "PHOTO"], "'int8_dynamic' needs no images, so calibration would"),
        (["-r", "int8_static", "--calibration", "nowhere.png"], "no such image file or folder: nowhere.png"),
        (["-r", "int8_static", "--samples", "4"], "--samples says how to calibrate, so --calibration is needed"),
        (["-r", "int8_static", "--rounding", "gptq"], "--rounding says how to calibrate, so --calibration is needed"),
        (["-r", "int8_static", "--observer", "mse"], "--observer says how to calibrate, so --calibration is needed"),
        (["-r", "int8_static", "--calibration", "PHOTO", "--observer", "minimax"], "(did you mean 'minmax'?)"),
        (["-r", "int8_static", "--calibration", "PHOTO", "--samples", "0"], "it must be at least 1"),
        (["-r", "int8_static", "--calibration", "PHOTO", "--seed", str(2**63)], "--seed: 9.22337e+18 is out of range"),
        (["-r", "int8_smooth", "--calibration", "PHOTO", "--observer", "mse"], "static scales are found, and recipe "),
        (["-r", "int8_smooth", "--calibration", "PHOTO", "--observer", "per_channel"], "'int8_smooth' has none"),
    ],
)
def test_what_does_not_go_together(
    cli, tiny: Path, tmp_path: Path, photos: list[Path], options: list[str], message: str
) -> None:
    words = [str(photos[0]) if word == "PHOTO" else word for word in options]
    error = cli("quantize", tiny, "-o", tmp_path / "out", *words, code=2)
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_run_says_how_to_calibrate(cli, tiny: Path, tmp_path: Path, photos: list[Path]) -> None:
    error = cli("run", tiny, *photos, "-o", tmp_path / "out", "-r", "int8_static", code=2)
    assert "--calibration to `vggt-int8 quantize`" in error
