"""A small scene in exactly the layout of ETH3D's archives, of a rendered room whose geometry is known.

Two cameras of different sizes with ids 3 and 0, a portrait shot that lies on its side, depth of the distorted
THIN_PRISM_FISHEYE cameras for a tenth of their pixels, a mask that hides where that is wrong, and two laser scans that
stand elsewhere.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import py7zr
import torch
from PIL import Image
from torch import Tensor

from vggt_int8.data.camera import Camera
from vggt_int8.data.lens import pixels_to_rays
from vggt_int8.geometry import camera_center, compose_extrinsics, rotation_to_quaternion, unproject_depth
from vggt_int8.scenes.describe import SceneDescription, describe_scenes
from vggt_int8.scenes.render import render_description
from vggt_int8.scenes.shading import trace_depth

VIEWS, PORTRAIT, MASKED = 6, 4, 1
SIZES = {3: (96, 128), 0: (94, 126)}  # of the undistorted cameras
DISTORTED = {3: (100, 136), 0: (100, 134)}
MASKS = "masks_for_images/dslr_images"
BEND = (-0.03, 0.01, 4e-4, -3e-4, -0.004, 0.001, 2e-4, -1e-4)  # k1 k2 p1 p2 k3 k4 sx1 sy1
WORLD = torch.tensor([[0.36, 0.48, -0.8, 2.0], [-0.8, 0.6, 0.0, -1.0], [0.48, 0.64, 0.6, 0.5]])  # where the world is


@dataclass
class Truth:
    """names in order; extrinsic [S, 3, 4] camera from world, metres; images and depth of each view at its size."""

    names: list[str]
    cameras: list[int]
    extrinsic: Tensor
    intrinsics: list[Tensor]  # first pixel centred on (0, 0)
    descriptions: list[SceneDescription]  # of one view each

    def depth_at(self, view: int, pixels: Tensor) -> Tensor:
        """Exact depth in metres where rays through `pixels` [N, 2] (first centre at 0) of a view end, [N]."""
        scene = self.descriptions[view]
        return trace_depth(scene.slots[:, 0], scene.camera[:, 0], scene.intrinsic[:, 0], pixels.T.float())[0]


def describe() -> Truth:
    camera_of = [3, 0, 3, 0, 3, 0]
    descriptions, extrinsic, intrinsics = [], [], []
    for view, camera in enumerate(camera_of):
        whole = describe_scenes([27], VIEWS, SIZES[camera])
        one = {name: getattr(whole, name)[:, view : view + 1] for name in ("slots", "camera", "intrinsic", "extrinsic")}
        if view == PORTRAIT:  # turned by a quarter around its own axis
            turn = torch.tensor([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
            rotation = one["camera"][..., :9].unflatten(-1, (3, 3)) @ turn.T
            one["camera"] = torch.cat([rotation.flatten(-2), one["camera"][..., 9:]], dim=-1)
            one["extrinsic"] = turn @ one["extrinsic"]
        descriptions.append(replace(whole, **one))
        extrinsic.append(compose_extrinsics(one["extrinsic"][0, 0], WORLD))
        intrinsics.append(one["intrinsic"][0, 0])
    names = [f"DSC_{286 + 2 * view:04d}.JPG" for view in range(VIEWS)]
    return Truth(names, camera_of, torch.stack(extrinsic), intrinsics, descriptions)


def write_scene(folder: Path) -> Truth:
    """The scene's folder as all archives together leave it."""
    truth, clouds = describe(), []
    for part in ("images/dslr_images_undistorted", "images/dslr_images", "ground_truth_depth/dslr_images", MASKS):
        (folder / part).mkdir(parents=True)
    random = np.random.default_rng(0)
    for view, name in enumerate(truth.names):
        batch = render_description(truth.descriptions[view], supersample=1)
        depth = batch.depth[0, 0] * batch.metres_per_unit[0]
        pixels = (batch.images[0, 0].permute(1, 2, 0) * 255).round().byte().numpy()
        for place in ("dslr_images_undistorted", "dslr_images"):  # what the distorted ones show, nobody reads
            Image.fromarray(pixels).save(folder / "images" / place / name, quality=95)
        clouds.append(unproject_depth(depth, truth.extrinsic[view], truth.intrinsics[view]).reshape(-1, 3))
        camera = distorted_camera(truth, view)
        height, width = camera.size
        grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 2) + 0.5
        rays = torch.from_numpy(pixels_to_rays(camera, grid)).float()
        through = rays * truth.intrinsics[view][[0, 1], [0, 1]] + truth.intrinsics[view][:2, 2]
        values = truth.depth_at(view, through).numpy().astype("<f4")
        values[random.random(len(values)) > 0.1] = np.inf
        if view == MASKED:
            mask = np.zeros((height, width), np.uint8)
            mask[:, :40], mask[:, 40:60] = 2, 1
            values[mask.ravel() == 2] *= 1.5
            Image.fromarray(mask).save(folder / MASKS / name.replace(".JPG", ".png"))
        values.tofile(folder / "ground_truth_depth" / "dslr_images" / name)
    _write_calibration(folder / "dslr_calibration_undistorted", truth, "dslr_images_undistorted")
    _write_calibration(folder / "dslr_calibration_jpg", truth, "dslr_images")
    _write_scans(folder / "dslr_scan_eval", torch.cat(clouds).numpy())
    return truth


def distorted_camera(truth: Truth, view: int) -> Camera:
    number, intrinsic = truth.cameras[view], truth.intrinsics[view]
    height, width = DISTORTED[number]
    focal = [0.95 * intrinsic[0, 0].item(), 0.96 * intrinsic[1, 1].item(), width / 2 - 0.7, height / 2 + 0.4]
    return Camera("THIN_PRISM_FISHEYE", (height, width), np.array([*focal, *BEND]))


def _write_calibration(folder: Path, truth: Truth, images: str) -> None:
    folder.mkdir()
    lines = ["# Camera list with one line of data per camera:", "#   CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]"]
    for number in (3, 0):
        view = truth.cameras.index(number)
        if images == "dslr_images":
            camera = distorted_camera(truth, view)
            model, (height, width), values = camera.model, camera.size, camera.parameters.tolist()
        else:
            k, (height, width) = truth.intrinsics[view], SIZES[number]
            model, values = "PINHOLE", [k[0, 0], k[1, 1], k[0, 2] + 0.5, k[1, 2] + 0.5]
        lines.append(f"{number} {model} {width} {height} {' '.join(repr(float(value)) for value in values)}")
    (folder / "cameras.txt").write_text("\n".join(lines) + "\n")
    lines = ["#   IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME", "#   POINTS2D[] as (X, Y, POINT3D_ID)"]
    for view in (2, 0, 1, 5, 4, 3):  # in no order
        x, y, z, w = rotation_to_quaternion(truth.extrinsic[view, :, :3].double()).tolist()
        pose = [w, x, y, z, *truth.extrinsic[view, :, 3].tolist()]
        name = f"{images}/{truth.names[view]}"
        lines += [f"{view + 7} {' '.join(map(repr, pose))} {truth.cameras[view]} {name}", "1.5 2.5 -1"]
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    (folder / "points3D.txt").write_text("# nothing\n")


def _write_scans(folder: Path, points: np.ndarray) -> None:
    folder.mkdir()
    meshes = []
    for number, part in enumerate((points[::2], points[1::2]), start=1):
        angle = 0.7 * number
        world_from_scan = np.eye(4)
        world_from_scan[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        world_from_scan[:3, 3] = [number, -2.0, 0.25]
        local = (part - world_from_scan[:3, 3]) @ world_from_scan[:3, :3]
        vertex = np.zeros(len(local), dtype=[("xyz", "<f4", 3), ("rgb", "u1", 3)])
        vertex["xyz"] = local
        properties = "".join(f"property float {axis}\n" for axis in "xyz")
        properties += "".join(f"property uchar {color}\n" for color in ("red", "green", "blue"))
        header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(local)}\n{properties}end_header\n"
        (folder / f"scan{number}.ply").write_bytes(header.encode() + vertex.tobytes())
        rows = "\n".join(" ".join(f"{value:.12g}" for value in row) for row in world_from_scan)
        meshes.append(
            f'<MLMesh label="scan{number}" filename="scan{number}.ply"><MLMatrix44>\n{rows}\n</MLMatrix44></MLMesh>'
        )
    text = f"<!DOCTYPE MeshLabDocument>\n<MeshLabProject><MeshGroup>{''.join(meshes)}</MeshGroup></MeshLabProject>\n"
    (folder / "scan_alignment.mlp").write_text(text)


def write_archives(scene: Path, folder: Path) -> None:
    """The archives of a scene's folder, as ETH3D has them."""
    folder.mkdir(exist_ok=True)
    kinds = {
        "dslr_undistorted": ("images/dslr_images_undistorted", "dslr_calibration_undistorted"),
        "dslr_jpg": ("images/dslr_images", "dslr_calibration_jpg"),
        "dslr_depth": ("ground_truth_depth",),
        "dslr_occlusion": ("masks_for_images",),
        "dslr_scan_eval": ("dslr_scan_eval",),
    }
    for kind, parts in kinds.items():
        with py7zr.SevenZipFile(
            folder / f"{scene.name}_{kind}.7z", "w", filters=[{"id": py7zr.FILTER_LZMA2, "preset": 1}]
        ) as file:
            for part in parts:
                file.writeall(scene / part, f"{scene.name}/{part}")


def centers(truth: Truth) -> Tensor:
    return camera_center(truth.extrinsic)
