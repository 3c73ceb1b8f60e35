"""Parts of a scene with cameras and depth: a subset of its frames, in another world, or as input for alignment."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vggt_int8.scene import Scene
from vggt_int8.similarity import Similarity
from vggt_int8.stream.align import Views


def views_of(scene: Scene) -> Views:
    content = torch.stack([scene.content(index) for index in range(len(scene))])
    cameras = (_there(scene.extrinsic), _there(scene.intrinsic))
    return Views(*cameras, _there(scene.depth), _there(scene.depth_conf), content)


def part_of(scene: Scene, frames: slice) -> Scene:
    """Some frames of a scene; its tensors are views."""
    names = ("colors", "extrinsic", "intrinsic", "depth", "depth_conf")
    parts: dict[str, Any] = {name: _there(getattr(scene, name))[frames] for name in names}
    return Scene(names=scene.names[frames], transforms=scene.transforms[frames], files=scene.files[frames], **parts)


def placed_onto(scene: Scene, world: Similarity) -> Scene:
    """The scene transformed by the similarity `world`."""
    extrinsic = world.apply_to_extrinsic(_there(scene.extrinsic)).float()
    return replace(scene, extrinsic=extrinsic, depth=_there(scene.depth) * world.scale)


def _there(part: Tensor | None) -> Tensor:
    assert part is not None, "a stream runs the camera and depth heads"
    return part
