"""A model that knows the truth: it finds each image among those of a rendered scene and answers with true cameras and
depth, in the first image's world, at a size of its own for every call. What a stream makes of it must be the truth.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vggt_int8.geometry import compose_extrinsics, invert_extrinsic, quaternion_to_rotation
from vggt_int8.scenes import SceneBatch


class _Output(dict[str, Any]):
    @property
    def descriptor(self) -> Tensor:
        found: Tensor = self["descriptor"]
        return found


class Oracle:
    """bend: radians by which each frame of a call is turned about its camera's y axis, more and more: every window is
    bent alike, so that a path drifts. wrong: share of the pixels whose depth is nonsense. one_size: for all calls, so
    that an answer does not depend on those before it.
    """

    def __init__(self, batch: SceneBatch, *, bend: float = 0.0, wrong: float = 0.0, one_size: bool = False) -> None:
        self.images, self.extrinsic, self.intrinsic = batch.images[0], batch.extrinsic[0].double(), batch.intrinsic[0]
        self.depth, self.bend, self.wrong, self.one_size = batch.depth[0], bend, wrong, one_size
        self.config = SimpleNamespace(img_size=self.images.shape[-1], patch_size=14)
        self.device = torch.device("cpu")
        self.calls: list[list[int]] = []

    def __call__(self, images: Tensor, heads: Any, descriptors: bool = False, **_: Any) -> _Output:
        known = self.images.flatten(1)
        indices = [int((known - image.flatten()).abs().sum(1).argmin()) for image in images]
        self.calls.append(indices)
        size = 1.0 if self.one_size else 1 + 0.1 * (len(self.calls) % 5)
        first = invert_extrinsic(self.extrinsic[indices[0]]).expand(len(indices), 3, 4)
        extrinsic = compose_extrinsics(self.extrinsic[indices], first)
        angle = self.bend / 2 * torch.arange(len(indices), dtype=torch.float64)
        zero = torch.zeros_like(angle)
        turn = quaternion_to_rotation(torch.stack([zero, angle.sin(), zero, angle.cos()], dim=-1))
        extrinsic = compose_extrinsics(torch.cat([turn, turn.new_zeros(len(indices), 3, 1)], dim=-1), extrinsic)
        extrinsic[..., 3] *= size
        depth = self.depth[indices] * size
        if self.wrong:
            draw = torch.rand(depth.shape, generator=torch.Generator().manual_seed(len(self.calls)))
            depth = torch.where(draw < self.wrong, depth * (1 + draw / self.wrong), depth)
        found = _Output(
            images=images[None],
            extrinsic=extrinsic[None].float(),
            intrinsic=self.intrinsic[indices][None],
            depth=depth[None, ..., None],
            depth_conf=torch.full_like(depth, 2.0)[None],
        )
        if descriptors:
            found["descriptor"] = torch.nn.functional.adaptive_avg_pool2d(images, 6).flatten(1)[None]
        return found
