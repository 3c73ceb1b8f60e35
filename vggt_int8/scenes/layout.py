"""Furnishes scenes: a room with furniture, or a table with many objects in a room, as slots for the ray caster.

The scene frame is metric with z up and the floor at z = 0, the room centered on x = y = 0. Every slot is proposed for
both kinds of scene and the scene's kind selects, so all scenes of a batch have the same tensors. Objects stand on
something: a `Layout` records what carries what, so that nothing floats when a carrier is removed.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vggt_int8.scenes.raycast import FIRST_BOX, Primitives
from vggt_int8.scenes.seeds import Uniforms

TABLETOP_SHARE = 0.45


@dataclass
class Layout:
    primitives: Primitives
    carrier: Tensor  # [B, K] int64, the slot a thing stands on; the room (0) carries the rest
    tabletop: Tensor  # [B] bool
    room_size: Tensor  # [B, 3] metres
    focus: Tensor  # [B, 3] what cameras like to look at


@dataclass
class _Things:
    """A group of slots before placement: half extents, centre, yaw, tilt, present, carrier."""

    half: Tensor  # [B, N, 3]
    center: Tensor  # [B, N, 3]
    yaw: Tensor  # [B, N]
    tilt: Tensor  # [B, N] radians about the thing's own x axis
    present: Tensor  # [B, N] bool
    carrier: Tensor  # [B, N] int64


def draw_layout(draw: Uniforms) -> Layout:
    """One scene per seed of `draw`."""
    tabletop = draw.chance(TABLETOP_SHARE)
    room_size = torch.stack([draw(low=3.6, high=7.0), draw(low=3.6, high=7.0), draw(low=2.4, high=3.4)], dim=-1)
    furnished, on_table = _furnished_room(draw, room_size), _table_of_things(draw, room_size)
    things = _select(tabletop, on_table, furnished)
    room_center = torch.stack([torch.zeros(len(tabletop)), torch.zeros(len(tabletop)), room_size[:, 2] / 2], dim=-1)
    identity = torch.eye(3).expand(len(tabletop), 1, 3, 3)
    primitives = Primitives(
        center=torch.cat([room_center[:, None], things.center], dim=1),
        half=torch.cat([room_size[:, None] / 2, things.half], dim=1),
        rotation=torch.cat([identity, _rotation(things.yaw, things.tilt)], dim=1),
        active=torch.cat([torch.ones(len(tabletop), 1, dtype=torch.bool), things.present], dim=1),
    )
    carrier = torch.cat([torch.zeros(len(tabletop), 1, dtype=torch.int64), things.carrier], dim=1)
    table, spot = primitives.center[:, FIRST_BOX], draw(3, low=-1.0, high=1.0)
    above_table = table + spot * torch.tensor([0.15, 0.15, 0.08])
    in_room = spot * torch.tensor([0.25, 0.25, 0.3]) * room_size / 2 + torch.tensor([0.0, 0.0, 0.9])
    focus = torch.where(tabletop[:, None], above_table, in_room)
    return Layout(primitives, carrier, tabletop, room_size, focus)


def clear_camera_space(layout: Layout, cameras: Tensor) -> None:
    """Removes, in place, what a camera [B, T, 3] of the path would touch, and whatever stands on it."""
    p = layout.primitives
    offset = cameras[:, None] - p.center[:, :, None]  # [B, K, T, 3]
    local = torch.einsum("bkji,bktj->bkti", p.rotation, offset)
    gap = (local.abs() - p.half[:, :, None]).clamp_min(0).norm(dim=-1).amin(-1)  # [B, K]
    # Large things need more room, or they fill the picture.
    margin = 0.15 + 0.4 * p.half.amax(-1)
    free = gap > margin
    free[:, 0] = True
    p.active &= free & (free & p.active).gather(1, layout.carrier)


def _furnished_room(draw: Uniforms, room: Tensor) -> _Things:
    furniture = _on_floor(draw, room, 5, half_width=(0.2, 0.7), half_height=(0.15, 0.7))
    panels = _on_walls(draw, room, 3)
    small = _standing_on(draw, furniture, range(4), half=(0.06, 0.22))
    low_balls = _on_floor(draw, room, 2, half_width=(0.15, 0.45), half_height=(0.15, 0.45))
    balls = _standing_on(draw, furniture, (0, 1), half=(0.07, 0.22))
    columns = _on_floor(draw, room, 2, half_width=(0.1, 0.3), half_height=(0.2, 0.9))
    pots = _standing_on(draw, furniture, (2, 3), half=(0.06, 0.2))
    for round_things in (balls, pots, columns):
        round_things.half[..., 1] = round_things.half[..., 0]
    return _join(furniture, panels, small, low_balls, balls, columns, pots)


def _table_of_things(draw: Uniforms, room: Tensor) -> _Things:
    batch = len(room)
    half = torch.stack([draw(1, low=0.5, high=0.9), draw(1, low=0.4, high=0.65), draw(1, low=0.02, high=0.05)], -1)
    center = draw(1, 3, low=-0.4, high=0.4)
    center[..., 2] = draw(1, low=0.6, high=0.8)
    nothing, yes = torch.zeros(batch, 1), torch.ones(batch, 1, dtype=torch.bool)
    table = _Things(half, center, draw(1, high=math.tau), nothing, yes, torch.zeros(batch, 1, dtype=torch.int64))
    boxes = _standing_on(draw, table, (0,) * 6, half=(0.04, 0.17))
    panels = _on_walls(draw, room, 3)
    furniture = _on_floor(draw, room, 2, half_width=(0.2, 0.5), half_height=(0.2, 0.9))
    balls = _standing_on(draw, table, (0,) * 4, half=(0.04, 0.13))
    leg_half = torch.stack([draw(1, low=0.04, high=0.3)] * 2 + [(center[..., 2] - half[..., 2]) / 2], dim=-1)
    leg_center = torch.cat([center[..., :2], leg_half[..., 2:]], dim=-1)
    leg = _Things(leg_half, leg_center, nothing, nothing, yes, torch.full((batch, 1), FIRST_BOX))
    pots = _standing_on(draw, table, (0,) * 3, half=(0.04, 0.16))
    pots.half[..., 1] = pots.half[..., 0]
    lying = draw.chance(0.3, 3)
    pots.tilt = torch.where(lying, math.pi / 2, 0.0)
    standing = pots.center[..., 2] - pots.half[..., 2]
    pots.center[..., 2] = standing + torch.where(lying, pots.half[..., 0], pots.half[..., 2])
    return _join(table, boxes, panels, furniture, balls, leg, pots)


def _on_floor(
    draw: Uniforms, room: Tensor, count: int, half_width: tuple[float, float], half_height: tuple[float, float]
) -> _Things:
    """Things of random size and place on the floor; about a third stand square to the walls."""
    half = draw(count, 3, low=half_width[0], high=half_width[1])
    half[..., 2] = draw(count, low=half_height[0], high=half_height[1])
    center = draw(count, 3, low=-0.85, high=0.85) * room[:, None] / 2
    center[..., 2] = half[..., 2]
    yaw = draw(count, high=math.tau) * draw.chance(0.65, count)
    zeros = torch.zeros_like(yaw)
    return _Things(half, center, yaw, zeros, draw.chance(0.85, count), zeros.long())


def _on_walls(draw: Uniforms, room: Tensor, count: int) -> _Things:
    """Pictures, cupboards, boards: flat boxes on one of the four walls."""
    wall = draw.choice(4, count)
    along_x = wall % 2 == 0  # the wall's normal is y
    thickness = draw(count, low=0.02, high=0.15)
    width, height = draw(count, low=0.25, high=0.8), draw(count, low=0.2, high=0.6)
    half = torch.stack([torch.where(along_x, width, thickness), torch.where(along_x, thickness, width), height], dim=-1)
    side = (wall // 2 * 2 - 1).float()
    place = draw(count, low=-0.7, high=0.7) * torch.where(along_x, room[:, :1], room[:, 1:2]) / 2
    depth = side * (torch.where(along_x, room[:, 1:2], room[:, :1]) / 2 - thickness)
    x, y = torch.where(along_x, place, depth), torch.where(along_x, depth, place)
    center = torch.stack([x, y, draw(count, low=0.9, high=1.8)], dim=-1)
    zeros = torch.zeros(half.shape[:2])
    return _Things(half, center, zeros, zeros, draw.chance(0.85, count), zeros.long())


def _standing_on(
    draw: Uniforms, carriers: _Things, which: tuple[int, ...] | range, half: tuple[float, float]
) -> _Things:
    """Small things on top of carriers, one for each entry of `which`. Carriers are the first boxes of a scene."""
    count, index = len(which), torch.tensor(list(which))
    size = draw(count, 3, low=half[0], high=half[1])
    base_half, base_yaw = carriers.half[:, index], carriers.yaw[:, index]
    spot = draw(count, 2, low=-0.9, high=0.9) * (base_half[..., :2] - 0.5 * size[..., :2]).clamp_min(0)
    cos, sin = base_yaw.cos(), base_yaw.sin()
    center = carriers.center[:, index].clone()
    center[..., 0] += cos * spot[..., 0] - sin * spot[..., 1]
    center[..., 1] += sin * spot[..., 0] + cos * spot[..., 1]
    center[..., 2] += base_half[..., 2] + size[..., 2]
    present = draw.chance(0.85, count) & carriers.present[:, index]
    yaw = draw(count, high=math.tau)
    return _Things(size, center, yaw, torch.zeros_like(yaw), present, (FIRST_BOX + index).expand(len(size), -1))


def _rotation(yaw: Tensor, tilt: Tensor) -> Tensor:
    """Yaw about z after tilt about x, [...] -> [..., 3, 3]."""
    zero, one = torch.zeros_like(yaw), torch.ones_like(yaw)
    turn = torch.stack([yaw.cos(), -yaw.sin(), zero, yaw.sin(), yaw.cos(), zero, zero, zero, one], dim=-1)
    lean = torch.stack([one, zero, zero, zero, tilt.cos(), -tilt.sin(), zero, tilt.sin(), tilt.cos()], dim=-1)
    return turn.unflatten(-1, (3, 3)) @ lean.unflatten(-1, (3, 3))


def _join(*groups: _Things) -> _Things:
    return _Things(*(torch.cat(parts, dim=1) for parts in zip(*(vars(g).values() for g in groups), strict=True)))


def _select(condition: Tensor, yes: _Things, no: _Things) -> _Things:
    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(condition.view(-1, *[1] * (a.dim() - 1)), a, b)

    return _Things(*(pick(a, b) for a, b in zip(vars(yes).values(), vars(no).values(), strict=True)))
