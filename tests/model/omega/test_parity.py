"""VGGT-Ω gives the public code's numbers, on every golden file."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vggt_int8 import VGGTOmega
from vggt_int8.difference import relative_error

RELATIVE, LARGEST = 1e-5, 1e-4


@pytest.mark.parametrize("file", ["landscape", "square_batch", "single_portrait"])
def test_every_output_is_reproduced(
    make_omega: Callable[..., VGGTOmega], golden_omega: Callable[[str], dict[str, Tensor]], file: str
) -> None:
    model, expected = make_omega(), golden_omega(file)
    images = expected.pop("in.images")
    with torch.inference_mode():
        actual = {name: value for name, value in model(images).items() if name != "images"}
        actual |= {
            f"tokens.{layer}": value for layer, value in model.aggregator(images, model.config.dpt_layers).items()
        }
    assert actual.keys() == expected.keys()
    for name, want in expected.items():
        assert actual[name].shape == want.shape, name
        assert actual[name].dtype == torch.float32, name
        error, allowed = (actual[name].double() - want.double()).abs(), 10 if name.startswith("text_") else 1
        assert error.norm() <= allowed * RELATIVE * want.double().norm(), f"{name}: relative error"
        assert error.max() <= allowed * LARGEST * want.abs().max(), f"{name}: largest error"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_close(
    make_omega: Callable[..., VGGTOmega], golden_omega: Callable[[str], dict[str, Tensor]], dtype: torch.dtype
) -> None:
    expected = golden_omega("landscape")
    with torch.inference_mode():
        output = make_omega(dtype)(expected["in.images"])
    for name, value in output.items():
        if name != "images":
            assert value.dtype == torch.float32, name
            assert relative_error(value, expected[name]) < 16 * torch.finfo(dtype).eps, name


def test_points_are_what_their_pixels_see(
    make_omega: Callable[..., VGGTOmega], golden_omega: Callable[[str], dict[str, Tensor]]
) -> None:
    model = make_omega()
    with torch.inference_mode():
        output = model(golden_omega("landscape")["in.images"])
        assert model(output.images, heads=("depth",)).world_points is None, "without cameras"
    height, width = output.images.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([columns, rows, torch.ones_like(rows)], dim=-1).flatten(0, 1).double()
    for frame in range(3):
        extrinsic, intrinsic = output.extrinsic[0, frame].double(), output.intrinsic[0, frame].double()
        camera = output.depth[0, frame].double().flatten()[:, None] * torch.linalg.solve(intrinsic, pixels.T).T
        world = (camera - extrinsic[:, 3]) @ torch.linalg.inv(extrinsic[:, :3]).T
        assert relative_error(output.world_points[0, frame].flatten(0, 1), world) < 1e-5
