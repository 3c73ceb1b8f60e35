"""Errors against numbers worked out by hand, and how they are put together."""

import math

import pytest
import torch
from torch import Tensor

from vggt_int8.sensitivity.measures import largest, measure, over_scenes, together

SIZE = (40, 80)


def encoding(translation: tuple[float, float, float], turn: float, fov: float = 1.0) -> list[float]:
    """A camera turned about its y axis by `turn` degrees."""
    half = math.radians(turn) / 2
    return [*translation, 0.0, math.sin(half), 0.0, math.cos(half), fov, fov]


def poses(*cameras: list[float]) -> Tensor:
    return torch.tensor([cameras], dtype=torch.float64)


def outputs(pose_enc: Tensor) -> dict[str, Tensor]:
    views = pose_enc.shape[1]
    generator = torch.Generator().manual_seed(0)
    return {
        "pose_enc": pose_enc,
        "depth": 1 + torch.rand(1, views, *SIZE, 1, generator=generator),
        "world_points": 1 + torch.rand(1, views, *SIZE, 3, generator=generator),
        "track": 10 * torch.rand(1, views, 5, 2, generator=generator),
    }


REFERENCE = outputs(poses(encoding((0, 0, 0), 0), encoding((1, 0, 0), 10), encoding((0, 1, 1), -20)))


def test_the_same_outputs_differ_by_nothing_at_all() -> None:
    found = measure({name: tensor.clone() for name, tensor in REFERENCE.items()}, REFERENCE, SIZE)
    assert found == dict.fromkeys(("rotation", "direction", "focal", "depth", "points", "tracks"), 0.0)


def test_angles_are_those_of_relative_poses() -> None:
    wanted = poses(encoding((0, 0, 0), 0), encoding((1, 0, 0), 10))
    turned = poses(encoding((0, 0, 0), 0), encoding((1, 0, 0), 10.5))
    assert measure({"pose_enc": turned}, {"pose_enc": wanted}, SIZE)["rotation"] == pytest.approx(0.5)
    # The first camera is the world, so the second's translation is the direction between the two.
    moved = poses(encoding((0, 0, 0), 0), encoding((math.cos(0.01), 0, math.sin(0.01)), 10))
    found = measure({"pose_enc": moved}, {"pose_enc": wanted}, SIZE)
    assert found["direction"] == pytest.approx(math.degrees(0.01))
    assert found["rotation"] == pytest.approx(0, abs=1e-9)
    farther = poses(encoding((0, 0, 0), 0), encoding((2, 0, 0), 10))
    assert measure({"pose_enc": farther}, {"pose_enc": wanted}, SIZE)["direction"] == pytest.approx(0, abs=1e-9)


def test_the_pair_in_the_middle_counts() -> None:
    wanted = poses(*(encoding((i, 0, 0), 0) for i in range(3)))
    turned = poses(encoding((0, 0, 0), 0), encoding((1, 0, 0), 1), encoding((2, 0, 0), 4))  # 1, 4 and 3 degrees
    assert measure({"pose_enc": turned}, {"pose_enc": wanted}, SIZE)["rotation"] == pytest.approx(3)


def test_focal_lengths_are_compared_where_there_are_any() -> None:
    def both(fov: float) -> dict[str, Tensor]:
        return {"pose_enc": poses(encoding((0, 0, 0), 0, fov), encoding((1, 0, 0), 0, fov))}

    # f = size / 2 / tan(fov / 2)
    wanted = 100 * abs(math.tan(0.505) / math.tan(0.5) - 1)
    assert measure(both(1.01), both(1.0), SIZE)["focal"] == pytest.approx(wanted)
    assert measure(both(0.0), both(1.0), SIZE)["focal"] == pytest.approx(100)
    assert "focal" not in measure(both(1.0), both(0.0), SIZE)


def test_maps_and_tracks_in_per_cent() -> None:
    changed = {
        "depth": REFERENCE["depth"] * 1.02,
        "world_points": REFERENCE["world_points"] * 0.97,
        "track": REFERENCE["track"] + torch.tensor([0.0, 1.6]),
    }
    changed["track"][:, 0] = REFERENCE["track"][:, 0]
    found = measure(changed, REFERENCE, SIZE)
    assert found == pytest.approx({"depth": 2, "points": 3, "tracks": 2}, rel=1e-4)  # 1.6 of 80 pixels


def test_scenes_are_put_together_by_their_mean_square_and_changes_by_their_sum() -> None:
    scenes = [{"depth": 3.0, "tracks": 1.0}, {"depth": 4.0}]
    assert over_scenes(scenes) == pytest.approx({"depth": math.sqrt(12.5), "tracks": 1.0})
    assert together(scenes) == pytest.approx({"depth": 5.0, "tracks": 1.0})
    assert largest({"depth": 0.1, "rotation": 0.3}) == 0.3
    assert largest(together([])) == 0
