"""`sparse/0`: read by pycolmap, which must see the cameras of cameras.json and points where their pixels are."""

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
import torch
from PIL import Image

from tests.export.conftest import ENLARGED, first_images
from vggt_int8.export import ExportOptions, PointOptions, Scene, write_scene
from vggt_int8.images import ImageTransform


def export(folder: Path, scene: Scene, **options: Any) -> tuple[pycolmap.Reconstruction, dict[str, Any]]:
    points = options.pop("points", PointOptions(confidence_percentile=0, max_points=3000))
    summary = write_scene(folder, scene, ("colmap",), ExportOptions(points=points, **options))
    return pycolmap.Reconstruction(folder / "sparse" / "0"), summary["colmap"]


def test_cameras_and_names_are_those_of_the_scene(tmp_path: Path, exact: Scene) -> None:
    model, summary = export(tmp_path, exact)
    assert model.is_valid()
    assert (model.num_images(), model.num_reg_images(), model.num_cameras(), model.num_points3D()) == (8, 8, 8, 3000)
    assert model.compute_num_observations() == summary["observations"]
    assert exact.extrinsic is not None
    for index in range(8):
        image = model.images[index + 1]
        assert image.name == f"walk {index % 2}/photo {index}.jpg"
        assert np.allclose(image.cam_from_world().matrix(), exact.extrinsic[index].numpy(), atol=1e-6)
        assert image.camera.model.name == "PINHOLE"
        assert (image.camera.width, image.camera.height) == exact.transforms[index].original_size[::-1]
        assert image.camera.verify_params()


def test_points_project_to_where_their_pixels_lie_in_the_photographs(tmp_path: Path, exact: Scene) -> None:
    """Half a pixel: the network's pixel (u, v) covers [4 u, 4 u + 4) of the photograph, so its centre is 4 u + 2.

    With one image there is no other that a point's position is averaged with, so nothing but rounding is left.
    """
    model, _ = export(tmp_path, first_images(exact, 1))
    image = model.images[1]
    for point in image.points2D:
        seen = model.points3D[point.point3D_id]
        column, row = (point.xy - ENLARGED / 2) / ENLARGED
        assert (column, row) == (round(column), round(row))
        assert np.abs(image.project_point(seen.xyz) - point.xy).max() < 1e-3
        assert np.array_equal(seen.color, exact.colors[0, round(row), round(column)].numpy())


def test_the_picture_is_where_the_points_are(tmp_path: Path, exact: Scene) -> None:
    """Apart from this package's own rule: colours are looked up in the photograph at COLMAP's coordinates."""
    model, _ = export(tmp_path, exact, points=PointOptions(confidence_percentile=0, max_points=500))
    photograph = Image.fromarray(exact.colors[2].numpy()).resize((448, 448), Image.Resampling.NEAREST)
    own = 0
    for point in model.images[3].points2D:
        seen = model.points3D[point.point3D_id]
        if seen.track.elements[0].image_id == 3:  # the image that the point is from
            x, y = point.xy.astype(int)  # the pixel that covers it
            assert photograph.getpixel((int(x), int(y))) == tuple(seen.color)
            own += 1
    assert own > 20


def test_tracks_join_images_that_see_the_same_surface(tmp_path: Path, exact: Scene) -> None:
    model, summary = export(tmp_path, exact)
    assert summary["points_in_several_images"] > 0.8 * summary["points"]
    assert summary["mean_reprojection_error"] < 0.1  # original pixels: exact depth, read between pixels
    model.update_point_3d_errors()
    errors = {number: point.error for number, point in model.points3D.items()}
    written = pycolmap.Reconstruction(tmp_path / "sparse" / "0")
    assert max(abs(point.error - errors[number]) for number, point in written.points3D.items()) < 1e-2
    for point in model.points3D.values():
        images = [element.image_id for element in point.track.elements]
        assert len(set(images)) == len(images)


def test_a_surface_that_another_image_denies_is_not_joined(tmp_path: Path, exact: Scene) -> None:
    assert exact.depth is not None
    doubled = exact.depth.clone()
    doubled[1:] *= torch.linspace(1.5, 4, 7).view(7, 1, 1)  # no two images agree
    _, summary = export(tmp_path, replace(exact, depth=doubled))
    assert summary["points_in_several_images"] < 0.1 * summary["points"]


def test_the_bytes_are_those_that_pycolmap_writes(tmp_path: Path, exact: Scene) -> None:
    model, _ = export(tmp_path, exact)
    (tmp_path / "again").mkdir()
    model.write_binary(tmp_path / "again")
    for name in ("cameras.bin", "rigs.bin", "frames.bin", "images.bin"):
        assert (tmp_path / "sparse/0" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    ours, theirs = ((folder / "points3D.bin").read_bytes() for folder in (tmp_path / "sparse/0", tmp_path / "again"))
    assert len(ours) == len(theirs)
    assert ours[:8] == theirs[:8] == struct.pack("<Q", 3000)


def test_one_camera_for_all_has_the_median_focal_length(tmp_path: Path, exact: Scene) -> None:
    assert exact.intrinsic is not None
    intrinsic = exact.intrinsic.clone()
    intrinsic[0, 0, 0] *= 10  # one that is far off changes nothing
    model, summary = export(tmp_path, replace(exact, intrinsic=intrinsic), shared_camera=True)
    assert model.is_valid()
    assert (summary["cameras"], model.num_cameras(), model.num_reg_images()) == (1, 1, 8)
    assert model.cameras[1].params[0] == pytest.approx(4 * float(exact.intrinsic[1, 0, 0]), rel=1e-6)
    sizes = [ImageTransform((448, 448 + i), (112, 112), (0.25, 0.25), (0, 0)) for i in range(8)]
    with pytest.raises(ValueError, match=r"one size, and these have 448x448, 449x448, 450x448 and 5 more"):
        export(tmp_path / "b", replace(exact, transforms=sizes), shared_camera=True)


def test_padded_and_cropped_images_keep_their_own_size(tmp_path: Path, scene: Scene) -> None:
    model, _ = export(tmp_path, scene)
    assert model.is_valid()
    for index, transform in enumerate(scene.transforms):
        image = model.images[index + 1]
        assert (image.camera.height, image.camera.width) == transform.original_size
        places = np.array([point.xy for point in image.points2D])
        assert (places >= 0).all()
        assert (places <= (image.camera.width, image.camera.height)).all(), "no point on padding"


def test_what_has_no_camera_or_no_point_is_refused(tmp_path: Path, exact: Scene) -> None:
    assert exact.intrinsic is not None
    intrinsic = exact.intrinsic.clone()
    intrinsic[3, 0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"photo 3\.jpg has no finite focal length"):
        export(tmp_path, replace(exact, intrinsic=intrinsic))
    with pytest.raises(ValueError, match="needs cameras"):
        export(tmp_path, replace(exact, extrinsic=None))
    with pytest.raises(ValueError, match="no points are left"):
        export(tmp_path, exact, points=PointOptions(min_confidence=2))
    assert not (tmp_path / "sparse").exists()
