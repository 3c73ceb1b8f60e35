"""Which other images a point is looked for in."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from vggt_int8.export import PointOptions, Scene
from vggt_int8.export.correspond import observe
from vggt_int8.export.points import select_points
from vggt_int8.images import ImageTransform

HEIGHT, WIDTH = 8, 12


def turned(angle: float) -> torch.Tensor:
    """[3, 4] camera from world, at the origin and turned about the vertical axis by an angle in radians."""
    cos, sin = torch.tensor(angle).cos(), torch.tensor(angle).sin()
    return torch.tensor([[cos, 0, -sin, 0], [0, 1, 0, 0], [sin, 0, cos, 0]])


@pytest.mark.parametrize(("distance", "nearest"), [(10.0, 1), (1.0, 2)])
def test_how_far_cameras_are_apart_counts_by_the_distance_of_what_they_see(
    monkeypatch: pytest.MonkeyPatch, distance: float, nearest: int
) -> None:
    """Camera 1 stands 0.5 beside camera 0, camera 2 where that stands, turned by 0.1. Before a wall that is far away
    the former sees more of the same, before a near one the latter.
    """
    monkeypatch.setattr("vggt_int8.export.correspond.MOST_VIEWS", 1)
    extrinsic = torch.stack([turned(0.0), turned(0.0), turned(0.1)])
    extrinsic[1, 0, 3] = -0.5
    intrinsic = torch.tensor([[20.0, 0, 5.5], [0, 20, 3.5], [0, 0, 1]]).repeat(3, 1, 1)
    x = (torch.arange(WIDTH) - 5.5) / 20  # of rays of camera 2, whose z axis meets the wall at an angle
    depth = torch.full((3, HEIGHT, WIDTH), distance)
    depth[2] = distance / (extrinsic[2, 2, 2] + extrinsic[2, 0, 2] * x)
    whole = ImageTransform((HEIGHT, WIDTH), (HEIGHT, WIDTH), (1.0, 1.0), (0, 0))
    colors = torch.zeros(3, HEIGHT, WIDTH, 3, dtype=torch.uint8)
    scene = Scene(["a", "b", "c"], [whole] * 3, colors, extrinsic, intrinsic, depth, torch.ones_like(depth))
    with ThreadPoolExecutor(1) as pool:
        selection = select_points(scene, PointOptions(confidence_percentile=0), pool)
        assert selection is not None
        seen = observe(selection, intrinsic.double().numpy(), pool)
    of_camera_0 = seen.image[seen.point < HEIGHT * WIDTH]
    assert set(of_camera_0.tolist()) == {0, nearest}
