"""Photographs with COLMAP's cameras as scenes to score on: turned ones, far from the origin, several models."""

from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch
from PIL import Image

from vggt_int8.data.camera import Camera, ModelError
from vggt_int8.data.colmap import PosedImage
from vggt_int8.geometry import camera_center, project_points, relative_pose
from vggt_int8.images import open_image
from vggt_int8.model.config import VGGTConfig
from vggt_int8.scorecard.captured import PosedScenes
from vggt_int8.scorecard.upright import turned_upright

CONFIG = VGGTConfig(img_size=56)
WIDTH, HEIGHT = 60, 40
PINHOLE = Camera("PINHOLE", (HEIGHT, WIDTH), np.array([50.0, 51.0, 31.0, 19.0]))


def stored(path: Path, orientation: int = 1, at: tuple[int, int] = (0, 0)) -> Path:
    """A black photograph with one white pixel, with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x112] = orientation
    picture = Image.new("L", (WIDTH, HEIGHT))
    picture.putpixel(at, 255)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, exif=exif)
    return path


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_camera_is_turned_with_its_photograph(tmp_path: Path, orientation: int) -> None:
    """A point that the stored camera has at a pixel is where that pixel is in the upright image."""
    column, row = 44, 7
    ray = [(column + 0.5 - 31) / 50, (row + 0.5 - 19) / 51, 1]
    pose = pycolmap.Rigid3d(pycolmap.Rotation3d(np.array([0.1, 0.2, 0.3])), np.array([1.0, 2.0, 3.0]))
    point = torch.from_numpy(pose.inverse() * (5 * np.array(ray)))
    image = PosedImage("a.png", 1, torch.from_numpy(pose.matrix()))
    turned, camera = turned_upright(image, PINHOLE, orientation)
    upright = np.asarray(open_image(stored(tmp_path / "a.png", orientation, (column, row))).convert("L"))
    assert camera.size == upright.shape
    pixel, depth = project_points(point[None], turned.extrinsic, camera.intrinsic())
    assert depth.item() == pytest.approx(5)
    y, x = np.argwhere(upright)[0]
    np.testing.assert_allclose(pixel[0].numpy(), [x + 0.5, y + 0.5], atol=1e-5)
    assert torch.linalg.det(turned.extrinsic[:, :3]).item() == pytest.approx(1)


def test_no_camera_sees_mirrored_images() -> None:
    with pytest.raises(ModelError, match=r"'a\.png' is stored mirrored \(EXIF orientation 5\)"):
        turned_upright(PosedImage("a.png", 1, torch.eye(3, 4)), PINHOLE, 5)


def make(folder: Path, orientation: int = 1, far: float = 0.0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    """Three images in subfolders, and one that the model does not have, in COLMAP's binary files."""
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera(camera_id=2, model="PINHOLE", width=size[0], height=size[1], params=PINHOLE.parameters)
    model.add_camera_with_trivial_rig(camera)
    for number in range(3):
        rotation = pycolmap.Rotation3d(np.array([0, 0.1 * number, 0]))
        center = np.array([0.1 * number + far, -far, 0.3 * number])
        image = pycolmap.Image(name=f"{number % 2}/{number}.jpg", camera_id=2, image_id=9 - number)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(rotation, -(rotation.matrix() @ center)))
        stored(folder / "images" / image.name, orientation)
    stored(folder / "images" / "unposed.jpg")
    (folder / "sparse" / "0").mkdir(parents=True)
    model.write(folder / "sparse" / "0")
    return folder


def test_the_world_begins_at_the_first_view(tmp_path: Path) -> None:
    """In coordinates of a map (UTM) fp32 has steps of half a metre, here more than between the views."""
    (near,), (far,) = PosedScenes(make(tmp_path / "near"), CONFIG), PosedScenes(make(tmp_path / "far", far=5e6), CONFIG)
    assert near.extrinsic is not None
    assert far.extrinsic is not None
    assert camera_center(near.extrinsic[0]).tolist() == [0, 0, 0]
    torch.testing.assert_close(near.extrinsic, far.extrinsic, atol=1e-6, rtol=0)
    assert near.extrinsic.dtype == torch.float32


def test_a_scene_of_turned_photographs(tmp_path: Path) -> None:
    (scene,) = PosedScenes(make(tmp_path / "turned", orientation=6), CONFIG)
    (plain,) = PosedScenes(make(tmp_path / "plain"), CONFIG)
    assert scene.extrinsic is not None
    assert plain.extrinsic is not None
    assert scene.intrinsic is not None
    turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    between = [relative_pose(one.extrinsic[0], one.extrinsic[2]) for one in (scene, plain)]
    torch.testing.assert_close(between[0], turn @ torch.cat([between[1][:, :3] @ turn.mT, between[1][:, 3:]], dim=1))
    assert (scene.intrinsic[0, 0, 0] / scene.intrinsic[0, 1, 1]).item() == pytest.approx(51 / 50, rel=0.02)


def test_cameras_of_another_shape_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    assert len(PosedScenes(make(tmp_path / "scaled", size=(7 * WIDTH + 3, 7 * HEIGHT)), CONFIG)) == 1
    with pytest.raises(ModelError, match=r"0\.jpg has 60 x 40 pixels, and its camera 40 x 60"):
        PosedScenes(make(tmp_path / "other", size=(HEIGHT, WIDTH)), CONFIG)


def test_which_of_several_models_is_taken(tmp_path: Path) -> None:
    folder = make(tmp_path / "scene")
    (folder / "sparse" / "0").rename(folder / "sparse" / "1")
    with pytest.raises(FileNotFoundError, match="holds no COLMAP model"):
        PosedScenes(folder, CONFIG)
    make(tmp_path / "other")
    (tmp_path / "other" / "sparse" / "0").rename(folder / "sparse" / "0")
    with pytest.warns(UserWarning, match="sparse holds several models: 0 is taken, not 1"):
        assert len(PosedScenes(folder, CONFIG)) == 1


def test_the_folder_that_one_is_in_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By which ETH3D's lists of images are found."""
    monkeypatch.chdir(make(tmp_path / "kitchen"))
    for folder in (Path("."), Path("images/..")):
        (scene,) = PosedScenes(folder, CONFIG)
        assert scene.name == "kitchen"
