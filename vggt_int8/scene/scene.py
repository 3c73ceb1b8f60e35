"""One reconstructed scene, as everything after the network reads it: exports, viewer, evaluation, windows, batches.

A scene is in memory, or on disk beside its results (`vggt_int8.scene.saved`). In the latter case its maps are
memory-mapped files, of which only accessed frames take memory, so readers that go frame by frame need memory for a few
frames only.
"""

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vggt_int8.images import ImageTransform, portable_stem
from vggt_int8.scene.unproject import unproject


@dataclass(frozen=True)
class Tracks:
    """N points of the first image, followed through all images."""

    points: Tensor  # [S, N, 2] fp32 (x, y): pixels of the model's images, first pixel centre at 0
    visibility: Tensor  # [S, N] fp32 in [0, 1]
    confidence: Tensor  # [S, N] fp32 in [0, 1]


@dataclass(frozen=True)
class Scene:
    """S images of one scene, in input order. Parts of heads that were disabled are None.

    Conventions are those of `vggt_int8.geometry`: extrinsics are camera from world in OpenCV axes, the world is the
    first image's camera, lengths have no unit. Maps and intrinsics belong to the model's images, H x W pixels, the
    first of which is centered on (0, 0); `transforms` map to the pixels of the original images.
    """

    names: list[str]  # as they were given: paths of files, or names of frames
    transforms: list[ImageTransform]
    colors: Tensor  # [S, H, W, 3] uint8, sRGB
    extrinsic: Tensor | None  # [S, 3, 4]
    intrinsic: Tensor | None  # [S, 3, 3]
    depth: Tensor | None  # [S, H, W] along the camera's z axis
    depth_conf: Tensor | None  # [S, H, W], >= 1
    world_points: Tensor | None = None  # [S, H, W, 3] of the point head
    world_points_conf: Tensor | None = None  # [S, H, W], >= 1
    tracks: Tracks | None = None
    files: list[Path | None] = field(default_factory=list)  # absolute; None for a frame without a file of its own
    pages: tuple[mmap.mmap, ...] = field(default=(), repr=False)  # files that maps lie in

    def __post_init__(self) -> None:
        count = len(self.colors)
        if not self.files:
            object.__setattr__(self, "files", [None] * count)
        if not count == len(self.transforms) == len(self.names) == len(self.files):
            raise ValueError(
                f"{count} images, {len(self.transforms)} transforms, {len(self.names)} names and {len(self.files)} "
                "files differ"
            )

    @classmethod
    def from_prediction(
        cls,
        pred: Mapping[str, Tensor],
        transforms: Sequence[ImageTransform],
        names: Sequence[str],
        files: Sequence[Path | None] | None = None,
    ) -> "Scene":
        """pred: a `VGGTOutput` (or a dict with its keys) of one scene, B = 1, with `track`, `vis` and `conf` if there
        are any.

        Everything is moved to the CPU, in fp32.
        """
        num_scenes = len(pred["images"])
        if num_scenes != 1:
            raise ValueError(f"the prediction holds {num_scenes} scenes; write them one by one (B = 1)")

        def part(key: str) -> Tensor | None:
            value = pred.get(key)
            return None if value is None else value[0].detach().float().cpu()

        depth, points, visibility, confidence = (part(key) for key in ("depth", "track", "vis", "conf"))
        tracks = None
        if points is not None and visibility is not None and confidence is not None:
            tracks = Tracks(points, visibility, confidence)
        colors = (pred["images"][0].detach() * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        return cls(
            names=list(names),
            transforms=list(transforms),
            colors=colors.cpu().contiguous(),
            extrinsic=part("extrinsic"),
            intrinsic=part("intrinsic"),
            depth=None if depth is None else depth.squeeze(-1),
            depth_conf=part("depth_conf"),
            world_points=part("world_points"),
            world_points_conf=part("world_points_conf"),
            tracks=tracks,
            files=list(files or []),
        )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the model's images."""
        return self.colors.shape[1], self.colors.shape[2]

    def release_pages(self) -> None:
        """Free the memory that memory-mapped maps have taken; they are read again when accessed.

        In-place changes to them are lost. Has no effect if the system does not support it.
        """
        advice: int | None = getattr(mmap, "MADV_DONTNEED", None)
        if advice is not None:
            for pages in self.pages:
                pages.madvise(advice)

    def content(self, index: int) -> Tensor:
        """bool [H, W]: False on the padding around an image and where it is transparent."""
        return self.transforms[index].content_mask()

    def file_stem(self, index: int) -> str:
        """`0003_IMG_2041`: unique and in input order, even if two folders contain the same file name."""
        return f"{index:04d}_{portable_stem(self.names[index])}"

    def points_from_depth(self, index: int) -> Tensor | None:
        """World points [H, W, 3] of one image from depth and cameras; None without either."""
        if self.depth is None or self.extrinsic is None or self.intrinsic is None:
            return None
        depth, extrinsic, intrinsic = (part[index].numpy() for part in (self.depth, self.extrinsic, self.intrinsic))
        return torch.from_numpy(unproject(depth, extrinsic, intrinsic))
