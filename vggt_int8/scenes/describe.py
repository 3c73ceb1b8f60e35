"""Draws all parameters of a batch of scenes on the CPU: the part of rendering that needs no pixels.

Drawing on the CPU makes all devices render the same scene. It is cheap and does not use the GPU, so a data loader's
workers can do it ahead of time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from vggt_int8.geometry import compose_extrinsics, invert_extrinsic
from vggt_int8.plain_data import check_integer, is_integer
from vggt_int8.scenes.layout import clear_camera_space, draw_layout
from vggt_int8.scenes.paths import draw_cameras
from vggt_int8.scenes.raycast import rays_in_unit_space
from vggt_int8.scenes.seeds import Uniforms
from vggt_int8.scenes.surfaces import draw_lights, draw_surfaces

LAYOUT_STREAM, PATH_STREAM, SURFACE_STREAM, LIGHT_STREAM = range(4)
ASPECT_STREAM = 5  # `render` has 4


@dataclass
class SceneDescription:
    """The parameters of B scenes of S views: small tensors, drawn on the CPU, in meters and the scene frame."""

    size: tuple[int, int]  # (H, W) of every view, pixels
    seeds: Tensor  # [B] int64
    slots: Tensor  # [B, S, K, 12] from `rays_in_unit_space`
    placement: Tensor  # [B, K, 12] normal map 3x3 (scene from unit), half extents
    surfaces: Tensor  # [B, K * FACES, WIDTH]
    lights: Tensor  # [B, LIGHT_WIDTH]
    camera: Tensor  # [B, S, 12] rotation scene-from-camera 3x3, centre
    intrinsic: Tensor  # [B, S, 3, 3] pixels
    extrinsic: Tensor  # [B, S, 3, 4] camera from world; the first is the identity

    def pin_memory(self) -> "SceneDescription":
        """A copy in page-locked memory, which a GPU can fetch while it computes; data loaders call this."""
        return self._map(Tensor.pin_memory)

    def to(self, device: torch.device | str) -> "SceneDescription":
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def _map(self, change: Callable[[Tensor], Tensor]) -> "SceneDescription":
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "size"}
        return SceneDescription(self.size, **{name: change(tensor) for name, tensor in tensors.items()})


@torch.no_grad()
def describe_scenes(
    seeds: Sequence[int] | Tensor,
    frames: int,
    size: tuple[int, int],
    pixel_aspect: tuple[float, float] = (1.0, 1.0),
) -> SceneDescription:
    """The first half of `render_scenes`, always on the CPU, so that a data loader's workers can run it.

    pixel_aspect: range of fx / fy of a scene's views. It is 1 for square pixels. A photograph whose height is rounded
        to whole patches has other values: 112 x 84 in 112 x 80 pixels has 84 / 80.
    """
    if not isinstance(seeds, Tensor):
        if bad := [seed for seed in seeds if not is_integer(seed) or not -(2**63) <= seed < 2**63]:
            raise ValueError(f"seeds must be integers of 64 bits, got {bad[0]!r}")
    elif seeds.is_floating_point() or seeds.dtype == torch.bool:
        raise ValueError(f"seeds must be integers of 64 bits, got {seeds.dtype}")
    seeds = torch.as_tensor(seeds, dtype=torch.int64).cpu()
    if seeds.dim() != 1 or len(seeds) == 0:
        raise ValueError(f"seeds must be a list of at least one integer, got shape {tuple(seeds.shape)}")
    for name, number in (("frames", frames), ("height", size[0]), ("width", size[1])):
        check_integer(name, number)
    if frames < 1 or min(size) < 1:
        raise ValueError(f"a scene needs views and pixels, got frames={frames} of size {tuple(size)}")
    if not 0 < pixel_aspect[0] <= pixel_aspect[1] < float("inf"):
        raise ValueError(f"pixel_aspect must be two positive numbers, the smaller first, got {tuple(pixel_aspect)}")
    layout = draw_layout(Uniforms(seeds, LAYOUT_STREAM))
    cameras = draw_cameras(Uniforms(seeds, PATH_STREAM), layout, frames)
    clear_camera_space(layout, cameras.whole_path)
    p = layout.primitives
    surfaces = draw_surfaces(Uniforms(seeds, SURFACE_STREAM), p.half)
    lights = draw_lights(Uniforms(seeds, LIGHT_STREAM), layout.room_size)
    # A normal transforms with the inverse transpose: rotation / half.
    placement = torch.cat([(p.rotation / p.half[:, :, None]).flatten(2), p.half], dim=-1)
    scene_from_camera = cameras.rotation.mT
    camera = torch.cat([scene_from_camera.flatten(2), cameras.center], dim=-1)
    focal = cameras.focal * max(size)
    low, high = pixel_aspect
    intrinsic = torch.zeros(*focal.shape, 3, 3)
    intrinsic[..., 0, 0] = focal
    intrinsic[..., 1, 1] = focal / Uniforms(seeds, ASPECT_STREAM)(1, low=low, high=high)
    intrinsic[..., 0, 2], intrinsic[..., 1, 2], intrinsic[..., 2, 2] = size[1] / 2, size[0] / 2, 1.0

    camera_from_scene = invert_extrinsic(torch.cat([scene_from_camera, cameras.center[..., None]], dim=-1).double())
    scene_from_world = invert_extrinsic(camera_from_scene[:, :1]).expand_as(camera_from_scene)
    extrinsic = compose_extrinsics(camera_from_scene, scene_from_world).float()
    extrinsic[:, 0] = torch.eye(3, 4)
    return SceneDescription(
        size=(int(size[0]), int(size[1])),
        seeds=seeds,
        slots=rays_in_unit_space(p, cameras.center),
        placement=placement,
        surfaces=surfaces,
        lights=lights,
        camera=camera,
        intrinsic=intrinsic,
        extrinsic=extrinsic,
    )
