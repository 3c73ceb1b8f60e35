"""Sampling, filtering, comparing and placing of points: what the viewer shows, without a browser."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.viewer.conftest import FOCAL, HEIGHT, WIDTH, MakeScene
from vggt_int8.export.color import color_table
from vggt_int8.viewer import open_viewer
from vggt_int8.viewer.cloud import known_source, sample_cloud
from vggt_int8.viewer.difference import difference_of, why_not_comparable
from vggt_int8.viewer.reconstruction import Reconstruction, load_reconstructions, spacing
from vggt_int8.viewer.settings import Settings
from vggt_int8.viewer.stage import GAP, UNKNOWN, Stage

PIXELS = 3 * HEIGHT * WIDTH


# ---- clouds ----


def test_all_pixels_are_kept_where_there_is_room(wall: MakeScene) -> None:
    scene = wall(padding=4)
    cloud = sample_cloud(scene, None, 10**6)
    assert cloud.pixels == len(cloud.points) == 3 * HEIGHT * (WIDTH - 4)
    assert np.allclose(cloud.points[:, 2], 2)
    first = scene.points_from_depth(0)[:, 4:].reshape(-1, 3).numpy()
    assert np.allclose(cloud.points[: len(first)], first, atol=1e-5)
    assert np.array_equal(cloud.colors[: len(first)], scene.colors[0, :, 4:].reshape(-1, 3).numpy())


def test_a_sample_is_spread_over_all_images_and_the_same_for_the_same_images(wall: MakeScene) -> None:
    one, two = (sample_cloud(wall(scale=scale), None, 300) for scale in (1.0, 3.0))
    assert len(one.points) == 300
    assert one.pixels == PIXELS
    assert np.array_equal(one.colors, two.colors)
    assert np.allclose(3 * one.points, two.points, rtol=1e-5)
    counts = np.histogram(one.points[:, 0] - one.points[:, 0].min(), bins=2)[0]
    assert counts.min() > 75  # 150 each but for chance


def test_the_least_confident_and_what_is_not_finite_is_left_out(wall: MakeScene) -> None:
    scene = wall()
    scene.depth[0, 0, 0] = torch.nan
    scene.depth_conf[1, 0, 0] = torch.inf
    cloud = sample_cloud(scene, None, 10**6)
    assert len(cloud.chosen(0, 10**6)) == PIXELS - 2
    kept = cloud.chosen(75, 10**6)
    left_out = np.setdiff1d(np.flatnonzero(cloud.usable), kept)
    assert abs(len(kept) / PIXELS - 0.25) < 0.01
    assert cloud.confidence[kept].min() >= cloud.confidence[left_out].max()
    few = cloud.chosen(0, 100)
    assert len(few) == 100
    assert np.array_equal(few, np.sort(few))
    assert set(cloud.chosen(0, 50)) < set(few)  # more points are others added, so that nothing flickers


def test_points_come_from_where_they_are_asked(wall: MakeScene) -> None:
    scene = replace(wall(), world_points=torch.full((3, HEIGHT, WIDTH, 3), 7.0))
    assert known_source(scene, None) == "depth"
    assert (sample_cloud(scene, "world_points", 100).points == 7).all()
    assert sample_cloud(scene, "world_points", 100).confidence is None
    with pytest.raises(ValueError, match="source 'world_points' needs the point head"):
        sample_cloud(wall(), "world_points", 100)
    with pytest.raises(ValueError, match="no points; it has neither"):
        sample_cloud(wall(cameras=False), None, 100)


# ---- differences ----


def pair(scene: object, other: object) -> tuple[tuple, tuple]:
    return (scene, sample_cloud(scene, None, 10**6)), (other, sample_cloud(other, None, 10**6))


def test_a_factor_is_told_and_taken_out_on_request(wall: MakeScene) -> None:
    first, other = pair(wall(), wall(scale=1.25))
    assert why_not_comparable(first, other) is None
    found = difference_of(first, other)
    assert found.scale == pytest.approx(0.8, rel=1e-5)
    assert np.allclose(found.points, 0.25, rtol=1e-4)
    assert found.center_percent == pytest.approx(25, rel=1e-4)
    assert found.rotation_degrees == pytest.approx(0, abs=1e-4)
    fitted = difference_of(first, other, same_scale=True)
    assert np.abs(fitted.points).max() < 1e-5
    assert fitted.center_percent == pytest.approx(0, abs=1e-3)
    assert "points 25.00% apart" in found.describe()


def test_a_turned_camera_is_seen_in_degrees(wall: MakeScene) -> None:
    other = wall()
    turn = np.deg2rad(2.0)
    other.extrinsic[2, :, :3] = torch.tensor(
        [[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]], dtype=torch.float32
    )
    assert difference_of(*pair(wall(), other)).rotation_degrees == pytest.approx(2.0, abs=1e-3)


def test_other_images_have_no_difference(wall: MakeScene) -> None:
    assert why_not_comparable(*pair(wall(), wall(seed=1))) == "they show different images"
    assert why_not_comparable(*pair(wall(), wall(count=2))) == "they have 3 and 2 images"


# ---- several on one stage ----


def reconstructions(*scenes: object) -> list[Reconstruction]:
    return [
        Reconstruction(f"r{index}", Path(f"r{index}"), scene, "depth", sample_cloud(scene, None, 10**6))
        for index, scene in enumerate(scenes)
    ]


def test_side_by_side_and_same_scale_move_points_and_only_the_others(wall: MakeScene) -> None:
    stage = Stage(reconstructions(wall(), wall(scale=2.0)))
    settings = Settings(percentile=0, layout="side by side", same_scale=True)
    (first, _), (other, _) = (stage.shown(index, settings) for index in (0, 1))
    assert np.array_equal(first.on_stage(), first.points)
    shift = other.on_stage() - first.on_stage()
    assert np.allclose(shift, [GAP * stage.extent, 0, 0], atol=1e-4)
    overlaid = stage.shown(1, Settings(percentile=0))[0]
    assert np.allclose(overlaid.on_stage(), 2 * first.points, rtol=1e-5)


def test_colors_say_what_they_mean(wall: MakeScene) -> None:
    stage = Stage(reconstructions(wall(), wall(noise=0.01), wall(seed=1)))
    table = {tuple(color) for color in color_table().tolist()}
    for color in ("confidence", "difference"):
        shown, meaning = stage.shown(1, Settings(color=color))
        assert {tuple(c) for c in shown.colors.tolist()} <= table
        assert "dark" in meaning
    assert "distance from r1" in stage.shown(0, Settings(color="difference"))[1]
    unrelated, meaning = stage.shown(2, Settings(color="difference"))
    assert (unrelated.colors == UNKNOWN).all()
    assert meaning == "no difference: they show different images"
    tints = {tuple(stage.shown(index, Settings(color="reconstruction"))[0].colors[0]) for index in range(3)}
    assert len(tints) == 3
    far = np.argsort(stage.differences(Settings())[1].points)[-20:]
    assert stage._colors(1, Settings(color="difference"))[0][far].sum() > far.size * 500  # bright


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"color": "depth"}, "color is 'depth'; choose one of image"),
        ({"color": "reconstruction"}, "needs several reconstructions"),
        ({"layout": "beside"}, "layout is 'beside'; choose one of overlaid"),
        ({"percentile": 99.9}, r"percentile is 99.9; it must be from 0 to 99\.5"),
        ({"percentile": float("nan")}, "percentile is nan"),
        ({"most_points": 0}, "most_points is 0; it must be at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_said(tmp_path: Path, wrong: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        open_viewer([tmp_path], settings=Settings(**wrong))  # before a scene is looked for


# ---- folders ----


def test_folders_are_read_and_named(saved: Callable[..., Path]) -> None:
    folders = [saved("fp16"), saved("int8")]
    (folders[1] / "report.json").write_text('{"recipe": "int8_dynamic"}')
    found = load_reconstructions([*folders, folders[0]], points=None, most=1000)
    assert [reconstruction.label for reconstruction in found] == ["fp16", "int8 (int8_dynamic)", "fp16 #2"]
    views = found[0].views()
    assert [view.index for view in views] == [0, 1, 2]
    assert views[2].center == pytest.approx([0.4, 0, 0])
    assert views[0].field_of_view == pytest.approx(2 * np.arctan(HEIGHT / 2 / FOCAL))
    assert views[0].thumbnail.shape == (HEIGHT, WIDTH, 3)
    assert spacing(views) == pytest.approx(0.2)
    assert spacing(views[:1]) == 0


def test_a_camera_that_cannot_be_drawn_is_left_out(wall: MakeScene) -> None:
    scene = wall()
    scene.intrinsic[1, 1, 1] = torch.inf
    scene.extrinsic[2, 0, 3] = torch.nan
    assert [view.index for view in reconstructions(scene)[0].views()] == [0]


@pytest.mark.parametrize(
    ("place", "yaw", "hidden"),
    [
        ((0, 0, 0), 0, True),  # its own image, and the same camera of another reconstruction
        ((0.05, 0, -0.3), 0, True),  # behind it, with the image in front
        ((0, 0.02, 0.3), 0, True),  # a little ahead
        ((0, 0, -1.1), 0, False),  # behind it with its image
        ((0, 0, 3), 0, False),  # far ahead, and small
        ((2.5, 0, 0), 0, False),  # beside what is seen
        ((0, 0, 0.5), 180, False),  # it looks back, its image is behind
    ],
)
def test_images_that_stand_in_front_of_a_camera_are_known(
    wall: MakeScene, place: tuple[float, float, float], yaw: float, hidden: bool
) -> None:
    view = Reconstruction("one", Path(), wall(), "depth", sample_cloud(wall(), None, 10)).views()[0]
    tangent = HEIGHT / (2 * FOCAL)
    scale = np.cbrt(tangent * tangent * WIDTH / HEIGHT / 3)  # at which viser draws the image 1 away from its camera
    cosine, sine = np.cos(np.deg2rad(yaw)), np.sin(np.deg2rad(yaw))
    rotation = np.array([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]])
    other = replace(view, rotation=rotation, center=np.array(place, dtype=float))
    assert view.hidden_by(other, scale) == hidden


def test_a_folder_without_a_scene_is_named(tmp_path: Path, saved: Callable[..., Path]) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        load_reconstructions([tmp_path / "nothing"], points=None, most=1000)
    with pytest.raises(ValueError, match=r"bare: the scene has no points"):
        load_reconstructions([saved("bare", cameras=False)], points=None, most=1000)
