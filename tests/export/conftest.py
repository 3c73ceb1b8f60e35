"""A small exact scene for the export tests: two cameras before a slanted wall."""

import pytest
import torch
from torch import Tensor

from vggt_int8.geometry import pose_encoding_to_camera, unproject_depth
from vggt_int8.images import ImageTransform
from vggt_int8.scene.scene import Scene

HEIGHT, WIDTH = 28, 42
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
