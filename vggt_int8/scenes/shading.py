"""What a camera sees along each ray: depth, and colour from texture and light.

Everything here is elementwise over F frames of R rays plus look-ups in small tables, so torch.compile makes one kernel
of it. Vectors are tuples of x, y, z tensors.
"""

import torch
from torch import Tensor

from vggt_int8.scenes.raycast import FACES, FIRST_CYLINDER, FIRST_SPHERE, Hits, Vector, cast_rays, unit_hit
from vggt_int8.scenes.surfaces import NUM_LIGHTS
from vggt_int8.scenes.textures import gather_surface, surface_color


def _ray_directions(camera: Tensor, intrinsic: Tensor, pixels: Tensor) -> Vector:
    """camera [F, 12], intrinsic [F, 3, 3], pixels [2, R] or [2, F, R] -> scene directions 3 x [F, R], camera z = 1."""
    x = (pixels[0] - intrinsic[:, 0, 2, None]) / intrinsic[:, 0, 0, None]
    y = (pixels[1] - intrinsic[:, 1, 2, None]) / intrinsic[:, 1, 1, None]
    r = camera[:, :, None].unbind(1)  # 12 x [F, 1]
    return r[0] * x + r[1] * y + r[2], r[3] * x + r[4] * y + r[5], r[6] * x + r[7] * y + r[8]


def trace_depth(slots: Tensor, camera: Tensor, intrinsic: Tensor, pixels: Tensor) -> Tensor:
    return cast_rays(slots, _ray_directions(camera, intrinsic, pixels)).depth


def trace_color(
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
    cylinder = hits.slot >= FIRST_CYLINDER
    sphere = (hits.slot >= FIRST_SPHERE) & ~cylinder
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
