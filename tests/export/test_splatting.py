"""What trainers of Gaussian splatting ask of a folder, checked as their loaders would find it.

- INRIA's (scene/colmap_loader.py and scene/dataset_readers.py of graphdeco-inria/gaussian-splatting at a2a91d9): reads
  the older three of the binary files by itself, takes PINHOLE alone, the size from the camera, the picture from
  `images/` by the camera's image name, ignores the principal point, and cannot start from no points.
- gsplat's (examples/datasets/colmap.py): reads by pycolmap, takes for granted that `images` and `images_N` hold the
  model's images and nothing else, in one order, and scales all cameras by the ratio of the first image.
"""

import os
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from PIL import Image

from vggt_int8.export import ExportOptions, PointOptions, Scene, write_scene
from vggt_int8.images import load_images
from vggt_int8.scenes import load_scene


def take(file: BinaryIO, form: str) -> tuple:
    return struct.unpack("<" + form, file.read(struct.calcsize("<" + form)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A walk of portrait and landscape photographs, names with spaces, as both trainers would get it."""
    root = tmp_path_factory.mktemp("splat")
    stored = load_scene("room")
    (root / "photos").mkdir()
    files = []
    for index, pixels in enumerate(stored.images[:4]):
        picture = Image.fromarray((pixels.permute(1, 2, 0) * 255).byte().numpy()).resize((400, 301))
        files.append(root / "photos" / f"My photo {10 - index}.png")
        (picture.transpose(Image.Transpose.ROTATE_90) if index == 2 else picture).save(files[-1])
    _, transforms = load_images([str(file) for file in files], size=112, patch_size=14, return_transforms=True)
    height, width = transforms[0].model_size
    shape = (1, 4, height, width)
    pred = {
        "images": stored.images[:4, :, :1, :1].expand(4, 3, height, width)[None],
        "depth": stored.depth[:4, :1, :1].expand(4, height, width).reshape(*shape, 1),
        "depth_conf": stored.depth[:4, :1, :1].expand(4, height, width).reshape(shape),
        "extrinsic": stored.extrinsic[None, :4],
        "intrinsic": stored.intrinsic[None, :4] * 1.0,
    }
    pred["intrinsic"][..., :2, 2] = pred["intrinsic"].new_tensor([width / 2, height / 2])
    scene = Scene.from_prediction(pred, transforms, [file.name for file in files], files)
    options = ExportOptions(PointOptions(confidence_percentile=0, max_points=500), images="copy", image_scales=(2, 4))
    (root / "out").mkdir()
    write_scene(root / "out", scene, ("colmap",), options)
    return root / "out"


@pytest.mark.filterwarnings("ignore:images differ in size")
def test_inria_finds_pinhole_cameras_with_their_pictures_and_points(folder: Path) -> None:
    cameras, names = {}, []
    with (folder / "sparse/0/cameras.bin").open("rb") as file:
        for _ in range(*take(file, "Q")):
            number, model, width, height = take(file, "iiQQ")
            assert model == 1, "PINHOLE"
            cameras[number] = (width, height, take(file, "4d"))
        assert not file.read()
    with (folder / "sparse/0/images.bin").open("rb") as file:
        (count,) = take(file, "Q")
        for number in range(1, count + 1):
            identity, *pose, camera = take(file, "i7di")
            assert identity == number, "in the order of the input"
            assert np.linalg.norm(pose[:4]) == pytest.approx(1)
            name = b"".join(iter(lambda: file.read(1), b"\0")).decode()
            file.seek(24 * take(file, "Q")[0], os.SEEK_CUR)
            width, height, (_, _, cx, cy) = cameras[camera]
            with Image.open(folder / "images" / name) as picture:
                assert picture.size == (width, height)
            # Half a pixel of the network's image, 112 wide, is what the conventions differ by.
            assert abs(cx - width / 2) <= width / 112
            assert abs(cy - height / 2) <= width / 112 + 1
            names.append(name)
        assert not file.read()
    assert names == [f"My photo {number}.png" for number in (10, 9, 8, 7)]
    with (folder / "sparse/0/points3D.bin").open("rb") as file:
        assert take(file, "Q") == (500,)


def test_gsplat_finds_the_same_pictures_in_every_folder(folder: Path) -> None:
    def names(of: str) -> list[str]:
        return sorted(path.relative_to(folder / of).as_posix() for path in (folder / of).rglob("*") if path.is_file())

    for scale in (2, 4):
        assert names(f"images_{scale}") == names("images")
        for name in names("images"):
            with Image.open(folder / "images" / name) as large, Image.open(folder / f"images_{scale}" / name) as small:
                assert small.size == tuple(round(side / scale) for side in large.size)
