"""The network gives the reference network's numbers, on every golden file, however its weights were loaded."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vggt_int8.difference import relative_error
from vggt_int8.model import VGGT
from vggt_int8.model.track_head import Tracker

FILES = ("landscape", "square_batch", "single_portrait")
TRACK_OUTPUTS = ("track", "vis", "conf")


# The golden results are those of fp64, so what is judged is this machine's fp32: 5e-7, and 20 times that is allowed.
RELATIVE, LARGEST = 1e-5, 1e-4


def assert_reproduced(name: str, actual: Tensor, expected: Tensor, amplified: float = 1.0) -> None:
    """`amplified`: how much of an error in its input the part after it makes."""
    assert actual.shape == expected.shape, name
    assert actual.dtype == torch.float32, name
    error = (actual.double() - expected.double()).abs()
    assert error.norm() <= RELATIVE * amplified * expected.double().norm(), f"{name}: relative error"
    assert error.max() <= LARGEST * amplified * expected.abs().max(), f"{name}: largest error"


def amplification(tracker: Tracker, maps: Tensor, points: Tensor) -> float:
    """How many times larger, relative to its results, the tracker makes an error of its feature maps of the size that
    is allowed. Its samples and updates multiply errors, 20 to 40 times in this network, as in the reference's own code.
    """
    plain, largest = tracker(maps, points, 8), 1.0
    for seed in range(4):
        noise = torch.randn(maps.shape, generator=torch.Generator().manual_seed(seed))
        moved = tracker(maps + RELATIVE * maps.norm() / noise.norm() * noise, points, 8)
        for a, b in zip((moved[0][-1], *moved[1:]), (plain[0][-1], *plain[1:]), strict=True):
            largest = max(largest, relative_error(a, b) / RELATIVE)
    return largest


@pytest.mark.parametrize("file", FILES)
def test_every_output_is_reproduced(
    make_model: Callable[..., VGGT], golden: Callable[[str], dict[str, Tensor]], file: str
) -> None:
    model, expected = make_model(), golden(file)
    images, query_points = expected.pop("in.images"), expected.pop("in.query_points")
    with torch.inference_mode():
        output = model(images, query_points=query_points)
        tokens = model.aggregator(images, layers=range(model.config.depth))
        poses = model.camera_head(tokens[model.config.depth - 1][:, :, 0])
        maps = model.track_head.feature_extractor(tokens, images.shape[-2:], 8)
        amplified = amplification(model.track_head.tracker, maps, query_points)
    actual: dict[str, Tensor] = {name: value for name, value in output.items() if name != "images"}
    actual |= {f"tokens.{layer}": value for layer, value in tokens.items()}
    actual["camera.all_iterations"] = torch.stack(poses)
    assert actual.keys() == expected.keys()
    for name in expected:
        assert_reproduced(name, actual[name], expected[name], amplified if name in TRACK_OUTPUTS else 1.0)


@pytest.mark.slow
def test_loading_gives_these_weights(make_model: Callable[..., VGGT], parity_folder: Path, tmp_path: Path) -> None:
    shutil.copy(parity_folder / "tiny_vggt.safetensors", tmp_path / "model.safetensors")
    shutil.copy(parity_folder / "tiny_vggt_config.json", tmp_path / "config.json")
    want, got = make_model(), VGGT.from_pretrained(tmp_path, dtype=torch.float32)
    assert got.config.to_dict().keys() == want.config.to_dict().keys()
    loaded, built = got.state_dict(), want.state_dict()
    assert loaded.keys() == built.keys()
    assert all(torch.equal(loaded[name], value) for name, value in built.items())
    images = torch.rand(2, 3, 42, 56, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert all(torch.equal(value, got(images)[name]) for name, value in want(images).items())


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
        error = relative_error(value, expected[name])
        assert error < (4 * digits if name in TRACK_OUTPUTS else digits), name


def test_autocast_over_fp32_weights_works(
    make_model: Callable[..., VGGT], golden: Callable[[str], dict[str, Tensor]]
) -> None:
    expected = golden("landscape")
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        output = make_model()(expected["in.images"], query_points=expected["in.query_points"])
    for name in ("pose_enc", "depth", "world_points", "track"):
        assert output[name].dtype == torch.float32
        assert relative_error(output[name], expected[name]) < 0.05, name
