"""Camera paths through a scene: orbits, walks, looks around, and unordered wide baselines.

A path is a smooth function of a phase in [0, 1]; S views are taken at increasing phases, closer together when there
are few, so that neighbours see the same things. Poses are camera-from-scene in OpenCV axes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vggt_int8.scenes.layout import Layout
from vggt_int8.scenes.seeds import Uniforms

PATHS = ("orbit", "walk", "look_around", "wide")
TABLETOP_WEIGHTS = [0.6, 0.2, 0.0, 0.2]
ROOM_WEIGHTS = [0.3, 0.3, 0.25, 0.15]

WALL_DISTANCE = 0.35  # metres that cameras keep from the walls
CLEARANCE_STEPS = 33  # phases at which furniture makes way for the camera


@dataclass
class Cameras:
    rotation: Tensor  # [B, S, 3, 3] camera from scene
    center: Tensor  # [B, S, 3] metres
    focal: Tensor  # [B, S] in units of the image's longer side
    whole_path: Tensor  # [B, T, 3] where the camera may be at any phase


@dataclass
class _Path:
    """The random parameters of every kind of path, each [B] or [B, 3]."""

    kind: Tensor
    focus: Tensor
    azimuth: Tensor
    sweep: Tensor  # azimuth covered from phase 0 to 1, radians
    radius: Tensor
    height: Tensor
    bob: Tensor  # change of height and radius along an orbit
    start: Tensor
    end: Tensor
    end_focus: Tensor
    pitch: Tensor


def draw_cameras(draw: Uniforms, layout: Layout, frames: int) -> Cameras:
    """`frames` views of each scene. The number of views changes where they are taken, not the path."""
    path, room = _draw_path(draw, layout), layout.room_size
    extent = (draw(low=0.11, high=0.25) * (frames - 1)).clamp(max=1)
    first = draw() * (1 - extent)
    shuffled, roll = draw.chance(0.3), draw() ** 2 * math.radians(15)
    zoom, fov = draw.chance(0.2), draw(low=math.radians(50), high=math.radians(82))
    # Draws per view come last: they are the only ones whose number depends on `frames`.
    jitter = draw(frames, 9, low=-1.0, high=1.0)
    step = (torch.arange(frames) + 0.25 * jitter[..., 0]) / max(frames - 1, 1)
    phase = (first[:, None] + extent[:, None] * step).clamp(0, 1)
    order = torch.where(shuffled[:, None], jitter[..., 1], torch.arange(frames).float()).argsort(dim=1)
    phase = phase.gather(1, order)
    center, target = _follow(path, phase, jitter[..., 2:5], room)
    target = target + 0.12 * jitter[..., 5:8]
    small = 0.3 * jitter[..., 8].abs() + 0.7
    angle = (jitter[..., 2] * small) * roll[:, None]
    focal = 0.5 / torch.tan(fov / 2)[:, None] * torch.where(zoom[:, None], 1 + 0.2 * jitter[..., 8], 1.0)
    steps = torch.linspace(0, 1, CLEARANCE_STEPS).expand(len(room), -1)
    dense = [_follow(path, steps, side.expand(len(room), CLEARANCE_STEPS, 3), room)[0] for side in _CORNERS]
    return Cameras(_look_at(center, target, angle), center, focal, torch.cat([center, *dense], dim=1))


_CORNERS = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]])  # extremes of the jitter


def _draw_path(draw: Uniforms, layout: Layout) -> _Path:
    room, on_table = layout.room_size, layout.tabletop
    kind = torch.where(on_table, draw.pick(TABLETOP_WEIGHTS), draw.pick(ROOM_WEIGHTS))
    wide = kind == PATHS.index("wide")
    around = kind == PATHS.index("look_around")
    inner = room[:, :2].amin(-1) / 2 - WALL_DISTANCE
    radius = torch.where(on_table, draw(low=0.9, high=1.5), draw(low=0.6, high=1.0) * inner)
    radius = torch.where(around, draw(low=0.3, high=0.7), radius)
    sweep = torch.where(wide, draw(low=1.2, high=2.4), draw(low=0.9, high=2.8))
    sweep = torch.where(around, draw(low=0.9, high=1.8), sweep) * (draw.chance(0.5) * 2 - 1)
    height = torch.where(on_table, layout.focus[:, 2] + draw(low=0.25, high=0.9), draw(low=1.0, high=1.8))
    # A walk leads past the focus: from one side to the other at some distance, looking across it.
    azimuth = draw(high=math.tau)
    out = torch.stack([azimuth.cos(), azimuth.sin(), torch.zeros_like(azimuth)], dim=-1)
    across = torch.stack([-out[:, 1], out[:, 0], out[:, 2]], dim=-1)
    toward = draw(low=-0.6, high=0.6)[:, None] * out
    stride = torch.where(on_table, draw(low=0.6, high=1.2), draw(low=0.8, high=2.2))[:, None] * (across + toward)
    middle = layout.focus * torch.tensor([1.0, 1.0, 0.0]) + radius[:, None] * 1.1 * out
    middle[:, 2] = height
    drift = draw(3, low=-1.0, high=1.0) * torch.where(on_table, 0.15, 0.6)[:, None]
    return _Path(
        kind=kind, focus=layout.focus, azimuth=azimuth, sweep=sweep, radius=radius, height=height,
        bob=draw(2, low=-1.0, high=1.0), start=middle - stride / 2, end=middle + stride / 2,
        end_focus=layout.focus + drift, pitch=draw(low=-0.35, high=0.1),
    )  # fmt: skip


def _follow(path: _Path, phase: Tensor, jitter: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
    """Camera centres and what they look at, both [B, T, 3], at phases [B, T] with jitter [B, T, 3] in [-1, 1]."""

    def each(value: Tensor) -> Tensor:
        return value[:, None]

    wide = each(path.kind == PATHS.index("wide"))
    walk = each(path.kind == PATHS.index("walk"))[..., None]
    around = each(path.kind == PATHS.index("look_around"))[..., None]
    wobble = torch.sin(math.tau * (phase + each(path.bob[:, 1])))
    angle = each(path.azimuth) + each(path.sweep) * (phase - 0.5)
    swing = 0.15 * each(path.bob[:, 0]) * wobble
    radius = each(path.radius) * (1 + swing + torch.where(wide, 0.25, 0.02) * jitter[..., 0])
    height = each(path.height) + 0.15 * each(path.bob[:, 1]) * wobble + torch.where(wide, 0.25, 0.03) * jitter[..., 1]
    ring = torch.stack([angle.cos() * radius, angle.sin() * radius, torch.zeros_like(angle)], dim=-1)
    orbit = each(path.focus * torch.tensor([1.0, 1.0, 0.0])) + ring
    orbit[..., 2] = height
    line = each(path.start) + phase[..., None] * each(path.end - path.start) + 0.03 * jitter
    line[..., 2] += 0.1 * wobble
    focus = each(path.focus) + phase[..., None] * each(path.end_focus - path.focus)
    # Looking around turns outwards on the small circle; every other path looks at the focus.
    outward = torch.stack([angle.cos(), angle.sin(), each(path.pitch).expand_as(angle)], dim=-1)
    center = torch.where(walk, line, orbit)
    limit = each(room / 2 - WALL_DISTANCE)[..., :2]
    center[..., :2] = torch.minimum(torch.maximum(center[..., :2], -limit), limit)
    target = torch.where(around, center + 2 * outward, focus)
    return center, target


def _look_at(center: Tensor, target: Tensor, roll: Tensor) -> Tensor:
    """Camera-from-scene rotations [..., 3, 3]: z towards the target, then rolled about z by `roll` radians."""
    forward = torch.nn.functional.normalize(target - center, dim=-1)
    up = torch.tensor([0.0, 0.0, 1.0]).expand_as(forward)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up), dim=-1)
    down = torch.linalg.cross(forward, right)
    cos, sin = roll.cos()[..., None], roll.sin()[..., None]
    return torch.stack([cos * right + sin * down, cos * down - sin * right, forward], dim=-2)
