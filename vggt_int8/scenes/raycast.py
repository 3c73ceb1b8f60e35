"""Exact ray casting: affine unit primitives, one vectorised pass per kind of primitive.

A scene is a fixed number of slots: slot 0 the room, seen from inside, then boxes, spheres and cylinders. A slot's
primitive is the unit cube [-1, 1]^3, the unit sphere, or the unit cylinder (radius 1, z in [-1, 1]), placed by
`x_scene = rotation @ (half * x_unit) + center`. So spheres may be ellipsoids, and one matrix per slot
takes a ray into unit space. An affine map keeps the ray parameter: with a ray direction whose camera z is 1, that
parameter *is* the z-depth. Every ray ends at the room's walls at the latest, so depth is always finite.

The loop runs over kinds, never over pixels: all slots of a kind are one tensor dimension, which a minimum reduces.
(Twenty unrolled slots are the same arithmetic, but a program so long that compiling it takes minutes.) Coordinates are
kept as separate x, y, z tensors: all else is elementwise, so torch.compile fuses it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

ROOM, BOX, SPHERE, CYLINDER = range(4)
SLOT_KINDS = (ROOM,) + (BOX,) * 12 + (SPHERE,) * 4 + (CYLINDER,) * 4  # slots of a kind are neighbours
FIRST_BOX, FIRST_SPHERE, FIRST_CYLINDER = (SLOT_KINDS.index(kind) for kind in (BOX, SPHERE, CYLINDER))
FACES = 6  # of a slot: +x, -x, +y, -y, +z, -z; a sphere uses the first, a cylinder's side the first
NEAR = 1e-3  # metres; a hit closer than this is behind the lens

Vector = tuple[Tensor, ...]  # x, y, z


@dataclass
class Primitives:
    """K slots of B scenes, in the scene frame: metres, z up, the floor at z = 0."""

    center: Tensor  # [B, K, 3]
    half: Tensor  # [B, K, 3] half extents
    rotation: Tensor  # [B, K, 3, 3] scene from unit space
    active: Tensor  # [B, K] bool; the room is always active


class Hits(NamedTuple):
    depth: Tensor  # [F, R] ray parameter, = z-depth in metres
    slot: Tensor  # [F, R] int64


def rays_in_unit_space(primitives: Primitives, origins: Tensor) -> Tensor:
    """Primitives of B scenes, camera centres [B, S, 3] -> [B, S, K, 12]: 3x3 direction map, then the origin.

    An inactive slot's origin is NaN: then no comparison with it is ever true and nothing is hit.
    """
    to_unit = primitives.rotation.mT / primitives.half[..., None]  # [B, K, 3, 3]
    offset = origins[:, :, None] - primitives.center[:, None]  # [B, S, K, 3]
    origin = torch.einsum("bkij,bskj->bski", to_unit, offset)
    origin = origin.masked_fill(~primitives.active[:, None, :, None], torch.nan)
    matrix = to_unit.flatten(2)[:, None].expand(-1, origins.shape[1], -1, -1)
    return torch.cat([matrix, origin], dim=-1)


def cast_rays(slots: Tensor, direction: Vector) -> Hits:
    """`rays_in_unit_space` of F cameras [F, K, 12], ray directions 3 x [F, R] in the scene frame -> first hits."""
    nearest = _leave_box(*_to_unit(slots[:, :FIRST_BOX], direction)).squeeze(1)
    slot_of = torch.zeros_like(nearest, dtype=torch.int64)
    for kind, intersect in _INTERSECT.items():
        first = SLOT_KINDS.index(kind)
        enter, leave = intersect(*_to_unit(slots[:, first : first + SLOT_KINDS.count(kind)], direction))
        closest, index = torch.where((enter < leave) & (enter > NEAR), enter, torch.inf).min(dim=1)
        closer = closest < nearest
        nearest = torch.where(closer, closest, nearest)
        slot_of = torch.where(closer, first + index, slot_of)
    return Hits(nearest, slot_of)


def unit_hit(slots: Tensor, direction: Vector, hits: Hits) -> Vector:
    """Where each ray meets its slot, in the slot's unit space, 3 x [F, R]."""
    frames = torch.arange(slots.shape[0], device=slots.device)[:, None]
    columns = [slots[..., i][frames, hits.slot] for i in range(12)]
    x, y, z = (
        columns[9 + i // 3]
        + hits.depth * (columns[i] * direction[0] + columns[i + 1] * direction[1] + columns[i + 2] * direction[2])
        for i in (0, 3, 6)
    )
    return x, y, z


def _to_unit(slots: Tensor, direction: Vector) -> tuple[Vector, Vector]:
    """Some slots [F, k, 12] -> ray origins 3 x [F, k, 1] and directions 3 x [F, k, R] in their unit spaces."""
    row = slots[..., None].unbind(2)
    x, y, z = (component[:, None] for component in direction)
    return row[9:], tuple(row[i] * x + row[i + 1] * y + row[i + 2] * z for i in (0, 3, 6))


def _slab(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Ray parameters where one coordinate enters and leaves [-1, 1]."""
    inverse = 1 / torch.where(d.abs() < 1e-12, 1e-12, d)
    first, second = (-1 - o) * inverse, (1 - o) * inverse
    return torch.minimum(first, second), torch.maximum(first, second)


def _leave_box(o: Vector, d: Vector) -> Tensor:
    leaves = [_slab(a, b)[1] for a, b in zip(o, d, strict=True)]
    return torch.minimum(torch.minimum(leaves[0], leaves[1]), leaves[2])


def _box(o: Vector, d: Vector) -> tuple[Tensor, Tensor]:
    (x0, x1), (y0, y1), (z0, z1) = (_slab(a, b) for a, b in zip(o, d, strict=True))
    return torch.maximum(torch.maximum(x0, y0), z0), torch.minimum(torch.minimum(x1, y1), z1)


def _sphere(o: Vector, d: Vector) -> tuple[Tensor, Tensor]:
    a = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    b = o[0] * d[0] + o[1] * d[1] + o[2] * d[2]
    # |o x d|^2 instead of b^2 - a c: no cancellation when a small sphere is far away.
    cross = (o[1] * d[2] - o[2] * d[1], o[2] * d[0] - o[0] * d[2], o[0] * d[1] - o[1] * d[0])
    return _roots(a, b, cross[0] * cross[0] + cross[1] * cross[1] + cross[2] * cross[2])


def _cylinder(o: Vector, d: Vector) -> tuple[Tensor, Tensor]:
    cross = o[0] * d[1] - o[1] * d[0]
    a = (d[0] * d[0] + d[1] * d[1]).clamp_min(1e-12)
    enter, leave = _roots(a, o[0] * d[0] + o[1] * d[1], cross * cross)
    bottom, top = _slab(o[2], d[2])
    return torch.maximum(enter, bottom), torch.minimum(leave, top)


def _roots(a: Tensor, b: Tensor, cross_squared: Tensor) -> tuple[Tensor, Tensor]:
    """Roots of a t^2 + 2 b t + c; a missed ray gets an empty interval (enter = leave)."""
    root = (a - cross_squared).clamp_min(0).sqrt()
    return (-b - root) / a, (-b + root) / a


_INTERSECT = {BOX: _box, SPHERE: _sphere, CYLINDER: _cylinder}
