"""The shipped scenes are what their seeds render, their truth fits their pictures, and files survive mishaps."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vggt_int8.scenes import available_scenes, load_scene, render_scenes, save_scene, scene_seeds
from vggt_int8.scenes.render import GENERATOR_VERSION
from vggt_int8.scenes.stored import BUNDLED_FOLDER

NAMES = ["room", "table", "wide_baselines"]


def share_within(error: torch.Tensor, limit: float) -> float:
    return (error.abs() <= limit).float().mean().item()


def test_three_scenes_ship_and_are_small() -> None:
    assert available_scenes() == NAMES
    assert sum(path.stat().st_size for path in BUNDLED_FOLDER.rglob("*")) < 3e6
    for name in NAMES:
        scene = load_scene(name)
        assert scene.images.shape == (8, 3, 112, 112)
        assert scene.depth.shape == (8, 112, 112)
        assert scene.valid.all()
        assert scene.origin["split"] == "demo"
        assert torch.equal(scene.extrinsic[0], torch.eye(3, 4))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_files_are_what_the_seed_renders(name: str) -> None:
    """Half a code of rounding. On another CPU a ray on an edge may fall to the other side, hence the share."""
    scene = load_scene(name)
    assert scene.origin["generator_version"] == GENERATOR_VERSION
    assert scene.origin["seed"] == int(scene_seeds("demo", [scene.origin["index"]]))
    fresh = render_scenes([scene.origin["seed"]], 8, (112, 112))
    torch.testing.assert_close(scene.extrinsic, fresh.extrinsic[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(scene.intrinsic, fresh.intrinsic[0], atol=1e-4, rtol=0)
    assert scene.metres_per_unit == pytest.approx(fresh.metres_per_unit.item(), rel=1e-4)
    assert share_within(scene.images - fresh.images[0], 0.501 / 255) > 0.999
    assert share_within(scene.depth / fresh.depth[0] - 1, 1e-3) > 0.999
    assert share_within(scene.depth - fresh.depth[0], 0.51 * scene.depth.max().item() / 65535) > 0.999


@pytest.mark.parametrize("name", NAMES)
def test_stored_pixels_depths_and_cameras_fit_together(name: str) -> None:
    """Float64 arithmetic on the files alone, without the package: each pixel of a view looked up in every other."""
    folder = BUNDLED_FOLDER / name
    facts = json.loads((folder / "scene.json").read_text())
    views = facts["views"]
    pictures = [np.asarray(Image.open(folder / view["image"])) / 255 for view in views]
    depths = [np.asarray(Image.open(folder / view["depth"])) * facts["depth_unit"] for view in views]
    height, width = depths[0].shape
    v, u = np.mgrid[:height, :width]
    homogeneous = np.stack([u, v, np.ones_like(u)], axis=-1)
    agreeing = contradicted = looked_up = 0
    same_place, other_place = [], []
    for i, first in enumerate(views):
        pose = np.vstack([first["extrinsic"], [0, 0, 0, 1]])
        camera = depths[i][..., None] * (homogeneous @ np.linalg.inv(first["intrinsic"]).T)
        world = (np.concatenate([camera, np.ones((height, width, 1))], axis=-1) @ np.linalg.inv(pose).T)[..., :3]
        for j, second in enumerate(views):
            extrinsic = np.array(second["extrinsic"])
            there = world @ extrinsic[:, :3].T + extrinsic[:, 3]
            projected = there @ np.array(second["intrinsic"]).T
            with np.errstate(divide="ignore", invalid="ignore"):
                x, y = projected[..., 0] / projected[..., 2], projected[..., 1] / projected[..., 2]
                inside = (there[..., 2] > 0.02) & (x > 1) & (x < width - 2) & (y > 1) & (y < height - 2)
            x, y, z = x[inside], y[inside], there[..., 2][inside]
            column, row = np.floor(x).astype(int), np.floor(y).astype(int)
            corners = np.stack([depths[j][row + dy, column + dx] for dy in (0, 1) for dx in (0, 1)])
            flat = corners.max(0) < 1.02 * corners.min(0)  # no edge passes between these pixels
            a, b = x - column, y - row
            weights = np.stack([(1 - b) * (1 - a), (1 - b) * a, b * (1 - a), b * a])
            # 1 / depth is linear along a plane's picture.
            expected = 1 / (weights / corners).sum(0)
            agrees = flat & (abs(z / expected - 1) < 5e-3)
            looked_up += flat.sum()
            agreeing += agrees.sum()
            contradicted += (flat & (z < 0.99 * expected)).sum()
            if i != j:
                color = pictures[i][inside][agrees]
                same_place.append(abs(color - pictures[j][row, column][agrees]).mean(-1))
                other_place.append(abs(color - np.roll(pictures[j], 40, axis=(0, 1))[row, column][agrees]).mean(-1))
            else:
                assert agrees[flat].mean() > 0.999
    assert agreeing > 0.4 * looked_up
    assert agreeing < 0.98 * looked_up, "a scene without occlusion would prove nothing"
    assert contradicted < 2e-3 * looked_up, "a point in front of the surface that another view shows"
    assert np.concatenate(same_place).mean() < 0.5 * np.concatenate(other_place).mean()


def test_a_scene_survives_the_disk(tmp_path: Path) -> None:
    batch = render_scenes(scene_seeds("free", [3]), 2, (20, 28))
    batch.valid[0, 1, :5] = False
    save_scene(tmp_path / "s", batch, {"from": "here"})
    scene = load_scene(tmp_path / "s")
    assert torch.equal(scene.extrinsic, batch.extrinsic[0])
    assert torch.equal(scene.intrinsic, batch.intrinsic[0])
    assert torch.equal(scene.valid, batch.valid[0])
    unit = batch.depth[batch.valid].max().item() / 65535
    assert (scene.depth - batch.depth[0])[scene.valid].abs().max() <= 0.51 * unit
    assert (scene.images - batch.images[0]).abs().max() <= 0.501 / 255
    assert scene.origin == {"from": "here"}
    assert {path.name for path in tmp_path.iterdir()} == {"s"}


def test_a_stored_scene_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    small = render_scenes(scene_seeds("free", [3]), 1, (8, 8), supersample=1)
    save_scene(tmp_path / "s", render_scenes(scene_seeds("free", [3]), 2, (8, 8), supersample=1), {})
    save_scene(tmp_path / "s", small, {})
    assert len(load_scene(tmp_path / "s").images) == 1
    assert not (tmp_path / "s" / "image_1.png").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="is no stored scene"):
        save_scene(tmp_path / "mine", small, {})
    with pytest.raises(TypeError):
        save_scene(tmp_path / "s", small, {"bad": object()})
    assert len(load_scene(tmp_path / "s").images) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"s", "mine"}
    with pytest.raises(ValueError, match="holds 2 scenes"):
        save_scene(tmp_path / "two", render_scenes([1, 2], 1, (8, 8), supersample=1), {})


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere/scene.json.*room, table, wide_baselines"):
        load_scene(tmp_path / "nowhere")
    save_scene(tmp_path / "s", render_scenes([1], 1, (8, 8), supersample=1), {})
    Image.new("RGB", (8, 9)).save(tmp_path / "s" / "image_0.png")
    with pytest.raises(ValueError, match=r"image_0.png is 9 x 8 in mode RGB, not 8 x 8 in RGB"):
        load_scene(tmp_path / "s")
    facts = tmp_path / "s" / "scene.json"
    facts.write_text(facts.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(ValueError, match=r"format_version 2; this version reads 1"):
        load_scene(tmp_path / "s")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene of two views of 8 x 8 pixels."""
    folder = tmp_path_factory.mktemp("scenes") / "s"
    save_scene(folder, render_scenes(scene_seeds("free", [3]), 2, (8, 8), supersample=1), {})
    return folder


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["views"], [], r"views is \[\], not a list of views"),
        (["views"], {"0": {}}, "views is .*not a list of views"),
        (["views", 1], None, "views is .*not a list of views"),
        (["views", 1, "extrinsic"], None, "extrinsic of view 1 is None, not 3 x 4 numbers"),
        (["views", 1, "extrinsic"], [[1.0, 0, 0], [0, 1, 0], [0, 0, 1]], "extrinsic of view 1 is .* not 3 x 4 numbers"),
        (["views", 1, "extrinsic", 2, 3], "1", "extrinsic of view 1 is .* not 3 x 4 numbers"),
        (["views", 1, "extrinsic", 2, 3], 1e300, "extrinsic of view 1 is .* not 3 x 4 numbers"),
        (["views", 1, "extrinsic", 2, 3], 10**400, "extrinsic of view 1 is .* not 3 x 4 numbers"),
        (["views", 1, "extrinsic", 0], [0.0, 0.0, 0.0, 0.0], "extrinsic of view 1 is .*, which no camera has"),
        (["views", 1, "intrinsic", 0, 0], -90.0, "intrinsic of view 1 is .*, which no camera has"),
        (["views", 1, "intrinsic", 0, 1], 2.5, "intrinsic of view 1 is .*, which no camera has"),
        (["views", 1, "intrinsic", 1, 0], -1e-3, "intrinsic of view 1 is .*, which no camera has"),
        (["views", 1, "intrinsic", 2], [0, 1, 0], "intrinsic of view 1 is .*, which no camera has"),
        (["views", 1, "intrinsic", 2], [0, 1], "intrinsic of view 1 is .* not 3 x 3 numbers"),
        (["views", 1, "image"], "../image_0.png", "image is '../image_0.png', which is no file of its folder"),
        (["views", 1, "image"], "/etc/passwd", "which is no file of its folder"),
        (["views", 1, "depth"], "\ud800", "which is no file of its folder"),
        (["views", 1, "depth"], "image_0.png", "image_0.png is 8 x 8 in mode RGB, not 8 x 8 in I;16"),
        (["depth_unit"], 0, "depth_unit is 0, not a length"),
        (["depth_unit"], -1.5, "depth_unit is -1.5, not a length"),
        (["depth_unit"], [1.0], r"depth_unit is \[1.0\], not a length"),
        (["metres_per_unit"], None, "metres_per_unit is None, not a length"),
        (["metres_per_unit"], True, "metres_per_unit is True, not a length"),
        (["height"], "A" * 100_000, "height and width are "),
        (["width"], 0, "height and width are "),
        (["origin"], [], r"origin is \[\], not a table"),
        (["format_version"], "1" * 100_000, "format_version '111"),
    ],
)
def test_a_value_that_is_none_is_named(
    stored: Path, tmp_path: Path, path: list[str | int], value: object, message: str
) -> None:
    shutil.copytree(stored, tmp_path / "s")
    facts = json.loads((stored / "scene.json").read_text())
    *way, last = path
    place = facts
    for key in way:
        place = place[key]
    place[last] = value
    (tmp_path / "s" / "scene.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=message) as caught:
        load_scene(tmp_path / "s")
    assert "scene.json" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_damaged_pictures_and_descriptions_are_named(stored: Path, tmp_path: Path) -> None:
    shutil.copytree(stored, tmp_path / "s")
    picture, facts = tmp_path / "s" / "image_1.png", tmp_path / "s" / "scene.json"
    sound = picture.read_bytes()
    for damaged in (b"", sound[:30], sound[: len(sound) // 2], b"\xef\xbb\xbf" + sound, b"GIF89a" + bytes(100)):
        picture.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"image_1.png is damaged"):
            load_scene(tmp_path / "s")
    picture.unlink()
    with pytest.raises(FileNotFoundError, match=r"image_1.png"):
        load_scene(tmp_path / "s")
    for text in ("[" * 200_000, "", "null", "{}"):
        facts.write_text(text)
        with pytest.raises(ValueError, match=r"scene.json(: format_version None| is damaged)"):
            load_scene(tmp_path / "s")


def test_files_that_no_scene_consists_of_are_not_replaced(stored: Path, tmp_path: Path) -> None:
    """A scene.json that somebody has written may list anything in its folder."""
    shutil.copytree(stored, tmp_path / "s")
    (tmp_path / "s" / "thesis.txt").write_text("precious")
    facts = tmp_path / "s" / "scene.json"
    facts.write_text(facts.read_text().replace("image_1.png", "thesis.txt"))
    with pytest.raises(ValueError, match=r"lists 'thesis.txt', which no scene consists of"):
        save_scene(tmp_path / "s", render_scenes(scene_seeds("free", [3]), 1, (8, 8), supersample=1), {})
    assert (tmp_path / "s" / "thesis.txt").read_text() == "precious"
