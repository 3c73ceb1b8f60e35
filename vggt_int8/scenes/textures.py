"""Procedural textures: what colour a surface has at a point, from hashes of integer lattice cells.

Each face of each slot has a row of parameters (`COLUMNS`), among them a kind from `KINDS`, three colours, a seed and
an affine map from the surface's own metric coordinates to texture cells. The map is flat (no third coordinate) on
plane faces and solid on spheres. Two faces differ in kind, colours, scale, orientation and seed, and colours vary from
cell to cell, so no patch of one looks like a patch of another.

All kinds are evaluated for every ray and one is selected: branch-free and elementwise, for GPUs and torch.compile.
Detail finer than a pixel is faded out, as a lens would.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

KINDS = ("marble", "checks", "stripes", "blobs", "gradient", "glyphs", "bricks", "patches", "rings")

COLUMNS = {
    "kind": 1,
    "seed": 1,  # an integer below 2^20, exact in fp32
    "matrix": 9,  # cells per metre, rotated
    "offset": 3,  # cells
    "color_a": 3,  # linear reflectance, 0 ... 1
    "color_b": 3,
    "color_c": 3,
    "warp": 1,  # how far noise bends the pattern, cells
    "grain": 1,  # contrast of fine noise, 0 ... 1
    "duty": 1,  # share of the pattern that is "on"
    "variety": 1,  # how much the brightness differs from cell to cell, 0 ... 1
}
WIDTH = sum(COLUMNS.values())

NOISE_SCALES = (0.23, 1.0, 2.03, 4.7)  # frequencies relative to the texture's cells: tint, then three octaves
NOISE_SEEDS = (3, 11, 12, 13)

Vector = tuple[Tensor, ...]  # three components, of a place or of a colour


class Surface(NamedTuple):
    """The parameters of each ray's surface; every column is [F, R]."""

    kind: Tensor
    seed: Tensor
    matrix: Vector
    offset: Vector
    color_a: Vector
    color_b: Vector
    color_c: Vector
    warp: Tensor
    grain: Tensor
    duty: Tensor
    variety: Tensor


def gather_surface(table: Tensor, row: Tensor) -> Surface:
    """table [F, rows, WIDTH], row [F, R] -> the columns of each ray's row."""
    frames = torch.arange(table.shape[0], device=table.device)[:, None]
    columns: dict[str, Any] = {}
    start = 0
    for name, width in COLUMNS.items():
        values = tuple(table[..., i][frames, row] for i in range(start, start + width))
        columns[name] = values if width > 1 else values[0]
        start += width
    return Surface(**columns)


def surface_color(surface: Surface, point: Vector, footprint: Tensor) -> Vector:
    """Linear reflectance 3 x [F, R] at metric surface coordinates; `footprint` is a pixel's width there, metres."""
    m = surface.matrix
    x, y, z = (m[i] * point[0] + m[i + 1] * point[1] + m[i + 2] * point[2] + surface.offset[i // 3] for i in (0, 3, 6))
    frequency = (m[0] * m[0] + m[1] * m[1] + m[2] * m[2]).sqrt()
    pixel = footprint * frequency  # pixel width in cells
    seed = surface.seed.int()
    noise, fine, tint = _fractal_noise((x, y, z), seed, pixel)
    bend = surface.warp * noise
    pattern, shade = _pattern(surface, (x + bend, y + bend, z + bend), noise, seed)
    pattern = 0.5 + (pattern - 0.5) * _visible(0.5 * pixel)
    brightness = 1 + surface.variety * (shade - 0.5) + surface.grain * fine
    tint = (1.6 * tint - 0.5).clamp(0, 0.75)

    def channel(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        base = a + (b - a) * pattern
        return ((base + (c - base) * tint) * brightness).clamp(0.01, 1)

    return tuple(map(channel, surface.color_a, surface.color_b, surface.color_c))


def _pattern(surface: Surface, p: Vector, noise: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
    """Weight of the second colour, 0 ... 1, and a brightness per cell, 0 ... 1, by the surface's kind."""
    x, y, z = p
    duty = surface.duty
    row = torch.floor(y)
    brick = surface.kind == KINDS.index("bricks")
    # A wall of bricks: cells twice as long as high, every other row shifted by half a brick.
    x = torch.where(brick, 0.5 * x + 0.5 * torch.remainder(row, 2), x)
    cell = (torch.floor(x), row, torch.floor(z))
    u, v, w = x - cell[0], y - cell[1], z - cell[2]
    column, line, layer = (c.int() for c in cell)
    shade, second, third = (_hash(column, line, layer, seed + i) for i in range(3))

    checks = torch.remainder(cell[0] + cell[1] + cell[2], 2)
    stripes = (u < duty).float()
    radius = 0.2 + 0.25 * second
    du, dv, dw = u - 0.5 + 0.2 * (third - 0.5), v - 0.5 + 0.2 * (second - 0.5), 0.7 * (w - 0.5)
    blobs = (du * du + dv * dv + dw * dw < radius * radius).float()
    gradient = (torch.remainder(0.25 * x, 2) - 1).abs()
    # A glyph: 4 x 6 dots of a cell, each on or off, with a margin around.
    bit = _hash(column * 4 + (5 * u).int(), line * 6 + (7 * v).int(), layer, seed + 7)
    glyphs = ((bit < duty) & (u < 0.8) & (v < 0.857)).float()
    bricks = ((u > 0.06) & (v > 0.12)).float()
    ring = torch.sqrt(x * x + y * y + z * z + 1e-6)
    rings = (torch.remainder(ring + 0.5 * noise, 1) < duty).float()
    marble = ((noise * 2.2 + 0.5).clamp(0, 1) - 0.5) * 1.2 + 0.5

    values = (marble, checks, stripes, blobs, gradient, glyphs, bricks, second, rings)
    pattern = marble
    for index, value in enumerate(values[1:], start=1):
        pattern = torch.where(surface.kind == index, value, pattern)
    return pattern, shade


def _fractal_noise(p: Vector, seed: Tensor, pixel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three octaves in about -0.5 ... 0.5, the finest two alone, and an independent, broader noise in 0 ... 1."""
    # All four in one evaluation of four times as many points: a quarter of the program to compile.
    scales = torch.tensor(NOISE_SCALES, device=seed.device).view(-1, 1, 1)
    seeds = seed + torch.tensor(NOISE_SEEDS, dtype=torch.int32, device=seed.device).view(-1, 1, 1)
    broad, coarse, middle, finest = _value_noise(tuple(scales * c for c in p), seeds).unbind(0)
    middle = (middle - 0.5) * _visible(2 * pixel)
    finest = (finest - 0.5) * _visible(4.7 * pixel)
    return 0.55 * (coarse - 0.5) + 0.3 * middle + 0.15 * finest, middle + finest, broad


def _visible(pixel: Tensor) -> Tensor:
    """1 for features larger than two pixels, 0 for those smaller than one; `pixel` in feature sizes."""
    return (2 - 2 * pixel).clamp(0, 1)


def _value_noise(p: Vector, seed: Tensor) -> Tensor:
    """Trilinear interpolation of lattice hashes with a smooth step, 0 ... 1."""
    floors = [torch.floor(c) for c in p]
    u, v, w = ((c - f) * (c - f) * (3 - 2 * (c - f)) for c, f in zip(p, floors, strict=True))
    x, y, z = (f.int() for f in floors)
    planes = []
    for dz in (0, 1):
        lines = []
        for dy in (0, 1):
            left, right = (_hash(x + dx, y + dy, z + dz, seed) for dx in (0, 1))
            lines.append(left + (right - left) * u)
        planes.append(lines[0] + (lines[1] - lines[0]) * v)
    return planes[0] + (planes[1] - planes[0]) * w


def _hash(x: Tensor, y: Tensor, z: Tensor, seed: Tensor) -> Tensor:
    """Four int32 tensors -> uniform fp32 in [0, 1). int32 arithmetic wraps, the same on every device."""
    h = x * 374761393 + y * 668265263 + z * 1440662683 + seed * 1103515245
    h = (h ^ (h >> 15 & 0x1FFFF)) * 1274126177
    h = (h ^ (h >> 13 & 0x7FFFF)) * 1911520717
    return (h >> 8 & 0xFFFFFF).float() * (1 / (1 << 24))
