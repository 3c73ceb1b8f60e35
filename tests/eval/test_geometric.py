"""Differences in degrees and per cent, worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from vggt_int8.eval.metrics import geometric_differences
from vggt_int8.geometry import camera_to_pose_encoding

SIZE = (100, 200)


def pose(degrees: float, center: tuple[float, float, float], fov: tuple[float, float] = (40.0, 60.0)) -> Tensor:
    """Encoding of a camera that is turned about its vertical axis and stands at `center`; fields of view in degrees."""
    angle = math.radians(degrees)
    rotation = torch.tensor(
        [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]], dtype=torch.float64
    )
    translation = -rotation @ torch.tensor(center, dtype=torch.float64)
    height, width = SIZE
    fy, fx = (side / 2 / math.tan(math.radians(f) / 2) for side, f in zip((height, width), fov, strict=True))
    intrinsic = torch.tensor([[fx, 0, width / 2], [0, fy, height / 2], [0, 0, 1]], dtype=torch.float64)
    return camera_to_pose_encoding(torch.cat([rotation, translation[:, None]], dim=1), intrinsic, SIZE)


def test_cameras_by_hand() -> None:
    reference = torch.stack([pose(0, (0, 0, 0)), pose(10, (1, 0, 0)), pose(20, (4, 0, 0))])[None]
    other = torch.stack([pose(0, (0, 0, 0)), pose(13, (1, 0, 0.4)), pose(20, (4, 0.2, 0), (41, 57))])[None]
    got = geometric_differences({"pose_enc": reference}, {"pose_enc": other}, SIZE)
    assert got["rotation_degrees"] == pytest.approx({"mean": 1, "max": 3}, abs=1e-6)
    assert got["center_percent"] == pytest.approx({"mean": (10 + 5) / 3, "max": 10}, abs=1e-6)  # 0.4 and 0.2 of 4
    assert got["field_of_view_degrees"] == pytest.approx({"mean": (1 + 3) / 6, "max": 3}, abs=1e-6)
    assert set(got) == {"rotation_degrees", "center_percent", "field_of_view_degrees"}


@pytest.mark.parametrize("frames", [1, 3])
def test_cameras_that_do_not_move_have_no_extent(frames: int) -> None:
    still = pose(5, (1, 2, 3)).expand(1, frames, 9)
    moved = still + torch.tensor([0.1] + [0.0] * 8)
    assert "center_percent" not in geometric_differences({"pose_enc": still}, {"pose_enc": moved}, SIZE)


def test_maps_by_hand() -> None:
    depth = torch.tensor([1.0, 2.0, 4.0, 10.0, 5.0]).view(1, 1, 1, 5, 1)
    off = torch.tensor([1.0, 2.2, 3.0, 10.1, 6.0]).view(1, 1, 1, 5, 1)  # 0, 10, 25, 1, 20 per cent
    points = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0]]).view(1, 1, 1, 3, 3)
    shifted = points + torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    first, second = {"depth": depth, "world_points": points}, {"depth": off, "world_points": shifted}
    got = geometric_differences(first, second, SIZE)
    assert got["depth_percent"] == pytest.approx({"median": 10, "p90": 23}, rel=1e-5)
    assert got["points_percent"] == pytest.approx({"median": 0, "p90": 16}, rel=1e-5)
    same = geometric_differences(first, first, SIZE)
    assert same == {"depth_percent": {"median": 0, "p90": 0}, "points_percent": {"median": 0, "p90": 0}}


def test_nan_shows() -> None:
    depth = torch.ones(1, 1, 2, 2, 1)
    broken = depth.clone()
    broken[0, 0, 0, 0] = math.nan
    assert math.isnan(geometric_differences({"depth": depth}, {"depth": broken}, SIZE)["depth_percent"]["median"])


def test_outputs_of_another_kind_are_left_out() -> None:
    odd = {"depth": torch.ones(2), "pose_enc": torch.ones(1, 2)}
    assert geometric_differences(odd, odd, SIZE) == {}
    assert geometric_differences({"depth": torch.ones(1, 1, 2, 2, 1)}, {}, SIZE) == {}
