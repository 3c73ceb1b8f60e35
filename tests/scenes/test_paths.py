"""Where cameras go: statistics over many scenes, drawn without rendering a pixel."""

import pytest
import torch

from vggt_int8.scenes import SceneDescription, describe_scenes, scene_seeds

SCENES = 300


def viewing_angles(scenes: SceneDescription) -> torch.Tensor:
    """Angles between the viewing directions of each scene's cameras, degrees [B, S, S]."""
    forward = scenes.extrinsic[..., 2, :3]  # the camera's z axis, in the world
    cosines = torch.einsum("bik,bjk->bij", forward, forward).clamp(-1, 1)
    return torch.rad2deg(torch.acos(cosines))


@pytest.mark.parametrize("frames", [2, 4, 8, 24])
def test_baselines_are_sometimes_wide_and_no_view_is_alone(frames: int) -> None:
    scenes = describe_scenes(scene_seeds("free", range(SCENES)), frames, (112, 112))
    angles, center = viewing_angles(scenes), scenes.camera[..., 9:]
    widest, baseline = angles.flatten(1).amax(1), torch.cdist(center, center).flatten(1).amax(1)  # degrees, metres
    assert baseline.min() > 0.01, "cameras on one spot give no depth"
    wide = (widest > 60) | (baseline > 1.5)  # a third of a room's width
    if frames > 2:  # two views are always neighbours on the path
        assert 0.2 < wide.float().mean() < 0.99
    nearest = (angles + 360 * torch.eye(frames)).amin(-1)
    assert nearest.max() < 70
    assert nearest.median() < 20


def test_focal_lengths_differ_between_scenes_and_zoom_within_some() -> None:
    scenes = describe_scenes(scene_seeds("free", range(SCENES)), 4, (100, 140))
    focal = scenes.intrinsic[..., 0, 0]
    assert torch.equal(focal, scenes.intrinsic[..., 1, 1])
    field_of_view = 2 * torch.rad2deg(torch.atan(70 / focal))
    assert 38 < field_of_view.min() < 52
    assert 80 < field_of_view.max() < 100
    zooming = focal.std(dim=1) > 1e-3 * focal.mean(dim=1)
    assert 0.1 < zooming.float().mean() < 0.3


def test_cameras_stay_in_the_room_and_outside_of_things() -> None:
    """The camera is in no primitive: an independent look at what `clear_camera_space` promises."""
    scenes = describe_scenes(scene_seeds("free", range(SCENES)), 8, (8, 8))
    origin = scenes.slots[..., 9:]  # [B, S, K, 3] the camera in each slot's unit space
    inside_box = origin[:, :, 1:].abs().amax(-1) < 1  # NaN, an absent thing, is not inside
    assert not inside_box.any()
    assert (origin[:, :, 0].abs() < 1).all()
