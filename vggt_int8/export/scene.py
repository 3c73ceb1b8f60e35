"""One reconstructed scene as the writers of this package read it: checked, on the CPU, in fp32."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vggt_int8.geometry import unproject_depth
from vggt_int8.images import ImageTransform, portable_stem


@dataclass(frozen=True)
class Scene:
    """S images of one scene, in input order. A part whose head was off is None."""

    names: list[str]
    transforms: list[ImageTransform]
    colors: Tensor  # [S, H, W, 3] uint8
    content: Tensor  # [S, H, W] bool: False on the padding around an image and where it is transparent
    transparent: Tensor  # [S, H, W] bool: True where an image is transparent; its padding is not
    extrinsic: Tensor | None  # [S, 3, 4] camera from world
    intrinsic: Tensor | None  # [S, 3, 3] pixels at model resolution
    depth: Tensor | None  # [S, H, W]
    depth_conf: Tensor | None  # [S, H, W]
    world_points: Tensor | None  # [S, H, W, 3]
    world_points_conf: Tensor | None  # [S, H, W]

    @classmethod
    def from_prediction(
        cls, pred: Mapping[str, Tensor], transforms: Sequence[ImageTransform], names: Sequence[str]
    ) -> "Scene":
        """pred: a `VGGTOutput` (or a dict with its keys) of one scene, B = 1."""
        num_scenes, num_images = pred["images"].shape[:2]
        if num_scenes != 1:
            raise ValueError(f"the prediction holds {num_scenes} scenes; write them one by one (B = 1)")
        if not num_images == len(transforms) == len(names):
            raise ValueError(f"{num_images} images, {len(transforms)} transforms and {len(names)} names differ")

        def part(key: str) -> Tensor | None:
            value = pred.get(key)
            return None if value is None else value[0].detach().float().cpu()

        images, depth = part("images"), part("depth")
        assert images is not None
        return cls(
            names=list(names),
            transforms=list(transforms),
            colors=(images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8),
            content=torch.stack([transform.content_mask() for transform in transforms]),
            transparent=torch.stack([transform.transparent_mask() for transform in transforms]),
            extrinsic=part("extrinsic"),
            intrinsic=part("intrinsic"),
            depth=None if depth is None else depth.squeeze(-1),
            depth_conf=part("depth_conf"),
            world_points=part("world_points"),
            world_points_conf=part("world_points_conf"),
        )

    def file_stem(self, index: int) -> str:
        """`0003_IMG_2041`: unique and in input order, also when two folders hold the same file name."""
        return f"{index:04d}_{portable_stem(self.names[index])}"

    def points_from_depth(self) -> Tensor | None:
        """World points [S, H, W, 3] from depth and cameras; None without either."""
        if self.depth is None or self.extrinsic is None or self.intrinsic is None:
            return None
        return unproject_depth(self.depth, self.extrinsic, self.intrinsic)
