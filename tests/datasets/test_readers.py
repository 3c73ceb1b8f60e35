"""COLMAP models, lenses and laser scans as files."""

import struct
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch

from vggt_int8.data.camera import MODELS, Camera, ModelError
from vggt_int8.data.colmap import find_model, read_model
from vggt_int8.data.lens import pixels_to_rays, rays_to_pixels
from vggt_int8.data.scans import ScanError, read_alignment, read_ply, read_scans, thin

FISHEYE = Camera(
    "THIN_PRISM_FISHEYE",
    (4032, 6048),
    np.array([3410.0, 3409.0, 3115.0, 2066.0, -0.045, 0.02, 1e-4, -2e-4, -0.01, 0.002, 1e-4, -1e-4]),
)


def test_a_lens_and_back() -> None:
    pixels = np.random.default_rng(0).uniform([0, 0], [6048, 4032], (1000, 2))
    rays = pixels_to_rays(FISHEYE, pixels)
    assert np.abs(rays_to_pixels(FISHEYE, rays) - pixels).max() < 1e-6
    assert np.abs(rays[:, 0]).max() > 1


def test_a_lens_is_what_colmap_means_by_it() -> None:
    height, width = FISHEYE.size
    camera = pycolmap.Camera(model=FISHEYE.model, width=width, height=height, params=FISHEYE.parameters.tolist())
    rays = np.random.default_rng(1).uniform([-0.9, -0.6], [0.9, 0.6], (1000, 2))
    pixels = rays_to_pixels(FISHEYE, rays)
    np.testing.assert_allclose(pixels, camera.img_from_cam(np.column_stack([rays, np.ones(1000)])), rtol=1e-12)
    np.testing.assert_allclose(pixels_to_rays(FISHEYE, pixels), camera.cam_from_img(pixels), atol=1e-9)


def test_what_a_lens_does_not_show_is_unknown() -> None:
    wide = Camera("THIN_PRISM_FISHEYE", (100, 100), np.array([20.0, 20.0, 50.0, 50.0, *[0.0] * 8]))
    rays = pixels_to_rays(wide, np.array([[50.0, 50.0], [50.0 + 20 * 1.6, 50.0]]))
    assert rays[0].tolist() == [0, 0]
    assert np.isnan(rays[1]).all()
    with pytest.raises(ModelError, match="FOV"):
        pixels_to_rays(Camera("FOV", (2, 2), np.ones(5)), np.zeros((1, 2)))


def write_text(folder: Path, camera: str = "7 SIMPLE_PINHOLE 640 480 500 320 240", name: str = "a b.jpg") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cameras.txt").write_text(f"# cameras\n{camera}\n")
    (folder / "images.txt").write_text(f"# images\n2 1 0 0 0 1 2 3 7 {name}\n\n1 0 0 0 2 0 0 1 7 z.jpg\n3 4 -1\n")


def test_a_model_as_text(tmp_path: Path) -> None:
    write_text(tmp_path / "sparse" / "0")
    model = read_model(find_model(tmp_path))
    assert [image.name for image in model.images] == ["a b.jpg", "z.jpg"]
    assert model.cameras[7].intrinsic().tolist() == [[500, 0, 320], [0, 500, 240], [0, 0, 1]]
    assert model.images[0].extrinsic[:, 3].tolist() == [1, 2, 3]
    turned = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(model.images[1].extrinsic[:, :3], turned)


def test_text_may_have_empty_lines_and_comments(tmp_path: Path) -> None:
    write_text(tmp_path)
    text = (tmp_path / "images.txt").read_text()
    for line in ("\n", " # by hand\n"):
        spaced = text.replace("\n1 0", f"\n{line}1 0").replace("images\n", f"images\n{line}") + line + line
        (tmp_path / "images.txt").write_text(spaced)
        assert [image.name for image in read_model(tmp_path).images] == ["a b.jpg", "z.jpg"]


def test_text_without_the_lines_of_observations_is_refused(tmp_path: Path) -> None:
    """Every second image would be taken for what the one before observes."""
    write_text(tmp_path)
    text = (tmp_path / "images.txt").read_text()
    (tmp_path / "images.txt").write_text(text.replace("\n\n", "\n"))
    with pytest.raises(
        ModelError, match=r"images\.txt: '1 0 0 0 2 0 0 1 7 z\.jpg' stands where the observations of 'a b"
    ):
        read_model(tmp_path)


def write_binary(folder: Path, *, frames: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cameras.bin").write_bytes(struct.pack("<QIiQQ4d", 1, 7, 1, 640, 480, 500, 501, 320, 240))
    image = (
        struct.pack("<QI7dI", 1, 2, 1, 0, 0, 0, 1, 2, 3, 7) + b"a b.jpg\0" + struct.pack("<Q2dQ", 1, 1, 2, 2**64 - 1)
    )
    (folder / "images.bin").write_bytes(image)
    if frames:
        (folder / "frames.bin").write_bytes(struct.pack("<QII7dIiIQ", 1, 1, 1, 1, 0, 0, 0, 4, 5, 6, 1, 0, 7, 2))
        (folder / "rigs.bin").write_bytes(struct.pack("<QIIiI", 1, 1, 1, 0, 7))


@pytest.mark.parametrize("frames", [False, True])
def test_a_model_as_binary_files(tmp_path: Path, frames: bool) -> None:
    """Poses are those of frames.bin where it is there, as COLMAP reads them."""
    write_binary(tmp_path, frames=frames)
    (image,) = read_model(tmp_path).images
    assert image.name == "a b.jpg"
    assert image.extrinsic[:, 3].tolist() == ([4, 5, 6] if frames else [1, 2, 3])
    content = (tmp_path / "images.bin").read_bytes()
    for length in (4, 20, len(content) - 1):
        (tmp_path / "images.bin").write_bytes(content[:length])
        with pytest.raises(ModelError, match=r"images\.bin ends"):
            read_model(tmp_path)


def pose(*quaternion: float, at: tuple[float, float, float] = (0, 0, 0)) -> pycolmap.Rigid3d:
    """quaternion: x, y, z, w."""
    return pycolmap.Rigid3d(pycolmap.Rotation3d(np.array(quaternion) / np.linalg.norm(quaternion)), np.array(at))


def sensor(number: int, kind: pycolmap.SensorType = pycolmap.SensorType.CAMERA) -> pycolmap.sensor_t:
    return pycolmap.sensor_t(kind, number)


def model_of_a_rig() -> pycolmap.Reconstruction:
    """Two moments of a rig of an inertial sensor and two cameras."""
    model = pycolmap.Reconstruction()
    rig = pycolmap.Rig(rig_id=5)
    rig.add_ref_sensor(sensor(3))
    rig.add_sensor(sensor(4), pose(0, 0.2, 0.1, 0.9, at=(-0.2, 0, 0.1)))
    rig.add_sensor(sensor(1, pycolmap.SensorType.IMU), pose(0.1, 0, 0, 0.9, at=(0, 0, 1)))
    for camera in (3, 4):
        model.add_camera(
            pycolmap.Camera(camera_id=camera, model="PINHOLE", width=64, height=48, params=[50, 50, 32, 24])
        )
    model.add_rig(rig)
    for moment in range(2):
        frame = pycolmap.Frame(frame_id=moment + 1, rig_id=5)
        frame.rig_from_world = pose(0.1 * moment, 0.3, 0.3, 0.9, at=(moment, 2, 3))
        for camera in (3, 4):
            frame.add_data_id(pycolmap.data_t(sensor(camera), 10 * camera + moment))
        model.add_frame(frame)
        for camera in (3, 4):
            image = pycolmap.Image(name=f"{camera}/{moment}.jpg", camera_id=camera, image_id=10 * camera + moment)
            image.frame_id = moment + 1
            model.add_image(image)
    return model


@pytest.mark.parametrize("kind", ["binary", "text"])
def test_images_stand_where_the_rig_and_its_frames_say(tmp_path: Path, kind: str) -> None:
    """As COLMAP reads them: it does not look at what images.txt says."""
    model = model_of_a_rig()
    getattr(model, f"write_{kind}")(tmp_path)
    path = tmp_path / "images.txt"
    if kind == "text":
        path.write_text("".join(f"{line} 1 0 0 0 9 9 9 {line // 10} {name}\n\n" for line, name in names(model).items()))
        again = pycolmap.Reconstruction(tmp_path)
        np.testing.assert_array_equal(again.image(30).cam_from_world().translation, [0, 2, 3])
    found = {image.name: image.extrinsic.numpy() for image in read_model(tmp_path).images}
    assert found.keys() == set(names(model).values())
    for number, name in names(model).items():
        np.testing.assert_allclose(found[name], model.image(number).cam_from_world().matrix(), atol=1e-12)


def names(model: pycolmap.Reconstruction) -> dict[int, str]:
    return {number: image.name for number, image in model.images.items()}


@pytest.mark.parametrize("rig", ["5 2 CAMERA 3 CAMERA 4 0", "5 1 CAMERA 3", "7 1 CAMERA 4"])
def test_a_camera_whose_place_in_the_rig_is_not_known(tmp_path: Path, rig: str) -> None:
    model_of_a_rig().write_text(tmp_path)
    (tmp_path / "rigs.txt").write_text(f"{rig}\n")
    with pytest.raises(ModelError, match=r"rigs\.txt does not say where camera [34] is in rig 5"):
        read_model(tmp_path)


@pytest.mark.parametrize(
    ("camera", "says"),
    [
        ("7 PINHOLE 640 480 500 320 240", "4 are needed"),
        ("7 PINHOL 640 480 500 500 320 240", "'PINHOL' is not known"),
        ("7 PINHOLE 640 480 -1 500 320 240", "has parameters"),
        ("7 PINHOLE 640 480 nan 500 320 240", "has parameters"),
        ("seven PINHOLE 640", "is no camera"),
        ("8 SIMPLE_PINHOLE 640 480 500 320 240", "names camera 7, which there is not"),
    ],
)
def test_models_that_are_wrong(tmp_path: Path, camera: str, says: str) -> None:
    write_text(tmp_path, camera)
    with pytest.raises(ModelError, match=says):
        read_model(tmp_path)


def test_cameras_that_bend_lines_are_to_be_undistorted_first(tmp_path: Path) -> None:
    write_text(tmp_path, "7 OPENCV 640 480 500 501 320 240 0.1 0 0 0")
    with pytest.raises(ModelError, match="undistort the images first"):
        read_model(tmp_path).cameras[7].intrinsic()
    write_text(tmp_path, "7 OPENCV 640 480 500 501 320 240 0 0 0 0")  # as of images that are undistorted already
    assert read_model(tmp_path).cameras[7].intrinsic().tolist() == [[500, 0, 320], [0, 501, 240], [0, 0, 1]]


def test_all_camera_models_of_colmap_are_known() -> None:
    theirs = sorted((int(kind), name) for name, kind in pycolmap.CameraModelId.__members__.items() if int(kind) >= 0)
    cameras = [pycolmap.Camera(model=name, width=64, height=48) for _, name in theirs]
    assert tuple((camera.model_name, len(camera.params_info.split(","))) for camera in cameras) == MODELS


POINTS = np.array([[1, 2, 3], [4, 5, 6.5]], dtype=np.float32)


@pytest.mark.parametrize("form", ["binary_little_endian", "binary_big_endian", "ascii"])
@pytest.mark.parametrize("kind", ["float", "double"])
def test_points_of_a_scan(tmp_path: Path, form: str, kind: str) -> None:
    names = ["nx", "x", "y", "z"]
    header = f"ply\nformat {form} 1.0\ncomment x\nelement vertex 2\n"
    header += "".join(f"property {kind} {name}\n" for name in names)
    header += "element face 0\nproperty list uchar int vertex_indices\nend_header\n"
    rows = np.concatenate([np.zeros((2, 1)), POINTS], axis=1)
    order = ">" if "big" in form else "<"
    body = rows.astype(f"{order}f{4 if kind == 'float' else 8}").tobytes()
    if form == "ascii":
        body = "\n".join(" ".join(map(str, row)) for row in rows.tolist()).encode() + b"\n"
    path = tmp_path / "scan.ply"
    path.write_bytes(header.encode() + body)
    np.testing.assert_array_equal(read_ply(path), POINTS)
    if form != "ascii":
        path.write_bytes(header.encode() + body[:-1])
        with pytest.raises(ScanError, match="cut off"):
            read_ply(path)


@pytest.mark.parametrize("content", [b"", b"ply\n", b"PK\3\4", b"ply\nformat ascii 1.0\nelement face 1\nend_header\n"])
def test_what_is_no_scan(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "scan.ply").write_bytes(content)
    with pytest.raises(ScanError, match=r"scan\.ply"):
        read_ply(tmp_path / "scan.ply")


@pytest.mark.parametrize(
    "mesh",
    [
        '<MLMesh filename="../scan.ply"><MLMatrix44>1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1</MLMatrix44></MLMesh>',
        '<MLMesh filename="scan.ply"><MLMatrix44>1 0 0</MLMatrix44></MLMesh>',
        '<MLMesh filename="scan.ply"/>',
        "",
        "<MLMesh",
    ],
)
def test_projects_that_are_wrong(tmp_path: Path, mesh: str) -> None:
    (tmp_path / "a.mlp").write_text(f"<MeshLabProject>{mesh}</MeshLabProject>")
    with pytest.raises(ScanError, match=r"a\.mlp"):
        read_alignment(tmp_path / "a.mlp")


def test_scans_stand_where_the_project_says(tmp_path: Path) -> None:
    header = b"ply\nformat binary_little_endian 1.0\nelement vertex 2\n"
    header += b"".join(f"property float {axis}\n".encode() for axis in "xyz") + b"end_header\n"
    (tmp_path / "scan.ply").write_bytes(header + POINTS.tobytes())
    rows = "0 -1 0 10 \n 1 0 0 20 \n 0 0 1 30 \n 0 0 0 1"
    mesh = f'<MLMesh filename="scan.ply"><MLMatrix44>\n{rows}\n</MLMatrix44></MLMesh>'
    (tmp_path / "a.mlp").write_text(
        f"<!DOCTYPE MeshLabDocument><MeshLabProject><MeshGroup>{mesh}</MeshGroup></MeshLabProject>"
    )
    found = read_scans(tmp_path / "a.mlp", 0.01)
    np.testing.assert_allclose(found[np.argsort(found[:, 0])], [[5, 24, 36.5], [8, 21, 33]])


def test_thinned_points_are_means_of_their_cubes() -> None:
    points = np.array([[0.1, 0.1, 0.1], [0.3, 0.1, 0.1], [-0.1, 0.1, 0.1], [np.nan, 0, 0]])
    np.testing.assert_allclose(thin(points, 1.0), [[-0.1, 0.1, 0.1], [0.2, 0.1, 0.1]])
    assert thin(np.empty((0, 3)), 1.0).shape == (0, 3)
    far = np.array([[0, 0, 1e7], [0, 1e7, 0], [1e7, 0, 0], [1e30, 0, 0]])  # in more cubes than an integer can number
    np.testing.assert_array_equal(thin(np.concatenate([far[::-1], far]), 0.01), far)


def test_a_model_that_colmap_writes(tmp_path: Path) -> None:
    written = pycolmap.Reconstruction()
    camera = pycolmap.Camera(camera_id=4, model="PINHOLE", width=64, height=48, params=[50, 51, 32, 24])
    written.add_camera_with_trivial_rig(camera)
    image = pycolmap.Image(name="a b.jpg", camera_id=4, image_id=9)
    pose = pycolmap.Rigid3d(pycolmap.Rotation3d(np.array([0.1, 0.3, 0.3, 0.9])), np.array([1.0, 2.0, 3.0]))
    written.add_image_with_trivial_frame(image, pose)
    for kind in ("binary", "text"):
        (tmp_path / kind).mkdir()
        getattr(written, f"write_{kind}")(tmp_path / kind)
        (found,) = read_model(tmp_path / kind).images
        assert found.name == "a b.jpg"
        np.testing.assert_allclose(found.extrinsic.numpy(), pose.matrix(), atol=1e-6)
