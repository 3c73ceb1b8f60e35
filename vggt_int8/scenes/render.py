"""Renders batches of scenes: pictures, depth, world points, cameras, tracks, all from one description.

Conventions are those of `vggt_int8.geometry`: OpenCV axes, camera-from-world extrinsics with the first view as
the world, intrinsics in pixels with the principal point at (W / 2, H / 2), the pixel of column u and row v centred
on (u, v).
Depth is taken at pixel centres; colour is averaged over `supersample` x `supersample` rays of each pixel.

Scale: as in the VGGT paper, every scene is divided by the mean distance of its world points (all valid pixels of
all views) from the origin, which is the first camera. `metres_per_unit` keeps that divisor.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import torch
from torch import Tensor

from vggt_int8.geometry import compose_extrinsics, invert_extrinsic, project_points, unproject_depth
from vggt_int8.scenes.layout import clear_camera_space, draw_layout
from vggt_int8.scenes.paths import draw_cameras
from vggt_int8.scenes.raycast import (
    CYLINDER,
    FACES,
    SLOT_KINDS,
    SPHERE,
    Hits,
    Vector,
    cast_rays,
    rays_in_unit_space,
    unit_hit,
)
from vggt_int8.scenes.seeds import Uniforms
from vggt_int8.scenes.surfaces import NUM_LIGHTS, draw_lights, draw_surfaces
from vggt_int8.scenes.textures import gather_surface, surface_color

LAYOUT_STREAM, PATH_STREAM, SURFACE_STREAM, LIGHT_STREAM, TRACK_STREAM = range(5)

# Rays traced at once: bounds the memory to about a kilobyte a ray in eager mode.
RAYS_PER_PASS = {"cpu": 1 << 17, "cuda": 1 << 22}


@dataclass
class SceneBatch:
    """B scenes of S views of H x W pixels. All floats are fp32, lengths in normalised units."""

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


@dataclass
class _Frames:
    """What the renderer needs on its device, for B scenes of S views, in the metric scene frame."""

    slots: Tensor  # [B, S, K, 12] from `rays_in_unit_space`
    placement: Tensor  # [B, K, 12] normal map 3x3 (scene from unit), half extents
    surfaces: Tensor  # [B, K * FACES, WIDTH]
    lights: Tensor  # [B, LIGHT_WIDTH]
    camera: Tensor  # [B, S, 12] rotation scene-from-camera 3x3, centre
    intrinsic: Tensor  # [B, S, 3, 3]


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
) -> SceneBatch:
    """Render one scene per seed (see `seeds.scene_seeds`), `frames` views each, of size (H, W).

    The scene's parameters are drawn on the CPU, so all devices render the same scene; the same seeds on the same device
    give the same bits. `tracks` points of the first view are followed through all views. `compiled` fuses the
    per-ray work with torch.compile: worth its start-up time on a GPU, for many batches of one size.
    """
    seeds = torch.as_tensor(seeds, dtype=torch.int64)
    _check_request(seeds, frames, size, supersample, tracks)
    scene, extrinsic = _describe(seeds, frames, size, torch.device(device))
    depth, images = _render_frames(scene, size, supersample, compiled)
    extrinsic = extrinsic.to(device)
    points = unproject_depth(depth, extrinsic, scene.intrinsic)
    valid = depth.isfinite() & (depth > 0)
    distance = torch.where(valid, points.norm(dim=-1), 0.0)
    scale = distance.sum((1, 2, 3)) / valid.sum((1, 2, 3))  # [B] metres
    extrinsic = torch.cat([extrinsic[..., :3], extrinsic[..., 3:] / scale[:, None, None, None]], dim=-1)
    depth = depth / scale[:, None, None, None]
    batch = SceneBatch(
        images=images,
        depth=depth,
        world_points=unproject_depth(depth, extrinsic, scene.intrinsic),
        extrinsic=extrinsic,
        intrinsic=scene.intrinsic,
        valid=valid,
        metres_per_unit=scale,
    )
    if tracks:
        _add_tracks(batch, scene, seeds, tracks)
    return batch


def _check_request(seeds: Tensor, frames: int, size: tuple[int, int], supersample: int, tracks: int) -> None:
    if seeds.dim() != 1 or len(seeds) == 0:
        raise ValueError(f"seeds must be a list of at least one integer, got shape {tuple(seeds.shape)}")
    if frames < 1:
        raise ValueError(f"a scene needs at least one view, got frames={frames}")
    if min(size) < 1 or supersample < 1 or tracks < 0:
        raise ValueError(f"size {size} and supersample {supersample} must be positive, tracks {tracks} at least 0")


def _describe(seeds: Tensor, frames: int, size: tuple[int, int], device: torch.device) -> tuple[_Frames, Tensor]:
    """Draw every parameter on the CPU. Returns them on `device`, and the extrinsics [B, S, 3, 4] in metres."""
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
    intrinsic = torch.zeros(*focal.shape, 3, 3)
    intrinsic[..., 0, 0] = intrinsic[..., 1, 1] = focal
    intrinsic[..., 0, 2], intrinsic[..., 1, 2], intrinsic[..., 2, 2] = size[1] / 2, size[0] / 2, 1.0

    camera_from_scene = invert_extrinsic(torch.cat([scene_from_camera, cameras.center[..., None]], dim=-1).double())
    scene_from_world = invert_extrinsic(camera_from_scene[:, :1]).expand_as(camera_from_scene)
    extrinsic = compose_extrinsics(camera_from_scene, scene_from_world).float()
    extrinsic[:, 0] = torch.eye(3, 4)
    parts = (rays_in_unit_space(p, cameras.center), placement, surfaces, lights, camera, intrinsic)
    return _Frames(*(part.to(device) for part in parts)), extrinsic


def _render_frames(scene: _Frames, size: tuple[int, int], supersample: int, compiled: bool) -> tuple[Tensor, Tensor]:
    """Depth [B, S, H, W] in metres and images [B, S, 3, H, W], in passes of bounded memory."""
    batch, views = scene.camera.shape[:2]
    device = scene.camera.device
    height, width = size
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
    most_frames = max(1, budget // (rows_per_pass * width * supersample**2))
    # Passes of equal size: compiled kernels are specialised to it.
    frames_per_pass = math.ceil(batch * views / math.ceil(batch * views / most_frames))

    depth = torch.empty(batch * views, height, width, device=device)
    images = torch.empty(batch * views, 3, height, width, device=device)
    for frame in range(0, batch * views, frames_per_pass):
        part = slice(frame, min(frame + frames_per_pass, batch * views))
        scene_of = torch.arange(part.start, part.stop, device=device) // views
        slots, camera, intrinsic = (table[part] for table in per_view)
        placement, surfaces, lights = (table[scene_of] for table in per_scene)
        for row in range(0, height, rows_per_pass):
            strip = slice(row, min(row + rows_per_pass, height))
            centers = pixels[:, strip, :, 0].flatten(1)
            depth[part, strip] = depth_of(slots, camera, intrinsic, centers).unflatten(1, (-1, width))
            spread = (pixels + offsets)[:, strip].flatten(1)
            color = color_of(slots, camera, intrinsic, placement, surfaces, lights, spread)
            images[part, :, strip] = color.unflatten(2, (-1, width, supersample**2)).mean(-1)
    return depth.unflatten(0, (batch, views)), images.unflatten(0, (batch, views))


def _ray_directions(camera: Tensor, intrinsic: Tensor, pixels: Tensor) -> Vector:
    """camera [F, 12], intrinsic [F, 3, 3], pixels [2, R] or [2, F, R] -> scene directions 3 x [F, R], camera z = 1."""
    x = (pixels[0] - intrinsic[:, 0, 2, None]) / intrinsic[:, 0, 0, None]
    y = (pixels[1] - intrinsic[:, 1, 2, None]) / intrinsic[:, 1, 1, None]
    r = camera[:, :, None].unbind(1)  # 12 x [F, 1]
    return r[0] * x + r[1] * y + r[2], r[3] * x + r[4] * y + r[5], r[6] * x + r[7] * y + r[8]


def _trace_depth(slots: Tensor, camera: Tensor, intrinsic: Tensor, pixels: Tensor) -> Tensor:
    return cast_rays(slots, _ray_directions(camera, intrinsic, pixels)).depth


def _trace_color(
    slots: Tensor,
    camera: Tensor,
    intrinsic: Tensor,
    placement: Tensor,
    surfaces: Tensor,
    lights: Tensor,
    pixels: Tensor,
) -> Tensor:
    """[F, ...] tables, pixels [2, R] -> sRGB-like colours [F, 3, R] in [0, 1]."""
    direction = _ray_directions(camera, intrinsic, pixels)
    hits = cast_rays(slots, direction)
    unit = unit_hit(slots, direction, hits)
    face, point, normal = _surface_point(placement, hits, unit)
    footprint = hits.depth / intrinsic[:, 0, 0, None]
    albedo = surface_color(gather_surface(surfaces, hits.slot * FACES + face), point, footprint)
    position = tuple(camera[:, 9 + i, None] + hits.depth * direction[i] for i in range(3))
    # The room is seen from inside: turn its normals towards the camera.
    flip = torch.where(_dot(normal, direction) > 0, -1.0, 1.0)
    light = _illumination(lights, position, tuple(n * flip for n in normal))
    # A film-like curve: bright places flatten out instead of clipping.
    shaded = [(1.05 - 1.05 * torch.exp(-1.3 * a * e)).clamp(1e-4, 1) for a, e in zip(albedo, light, strict=True)]
    return torch.stack([s ** (1 / 1.8) for s in shaded], dim=1)


def _surface_point(placement: Tensor, hits: Hits, unit: Vector) -> tuple[Tensor, Vector, Vector]:
    """Face index, metric surface coordinates and scene normal (unit length) of each hit, 1 + 3 + 3 tensors [F, R]."""
    x, y, z = unit
    frames = torch.arange(placement.shape[0], device=placement.device)[:, None]
    p = [placement[..., i][frames, hits.slot] for i in range(12)]
    kind = torch.tensor(SLOT_KINDS, device=placement.device)[hits.slot]
    sphere, cylinder = kind == SPHERE, kind == CYLINDER
    ring = torch.sqrt(x * x + y * y)
    side = cylinder & (ring > z.abs())
    ax, ay, az = x.abs(), y.abs(), z.abs()
    axis = torch.where((ax >= ay) & (ax >= az), 0, torch.where(ay >= az, 1, 2))
    axis = torch.where(cylinder, torch.where(side, 0, 2), axis)
    along = torch.where(axis == 0, x, torch.where(axis == 1, y, z))
    face = torch.where(sphere | side, 0, 2 * axis + (along < 0))
    # A cylinder's side is unrolled: arc length, then height.
    arc = torch.atan2(y, x) * p[9]
    height = z * p[11]
    point = (torch.where(side, arc, x * p[9]), torch.where(side, height, y * p[10]), torch.where(side, 0.0, height))
    flat = ~(sphere | side)
    zero = torch.zeros_like(x)
    sign = torch.where(along < 0, -1.0, 1.0)
    nx = torch.where(flat, torch.where(axis == 0, sign, zero), x)
    ny = torch.where(flat, torch.where(axis == 1, sign, zero), y)
    nz = torch.where(flat, torch.where(axis == 2, sign, zero), torch.where(side, zero, z))
    n = tuple(p[i] * nx + p[i + 1] * ny + p[i + 2] * nz for i in (0, 3, 6))
    length = torch.rsqrt(_dot(n, n))
    return face, point, tuple(c * length for c in n)


def _illumination(lights: Tensor, position: Vector, normal: Vector) -> list[Tensor]:
    """Ambient light (a little more from above) plus Lambert's law for point lights, 3 x [F, R]. No shadows."""
    columns = lights[:, :, None].unbind(1)  # LIGHT_WIDTH x [F, 1]
    from_above = 0.85 + 0.15 * normal[2]
    light = [c * from_above for c in columns[:3]]
    for index in range(NUM_LIGHTS):
        place, power = columns[3 + 6 * index : 6 + 6 * index], columns[6 + 6 * index : 9 + 6 * index]
        to_light = tuple(a - b for a, b in zip(place, position, strict=True))
        squared = _dot(to_light, to_light)
        facing = _dot(normal, to_light) * torch.rsqrt(squared + 1e-6)
        strength = facing.clamp_min(0) * (3 / (2 + squared))
        light = [e + c * strength for e, c in zip(light, power, strict=True)]
    return light


def _dot(a: Vector, b: Vector) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@lru_cache(maxsize=2)
def _kernels(compiled: bool) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    if not compiled:
        return _trace_depth, _trace_color
    return torch.compile(_trace_depth, dynamic=False), torch.compile(_trace_color, dynamic=False)


def _add_tracks(batch: SceneBatch, scene: _Frames, seeds: Tensor, count: int) -> None:
    """Follow `count` random pixels of the first view, in place.

    Visibility is decided by a ray through the exact projected position, not by looking a depth map up: a point is
    visible where it lies inside the image, in front of the camera, and where that ray ends on it.
    """
    height, width = batch.depth.shape[-2:]
    spot = Uniforms(seeds, TRACK_STREAM)(count, 2)
    query = torch.floor(spot * torch.tensor([width, height])).to(batch.depth.device)
    column, row = query.long().unbind(-1)
    scenes = torch.arange(len(query), device=query.device)[:, None]
    points = batch.world_points[scenes, 0, row, column]  # [B, N, 3]
    uv, depth = project_points(points[:, None], batch.extrinsic, batch.intrinsic)  # [B, S, N, 2], [B, S, N]
    pixels = uv.flatten(0, 1).movedim(-1, 0)
    reached = _trace_depth(scene.slots.flatten(0, 1), scene.camera.flatten(0, 1), scene.intrinsic.flatten(0, 1), pixels)
    reached = reached.view_as(depth) / batch.metres_per_unit[:, None, None]
    inside = (uv > -0.5).all(-1) & (uv[..., 0] < width - 0.5) & (uv[..., 1] < height - 0.5)
    batch.query_points, batch.tracks = query, uv
    batch.visibility = inside & (depth > 0) & ((reached - depth).abs() < 1e-3 * depth)
