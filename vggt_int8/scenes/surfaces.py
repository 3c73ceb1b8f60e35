"""Draws the texture parameters of every face of every slot, and the lights."""

import math

import torch
from torch import Tensor

from vggt_int8.scenes.raycast import BOX, CYLINDER, FACES, ROOM, SLOT_KINDS, SPHERE
from vggt_int8.scenes.seeds import Uniforms
from vggt_int8.scenes.textures import KINDS, WIDTH

NUM_LIGHTS = 2
LIGHT_WIDTH = 3 + 3 * NUM_LIGHTS * 2  # ambient colour, then position and colour of each light

# Size of a texture cell in metres, by kind of primitive: small things carry fine patterns.
CELL_SIZE = {ROOM: (0.15, 0.6), BOX: (0.04, 0.25), SPHERE: (0.03, 0.15), CYLINDER: (0.03, 0.15)}


def draw_surfaces(draw: Uniforms, sizes: Tensor) -> Tensor:
    """Half extents [B, K, 3] -> texture rows [B, K * FACES, WIDTH] in the column order of `textures.COLUMNS`."""
    slots = sizes.shape[1]
    shape = (slots, FACES)
    # Half of the slots wear one kind on all faces (in other colours and places), as real things do.
    kind = torch.where(
        draw.chance(0.5, slots)[..., None], draw.choice(len(KINDS), slots)[..., None], draw.choice(len(KINDS), *shape)
    )
    seed = draw.choice(1 << 20, *shape)
    cell = _cell_sizes(draw, sizes)
    matrix = _face_frames(draw, shape) / cell[..., None, None]
    offset = draw(*shape, 3, low=-50.0, high=50.0)
    colors = _palette(draw, shape)
    rows = [
        kind[..., None].float(),
        seed[..., None].float(),
        matrix.flatten(-2),
        offset,
        colors.flatten(-2),
        draw(*shape, 1, high=1.0) * draw.chance(0.6, *shape, 1),  # warp
        draw(*shape, 1, low=0.1, high=0.7),  # grain
        draw(*shape, 1, low=0.3, high=0.7),  # duty
        draw(*shape, 1, low=0.1, high=0.9),  # variety
    ]
    table = torch.cat(rows, dim=-1).flatten(1, 2)
    assert table.shape[-1] == WIDTH
    return table


def draw_lights(draw: Uniforms, room_size: Tensor) -> Tensor:
    """Room size [B, 3] in metres -> [B, LIGHT_WIDTH]: ambient colour, then position and colour of each light."""
    exposure = draw(1, low=0.75, high=1.25)
    ambient = draw(1, low=0.35, high=0.65) * draw(3, low=0.9, high=1.1) * exposure
    position = (draw(NUM_LIGHTS, 3, low=-0.8, high=0.8) * room_size[:, None] / 2) * torch.tensor([1.0, 1.0, 0.0])
    position[..., 2] = draw(NUM_LIGHTS, low=0.7, high=0.97) * room_size[:, None, 2]
    power = draw(NUM_LIGHTS, 1, low=0.3, high=1.3) * draw(NUM_LIGHTS, 3, low=0.8, high=1.1) * exposure[:, None]
    return torch.cat([ambient, torch.cat([position, power], dim=-1).flatten(1)], dim=-1)


def _cell_sizes(draw: Uniforms, sizes: Tensor) -> Tensor:
    """Metres per cell [B, K, FACES], log-uniform; never so large that a small object is one flat colour."""
    bounds = torch.tensor([CELL_SIZE[kind] for kind in SLOT_KINDS]).log()
    low, high = bounds[None, :, None, 0], bounds[None, :, None, 1]
    cell = draw(sizes.shape[1], FACES, low=low, high=high).exp()
    return torch.minimum(cell, sizes.mean(-1)[..., None])


def _face_frames(draw: Uniforms, shape: tuple[int, ...]) -> Tensor:
    """Rotations [B, K, FACES, 3, 3] from surface coordinates to texture axes.

    A plane face maps the two coordinates along it, turned in the plane, and has a zero third row. A sphere's texture
    is solid. (A cylinder's side arrives unrolled, as a plane whose normal is its third coordinate.)
    """
    angle = torch.where(draw.chance(0.5, *shape), draw.choice(4, *shape) * (math.pi / 2), draw(*shape, high=math.tau))
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    flat = torch.stack([cos, sin, zero, -sin, cos, zero, zero, zero, zero], dim=-1).unflatten(-1, (3, 3))
    axes = torch.eye(3)
    # Face 2a and 2a + 1 have normal a; the other two axes come first. A cylinder's side (face 0) is unrolled.
    permuted = torch.stack([axes[[(f // 2 + 1) % 3, (f // 2 + 2) % 3, f // 2]] for f in range(FACES)])
    frames = flat @ permuted
    unrolled = [index for index, kind in enumerate(SLOT_KINDS) if kind == CYLINDER]
    frames[:, unrolled, 0] = flat[:, unrolled, 0]
    solid = [index for index, kind in enumerate(SLOT_KINDS) if kind == SPHERE]
    random = torch.linalg.qr(draw(len(solid), FACES, 3, 3, low=-1.0) + 1e-3 * axes)[0]
    frames[:, solid] = random
    return frames


def _palette(draw: Uniforms, shape: tuple[int, ...]) -> Tensor:
    """Three reflectances [B, K, FACES, 3 colours, 3 channels], well apart in brightness."""
    hue = draw(*shape, 3, 1)
    saturation = draw(*shape, 3, 1, low=0.0, high=0.85)
    phase = torch.tensor([0.0, 1 / 3, 2 / 3])
    color = 1 - saturation * (0.5 - 0.5 * torch.cos(math.tau * (hue + phase)))
    dark = draw(*shape, low=0.06, high=0.35)
    bright = draw(*shape, low=0.45, high=0.95)
    swap = draw.chance(0.5, *shape)
    value = torch.stack([torch.where(swap, dark, bright), torch.where(swap, bright, dark), draw(*shape)], dim=-1)
    return color * (0.1 + 0.9 * value[..., None])
