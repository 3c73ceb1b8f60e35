"""Renders batches of scenes: images, depth, world points, cameras, tracks, all from one description.

Conventions are those of `vggt_int8.geometry`: OpenCV axes, camera-from-world extrinsics with the first view as the
world, intrinsics in pixels with the principal point at (W / 2, H / 2), the pixel of column u and row v centered on (u,
v). Depth is evaluated at pixel centers; color is averaged over `supersample` x `supersample` rays per pixel.

Scale: as in the VGGT paper, every scene is divided by the mean distance of its world points (all valid pixels of all
views) from the origin, which is the first camera. `metres_per_unit` keeps that divisor.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import torch
from torch import Tensor

from vggt_int8.geometry import project_points, unproject_depth
from vggt_int8.plain_data import check_integer
from vggt_int8.scenes.describe import SceneDescription, describe_scenes
from vggt_int8.scenes.seeds import Uniforms, scene_seeds
from vggt_int8.scenes.shading import trace_color, trace_depth

GENERATOR_VERSION = 1  # to be raised with every change after which a seed gives another scene or picture

TRACK_STREAM = 4  # of random numbers; `describe` uses 0 ... 3

# Rays traced at once: bounds the memory to about a kilobyte a ray in eager mode.
# What is compiled is specialised to the size of a pass: whole strips of this height make it the same for frames of
# several heights.
COMPILED_ROWS = 8
RAYS_PER_PASS = {"cpu": 1 << 17, "cuda": 1 << 22}


@dataclass
class SceneBatch:
    """B scenes of S views of H x W pixels. All floats are fp32, lengths in normalized units."""

    images: Tensor  # [B, S, 3, H, W] in [0, 1]
    depth: Tensor  # [B, S, H, W] along the camera's z axis
    world_points: Tensor  # [B, S, H, W, 3] in the first camera's frame
    extrinsic: Tensor  # [B, S, 3, 4] camera from world; the first is the identity
    intrinsic: Tensor  # [B, S, 3, 3] pixels
    valid: Tensor  # [B, S, H, W] bool: depth is known (finite and positive)
    metres_per_unit: Tensor  # [B]
    query_points: Tensor | None = None  # [B, N, 2] pixels (x, y) in the first view
    tracks: Tensor | None = None  # [B, S, N, 2] the same points in every view
    visibility: Tensor | None = None  # [B, S, N] bool: inside the image and not occluded

    def to(self, device: torch.device | str) -> "SceneBatch":
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: t.to(device) for name, t in tensors.items() if t is not None})


@torch.no_grad()
def render_scenes(
    seeds: Sequence[int] | Tensor,
    frames: int,
    size: tuple[int, int] = (112, 112),
    *,
    device: torch.device | str = "cpu",
    supersample: int = 2,
    tracks: int = 0,
    compiled: bool = False,
    pixel_aspect: tuple[float, float] = (1.0, 1.0),
) -> SceneBatch:
    """Render one scene per seed (see `seeds.scene_seeds`), `frames` views each, of size (H, W).

    tracks: number of points of the first view that are followed through all views.
    pixel_aspect: see `describe_scenes`; fx = fy by default.
    compiled: fuse the per-ray work with torch.compile, which pays off for many batches of one size on a GPU.

    The scene's parameters are drawn on the CPU, so all devices render the same scene. The same batch on the same device
    with the same number of threads is bit-identical.
    """
    description = describe_scenes(seeds, frames, size, pixel_aspect)
    return render_description(description.to(device), supersample=supersample, tracks=tracks, compiled=compiled)


def scene_batches(
    split: str,
    scenes: int,
    frames: int,
    size: tuple[int, int],
    *,
    frames_per_batch: int = 64,
    device: torch.device | str = "cpu",
    supersample: int = 2,
    pixel_aspect: tuple[float, float] = (1.0, 1.0),
) -> Iterator[SceneBatch]:
    """Scenes 0 ... scenes - 1 of a split, `frames` views each, rendered batch by batch on demand.

    frames_per_batch: the largest number of views in a batch, over all its scenes; each batch has at least one scene.
    """
    for name, number in (("scenes", scenes), ("frames", frames), ("frames_per_batch", frames_per_batch)):
        check_integer(name, number)
    if frames < 1:
        raise ValueError(f"a scene needs views, got frames={frames}")
    per_batch = max(1, frames_per_batch // frames)
    for first in range(0, scenes, per_batch):
        seeds = scene_seeds(split, range(first, min(first + per_batch, scenes)))
        yield render_scenes(seeds, frames, size, device=device, supersample=supersample, pixel_aspect=pixel_aspect)


@torch.no_grad()
def render_description(
    description: SceneDescription,
    *,
    supersample: int = 2,
    tracks: int = 0,
    compiled: bool = False,
) -> SceneBatch:
    """The second half of `render_scenes`, on the description's device."""
    check_integer("supersample", supersample)
    check_integer("tracks", tracks)
    if supersample < 1 or tracks < 0:
        raise ValueError(f"supersample must be at least 1 and tracks at least 0, got {supersample} and {tracks}")
    extrinsic, intrinsic = description.extrinsic, description.intrinsic
    depth, images = _render_frames(description, supersample, compiled)
    points = unproject_depth(depth, extrinsic, intrinsic)
    valid = depth.isfinite() & (depth > 0)
    distance = torch.where(valid, points.norm(dim=-1), 0.0)
    scale = distance.sum((1, 2, 3)) / valid.sum((1, 2, 3))  # [B] metres
    translation = extrinsic[..., 3:] / scale[:, None, None, None]
    extrinsic = torch.cat([extrinsic[..., :3], translation], dim=-1)
    depth = depth / scale[:, None, None, None]
    batch = SceneBatch(
        images=images,
        depth=depth,
        world_points=unproject_depth(depth, extrinsic, intrinsic),
        extrinsic=extrinsic,
        intrinsic=intrinsic,
        valid=valid,
        metres_per_unit=scale,
    )
    if tracks:
        _add_tracks(batch, description, tracks)
    return batch


def _render_frames(scene: SceneDescription, supersample: int, compiled: bool) -> tuple[Tensor, Tensor]:
    """Depth [B, S, H, W] in metres and images [B, S, 3, H, W], in passes of bounded memory."""
    batch, views = scene.camera.shape[:2]
    device = scene.camera.device
    height, width = scene.size
    rows = torch.arange(height, device=device, dtype=torch.float32)
    columns = torch.arange(width, device=device, dtype=torch.float32)
    sub = (torch.arange(supersample, device=device, dtype=torch.float32) + 0.5) / supersample - 0.5
    v, u, dv, du = torch.meshgrid(rows, columns, sub, sub, indexing="ij")
    pixels = torch.stack([u.flatten(2), v.flatten(2)])  # [2, H, W, supersample^2]
    offsets = torch.stack([du.flatten(2), dv.flatten(2)])
    per_view = [scene.slots.flatten(0, 1), scene.camera.flatten(0, 1), scene.intrinsic.flatten(0, 1)]
    per_scene = [scene.placement, scene.surfaces, scene.lights]
    depth_of, color_of = _kernels(compiled)
    budget = RAYS_PER_PASS["cuda" if device.type == "cuda" else "cpu"]
    rows_per_pass = max(1, min(height, budget // (width * supersample**2)))
    if compiled and height % COMPILED_ROWS == 0:
        rows_per_pass = min(rows_per_pass, COMPILED_ROWS)
    most_frames = max(1, budget // (rows_per_pass * width * supersample**2))
    frames_per_pass = _equal_passes(batch * views, most_frames)

    depth = torch.empty(batch * views, height, width, device=device)
    images = torch.empty(batch * views, 3, height, width, device=device)
    for frame in range(0, batch * views, frames_per_pass):
        part = slice(frame, min(frame + frames_per_pass, batch * views))
        scene_of = torch.arange(part.start, part.stop, device=device) // views
        slots, camera, intrinsic = (table[part] for table in per_view)
        placement, surfaces, lights = (table[scene_of] for table in per_scene)
        for row in range(0, height, rows_per_pass):
            strip = slice(row, min(row + rows_per_pass, height))
            # Contiguous: compiled kernels are specialised to strides, too, and a view has those of the whole frame.
            centers = pixels[:, strip, :, 0].flatten(1).contiguous()
            depth[part, strip] = depth_of(slots, camera, intrinsic, centers).unflatten(1, (-1, width))
            spread = (pixels + offsets)[:, strip].flatten(1).contiguous()
            color = color_of(slots, camera, intrinsic, placement, surfaces, lights, spread)
            images[part, :, strip] = color.unflatten(2, (-1, width, supersample**2)).mean(-1)
    return depth.unflatten(0, (batch, views)), images.unflatten(0, (batch, views))


def _equal_passes(frames: int, at_most: int) -> int:
    """Frames per pass: equal passes where at most twice as many as needed make them so, else nearly equal ones.

    Compiled kernels are specialised to the size, so a smaller last pass would compile everything again.
    """
    fewest = math.ceil(frames / at_most)
    passes = next((count for count in range(fewest, 2 * fewest + 1) if frames % count == 0), fewest)
    return math.ceil(frames / passes)


@lru_cache(maxsize=2)
def _kernels(compiled: bool) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    if not compiled:
        return trace_depth, trace_color
    return torch.compile(trace_depth, dynamic=False), torch.compile(trace_color, dynamic=False)


def _add_tracks(batch: SceneBatch, scene: SceneDescription, count: int) -> None:
    """Follow `count` random pixels of the first view, in place.

    Visibility is decided by a ray through the exact projected position, not by looking a depth map up: a point is
    visible where it lies inside the image, in front of the camera, and where that ray ends on it.
    """
    height, width = batch.depth.shape[-2:]
    spot = Uniforms(scene.seeds, TRACK_STREAM)(count, 2)
    query = torch.floor(spot * torch.tensor([width, height])).to(batch.depth.device)
    column, row = query.long().unbind(-1)
    scenes = torch.arange(len(query), device=query.device)[:, None]
    points = batch.world_points[scenes, 0, row, column]  # [B, N, 3]
    uv, depth = project_points(points[:, None], batch.extrinsic, batch.intrinsic)  # [B, S, N, 2], [B, S, N]
    pixels = uv.flatten(0, 1).movedim(-1, 0)
    reached = trace_depth(scene.slots.flatten(0, 1), scene.camera.flatten(0, 1), scene.intrinsic.flatten(0, 1), pixels)
    reached = reached.view_as(depth) / batch.metres_per_unit[:, None, None]
    inside = (uv > -0.5).all(-1) & (uv[..., 0] < width - 0.5) & (uv[..., 1] < height - 0.5)
    batch.query_points, batch.tracks = query, uv
    batch.visibility = inside & (depth > 0) & ((reached - depth).abs() < 1e-3 * depth)
