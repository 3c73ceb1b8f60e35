"""The network gives the reference network's numbers, on every golden file, however its weights were loaded."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vggt_int8.model import VGGT

FILES = ("landscape", "square_batch", "single_portrait")
TRACK_OUTPUTS = ("track", "vis", "conf")


@pytest.fixture(params=["load_state_dict", "from_pretrained"])
def model(request: pytest.FixtureRequest, make_model: Callable[..., VGGT], parity_folder: Path, tmp_path: Path) -> VGGT:
    if request.param == "load_state_dict":
        return make_model()
    shutil.copy(parity_folder / "tiny_vggt.safetensors", tmp_path / "model.safetensors")
    shutil.copy(parity_folder / "tiny_vggt_config.json", tmp_path / "config.json")
    return VGGT.from_pretrained(tmp_path, dtype=torch.float32)


def assert_reproduced(name: str, actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape, name
    assert actual.dtype == torch.float32, name
    relative, largest = (1e-4, 1e-3) if name in TRACK_OUTPUTS else (1e-5, 1e-4)
    error = (actual.double() - expected.double()).abs()
    assert error.norm() <= relative * expected.double().norm(), f"{name}: relative error"
    assert error.max() <= largest * expected.abs().max(), f"{name}: largest error"


@pytest.mark.parametrize("file", FILES)
def test_every_output_is_reproduced(model: VGGT, golden: Callable[[str], dict[str, Tensor]], file: str) -> None:
    expected = golden(file)
    images, query_points = expected.pop("in.images"), expected.pop("in.query_points")
    with torch.inference_mode():
        output = model(images, query_points=query_points)
        tokens = model.aggregator(images, layers=range(model.config.depth))
        poses = model.camera_head(tokens[model.config.depth - 1][:, :, 0])
    actual: dict[str, Tensor] = {name: value for name, value in output.items() if name != "images"}
    actual |= {f"tokens.{layer}": value for layer, value in tokens.items()}
    actual["camera.all_iterations"] = torch.stack(poses)
    assert actual.keys() == expected.keys()
    for name in expected:
        assert_reproduced(name, actual[name], expected[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_close(
    make_model: Callable[..., VGGT], golden: Callable[[str], dict[str, Tensor]], dtype: torch.dtype
) -> None:
    expected = golden("landscape")
    with torch.inference_mode():
        output = make_model(dtype)(expected["in.images"], query_points=expected["in.query_points"])
    digits = 16 * torch.finfo(dtype).eps
    for name, value in output.items():
        if name == "images":
            continue
        assert value.dtype == torch.float32, name
        error = (value - expected[name]).norm() / expected[name].norm()
        assert error < (4 * digits if name in TRACK_OUTPUTS else digits), name


def test_autocast_over_fp32_weights_works(
    make_model: Callable[..., VGGT], golden: Callable[[str], dict[str, Tensor]]
) -> None:
    expected = golden("landscape")
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        output = make_model()(expected["in.images"], query_points=expected["in.query_points"])
    for name in ("pose_enc", "depth", "world_points", "track"):
        assert output[name].dtype == torch.float32
        assert (output[name] - expected[name]).norm() < 0.05 * expected[name].norm(), name
