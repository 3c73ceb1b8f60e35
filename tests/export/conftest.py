"""Exact scenes for the export tests: two cameras before a slanted wall, and a rendered one as photographs of it."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vggt_int8.geometry import pose_encoding_to_camera, unproject_depth
from vggt_int8.images import ImageTransform
from vggt_int8.scene.scene import Scene
from vggt_int8.scenes import load_scene

HEIGHT, WIDTH = 28, 42
ENLARGED = 4  # a photograph of the rendered scene, times the network's size
NAMES = ["a/1.jpg", "b/1.jpg"]
# The second image is padded left and right: 26 of its 42 columns are content.
TRANSFORMS = [
    ImageTransform((56, 84), (HEIGHT, WIDTH), (0.5, 0.5), (0, 0)),
    ImageTransform((280, 260), (HEIGHT, WIDTH), (0.1, 0.1), (8, 0)),
]


@pytest.fixture
def pred() -> dict[str, Tensor]:
    """The keys of a `VGGTOutput` for B = 1, S = 2; world_points lie one unit right of the depth's points."""
    generator = torch.Generator().manual_seed(0)
    pose_enc = torch.tensor([[[0, 0, 0, 0, 0, 0, 1, 0.8, 1.0], [0.3, -0.1, 0.2, 0.05, 0.1, 0, 1, 0.9, 1.1]]])
    extrinsic, intrinsic = pose_encoding_to_camera(pose_enc, (HEIGHT, WIDTH))
    columns = torch.arange(WIDTH).expand(1, 2, HEIGHT, WIDTH)
    depth = 1 + columns / WIDTH + torch.tensor([0.0, 0.5]).view(1, 2, 1, 1)
    confidence = 1 + torch.rand(1, 2, HEIGHT, WIDTH, generator=generator).exp()
    return {
        "pose_enc": pose_enc,
        "extrinsic": extrinsic,
        "intrinsic": intrinsic,
        "depth": depth[..., None],
        "depth_conf": confidence,
        "world_points": unproject_depth(depth, extrinsic, intrinsic) + torch.tensor([1.0, 0, 0]),
        "world_points_conf": confidence + 1,
        "images": torch.rand(1, 2, 3, HEIGHT, WIDTH, generator=generator),
    }


@pytest.fixture
def transforms() -> list[ImageTransform]:
    return list(TRANSFORMS)


@pytest.fixture
def names() -> list[str]:
    return list(NAMES)


@pytest.fixture
def scene(pred: dict[str, Tensor]) -> Scene:
    return Scene.from_prediction(pred, TRANSFORMS, NAMES)


@pytest.fixture(scope="session")
def exact() -> Scene:
    """A rendered scene, whose depth and cameras are exact, as photographs of four times its size."""
    stored = load_scene("table")
    count, (height, width) = len(stored.images), stored.images.shape[2:]
    whole = ImageTransform((height * ENLARGED, width * ENLARGED), (height, width), (1 / ENLARGED,) * 2, (0, 0))
    return Scene.from_prediction(
        {
            "images": stored.images[None],
            "depth": stored.depth[None, ..., None],
            "depth_conf": torch.ones(1, count, height, width),
            "extrinsic": stored.extrinsic[None],
            "intrinsic": stored.intrinsic[None],
        },
        [whole] * count,
        [f"photo {index}.jpg" for index in range(count)],
        [Path(f"/photos/walk {index % 2}/photo {index}.jpg") for index in range(count)],
    )


def first_images(scene: Scene, count: int) -> Scene:
    """The scene of its first images alone; tracks, which go through all, must be off."""
    parts = {field.name: getattr(scene, field.name) for field in fields(Scene)}
    return replace(scene, **{name: part[:count] for name, part in parts.items() if part is not None})
