"""`compare_model_outputs`: measures worked out by hand."""

import math
from collections.abc import Callable

import accelerate
import pytest
import torch
from torch import Tensor, nn

from vggt_int8 import VGGTInt8, compare_model_outputs, quantize


class Fixed(nn.Module):
    """Gives the same outputs whatever the images are."""

    def __init__(self, **outputs: Tensor) -> None:
        super().__init__()
        self.outputs = outputs
        self.parameter = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor, query_points: Tensor | None = None) -> dict[str, Tensor]:
        return {**self.outputs, "images": images}


IMAGES = torch.zeros(1, 3, 14, 14)


def test_measures_by_hand() -> None:
    a = Fixed(depth=torch.tensor([3.0, 4.0]), pose_enc=torch.tensor([[0.0, 2.0]]))
    b = Fixed(depth=torch.tensor([3.0, 3.0]), pose_enc=torch.tensor([[0.0, 2.0]]))
    got = compare_model_outputs(a, b, IMAGES)
    depth = {
        "mae": 0.5,
        "max_diff": 1.0,
        "cosine": 21 / (5 * math.sqrt(18)),
        "sqnr_db": 10 * math.log10(25),
        "relative": 0.2,
    }
    assert got["depth"] == pytest.approx(depth)
    equal = {"mae": 0, "max_diff": 0, "cosine": 1, "sqnr_db": math.inf, "relative": 0}
    assert got["pose_enc"] == pytest.approx(equal)
    overall = {
        "mae": 0.25,
        "max_diff": 1.0,
        "cosine": 25 / math.sqrt(29 * 22),
        "sqnr_db": 10 * math.log10(29),
        "relative": 1 / math.sqrt(29),
    }
    assert got["overall"] == pytest.approx(overall)
    assert {key: got[key] for key in overall} == got["overall"]
    assert set(got) == {"depth", "pose_enc", "overall", *overall}


def test_nan_shows() -> None:
    got = compare_model_outputs(Fixed(depth=torch.ones(2)), Fixed(depth=torch.tensor([1.0, math.nan])), IMAGES)
    assert math.isnan(got["depth"]["max_diff"])
    assert math.isnan(got["overall"]["mae"])


def test_infinite_in_both_alike_is_left_out() -> None:
    a, b = torch.tensor([math.inf, 1.0]), torch.tensor([math.inf, 3.0])
    assert compare_model_outputs(Fixed(intrinsic=a), Fixed(intrinsic=b), IMAGES)["intrinsic"]["mae"] == 2
    got = compare_model_outputs(Fixed(intrinsic=a), Fixed(intrinsic=-b), IMAGES)
    assert got["intrinsic"]["max_diff"] == math.inf


def test_different_outputs_raise() -> None:
    with pytest.raises(ValueError, match=r"different outputs: \['depth'\] and \['pose_enc'\]"):
        compare_model_outputs(Fixed(depth=torch.ones(2)), Fixed(pose_enc=torch.ones(2)), IMAGES)
    with pytest.raises(ValueError, match=r"depth has shape \[2\] and \[3\]"):
        compare_model_outputs(Fixed(depth=torch.ones(2)), Fixed(depth=torch.ones(3)), IMAGES)


def test_vggt(make_tiny: Callable[[], VGGTInt8], tiny_images: Tensor, tiny_points: Tensor) -> None:
    fp, int8 = make_tiny(), quantize(make_tiny())
    got = compare_model_outputs(fp, int8, tiny_images, tiny_points)
    assert {"pose_enc", "extrinsic", "intrinsic", "depth", "world_points", "track", "vis", "conf"} <= set(got)
    assert "images" not in got
    with torch.no_grad():
        want, other = fp(tiny_images, query_points=tiny_points), int8(tiny_images, query_points=tiny_points)
    assert got["depth"]["max_diff"] == pytest.approx((want.depth - other.depth).abs().max().item())
    assert 0.9 < got["depth"]["cosine"] < 1
    kinds = {"rotation_degrees", "center_percent", "field_of_view_degrees", "depth_percent", "points_percent"}
    assert set(got["geometry"]) == kinds
    same = compare_model_outputs(fp, fp, tiny_images)
    assert same["overall"]["max_diff"] == 0
    assert {value for values in same["geometry"].values() for value in values.values()} == {0}


@pytest.mark.slow
def test_an_offloaded_model(make_tiny: Callable[[], VGGTInt8], tiny_images: Tensor) -> None:
    int8 = quantize(make_tiny())
    int8.set_runtime("off")  # as offloaded models run
    want = compare_model_outputs(make_tiny(), int8, tiny_images)
    accelerate.cpu_offload(int8, execution_device=torch.device("cpu"))
    assert compare_model_outputs(make_tiny(), int8, tiny_images) == want
