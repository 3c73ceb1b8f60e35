"""Pictures of the report: they fit its page whatever is shown, and a layer has one place in a chart."""

import re

import pytest
import torch

from vggt_int8.geometry import camera_to_pose_encoding
from vggt_int8.scorecard.data import TrueScene
from vggt_int8.scorecard.pictures import CLOUD_SIZE, cloud_picture, depth_picture, range_chart

PAGE = 1200  # pixels of the page's width, see `_STYLE` of `vggt_int8.scorecard.page`


@pytest.fixture
def wall() -> TrueScene:
    """Five views of a wall, as wide as VGGT-1B's."""
    size = (28, 518)
    extrinsic = torch.eye(4)[:3].repeat(5, 1, 1)
    extrinsic[:, 0, 3] = torch.arange(5) / 10
    intrinsic = torch.tensor([[400.0, 0, 259], [0, 400, 14], [0, 0, 1]]).repeat(5, 1, 1)
    images = torch.linspace(0, 1, 518).expand(5, 3, *size)
    return TrueScene("wall", images, extrinsic, intrinsic, torch.full((5, *size), 2.0), torch.ones(5, *size).bool())


def test_pictures_of_wide_images_and_many_rows_fit_the_page(wall: TrueScene) -> None:
    assert wall.extrinsic is not None
    assert wall.intrinsic is not None
    assert wall.depth is not None
    pose = camera_to_pose_encoding(wall.extrinsic, wall.intrinsic, (28, 518))
    rows = {f"row {number}": {"pose_enc": pose, "depth": wall.depth[..., None]} for number in range(6)}
    depth, clouds = depth_picture(wall, rows), cloud_picture(wall, rows)
    assert depth is not None
    assert clouds is not None
    assert 4 * 518 / 2 < depth.width <= PAGE
    assert clouds.width <= PAGE
    assert clouds.height > 3 * CLOUD_SIZE[1], "the truth and six rows, three beside each other"


def test_a_layer_has_one_place_in_the_chart_of_ranges() -> None:
    """Recipes make different layers static: `int8_static` leaves some of fc2 dynamic, its rotated kin none."""
    some = {"ranges": {"b.fc1": [2.0], "c.fc1": [3.0]}}
    more = {"ranges": {"c.fc1": [3.0], "b.fc1": [2.0], "a.fc2": [1.0]}}
    drawn = range_chart({"some": some, "more": more})
    lines = [set(re.findall(r"[\d.]+,[\d.]+", points)) for points in re.findall(r'points="([^"]+)"', drawn)]
    shorter, longer = sorted({frozenset(line) for line in lines}, key=len)
    assert shorter < longer, "the same range of the same layer is the same point"
