"""COLMAP models, text or binary: cameras and posed images. Points are not read.

Since version 4 an image's pose is that of its frame, after that of its camera in the rig; what the file of images says
is read only where there are no frames. COLMAP reads models so, and so do we.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vggt_int8.data.camera import Camera, ModelError
from vggt_int8.data.colmap_files import BinaryFiles, ModelFiles, TextFiles
from vggt_int8.geometry import compose_extrinsics
from vggt_int8.plain_data import shown

FOLDERS = ("", "sparse/0", "sparse", "colmap/sparse/0", "dslr_calibration_undistorted")


@dataclass(frozen=True)
class PosedImage:
    """name: relative to the folder of images. extrinsic [3, 4], camera from world, in fp64: coordinates of a map, such
    as UTM, have more digits than fp32.
    """

    name: str
    camera: int
    extrinsic: Tensor


@dataclass(frozen=True)
class Model:
    """cameras: by id; ids need not be consecutive. images: sorted by name."""

    cameras: dict[int, Camera]
    images: list[PosedImage]


def find_model(folder: Path) -> Path:
    """The folder at or below `folder` that contains a model. Raises FileNotFoundError with the searched places."""
    for name in FOLDERS:
        if is_model(folder / name):
            return folder / name
    where = ", ".join(name or "." for name in FOLDERS)
    raise FileNotFoundError(f"{folder} holds no COLMAP model: there is no cameras.bin or cameras.txt in {where}")


def is_model(folder: Path) -> bool:
    return any((folder / f"cameras.{kind}").is_file() for kind in ("bin", "txt"))


def read_model(folder: Path) -> Model:
    """Read the model in a folder; binary files take precedence. Raises `ModelError`, naming the file, and OSError."""
    files: ModelFiles = BinaryFiles(folder) if (folder / "cameras.bin").is_file() else TextFiles(folder)
    cameras, entries = dict(files.cameras()), list(files.images())
    poses = _poses(files) if files.path("frames").is_file() else {entry.number: entry.pose for entry in entries}
    images = [PosedImage(entry.name, entry.camera, poses[entry.number]) for entry in entries if entry.number in poses]
    if not images:
        raise ModelError(f"{folder} has no image with a pose")
    for image in images:
        if image.camera not in cameras:
            raise ModelError(f"{folder}: image {shown(image.name)} names camera {image.camera}, which there is not")
    return Model(cameras, sorted(images, key=lambda image: image.name))


def _poses(files: ModelFiles) -> dict[int, Tensor]:
    """Image -> camera from world [3, 4]: where its camera is in the rig, after where the rig was in its frame."""
    rigs, poses = {rig.number: rig for rig in files.rigs()}, {}
    for frame in files.frames():
        rig = rigs.get(frame.rig)
        for camera, image in frame.images:
            if rig is not None and camera == rig.reference:
                poses[image] = frame.pose
            elif rig is not None and camera in rig.others:
                poses[image] = compose_extrinsics(rig.others[camera], frame.pose)
            else:
                raise ModelError(f"{files.path('rigs')} does not say where camera {camera} is in rig {frame.rig}")
    return poses
