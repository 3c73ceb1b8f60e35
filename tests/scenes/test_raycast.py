"""Each primitive against its own equation, and random numbers against what they promise."""

import torch

from vggt_int8.scenes.raycast import (
    BOX,
    CYLINDER,
    SLOT_KINDS,
    SPHERE,
    Primitives,
    cast_rays,
    rays_in_unit_space,
    unit_hit,
)
from vggt_int8.scenes.seeds import Uniforms
from vggt_int8.scenes.surfaces import draw_surfaces
from vggt_int8.scenes.textures import gather_surface, surface_color


def crowded_room(seed: int) -> tuple[Primitives, torch.Tensor, tuple[torch.Tensor, ...]]:
    """All slots active at random places of a 6 m room, rays from its middle."""
    generator = torch.Generator().manual_seed(seed)
    slots = len(SLOT_KINDS)
    center = torch.rand(1, slots, 3, generator=generator) * 5 - 2.5
    half = torch.rand(1, slots, 3, generator=generator) * 0.4 + 0.1
    rotation = torch.linalg.qr(torch.randn(1, slots, 3, 3, generator=generator))[0]
    center[:, 0], half[:, 0], rotation[:, 0] = 0, 3, torch.eye(3)
    active = (center.norm(dim=-1) > 1.2) | (torch.arange(slots) == 0)
    origin = torch.rand(1, 1, 3, generator=generator) * 0.2
    direction = torch.nn.functional.normalize(torch.randn(1, 20000, 3, generator=generator), dim=-1)
    return Primitives(center, half, rotation, active), origin, direction.unbind(-1)


def is_inside(primitives: Primitives, points: torch.Tensor) -> torch.Tensor:
    """points [R, T, 3] -> [R, T, K]: strictly within each primitive (1e-3 of its size aside); outside, for the room."""
    p = primitives
    local = torch.einsum("kji,rtkj->rtki", p.rotation[0], points[:, :, None] - p.center[0]) / p.half[0]
    kinds = torch.tensor(SLOT_KINDS)
    cube, ball, ring = local.abs().amax(-1), local.norm(dim=-1), local[..., :2].norm(dim=-1)
    size = torch.where(kinds == SPHERE, ball, cube)
    size = torch.where(kinds == CYLINDER, torch.maximum(ring, local[..., 2].abs()), size)
    inside = size < 1 - 1e-3
    inside[..., 0] = size[..., 0] > 1 + 1e-3
    return inside & p.active[0]


def test_a_hit_is_on_the_surface_and_nothing_is_before_it() -> None:
    primitives, origin, direction = crowded_room(0)
    slots = rays_in_unit_space(primitives, origin)[0]
    hits = cast_rays(slots, direction)
    x, y, z = (c[0] for c in unit_hit(slots, direction, hits))
    kind = torch.tensor(SLOT_KINDS)[hits.slot[0]]
    cube = torch.stack([x, y, z]).abs().amax(0)
    ring = (x * x + y * y).sqrt()
    on = {BOX: cube, SPHERE: (x * x + y * y + z * z).sqrt(), CYLINDER: torch.maximum(ring, z.abs())}
    for which, surface in on.items():
        chosen = kind == which
        assert chosen.sum() > 300
        assert (surface[chosen] - 1).abs().max() < 1e-3
    along = torch.linspace(0, 0.999, 200)[None, :, None] * hits.depth[0, :2000, None, None]
    points = origin[0] + along * torch.stack(direction, -1)[0, :2000, None]
    assert not is_inside(primitives, points).any()
    beyond = origin[0] + (hits.depth[0, :, None] + 0.02)[..., None] * torch.stack(direction, -1)[0, :, None]
    assert is_inside(primitives, beyond).any(-1).float().mean() > 0.95


def test_inactive_slots_are_never_hit() -> None:
    primitives, origin, direction = crowded_room(1)
    primitives.active[:, 5:] = False
    hits = cast_rays(rays_in_unit_space(primitives, origin)[0], direction)
    assert hits.slot.max() < 5
    assert hits.depth.isfinite().all()


def test_uniforms_are_uniform_and_independent() -> None:
    draw = Uniforms(torch.arange(4000), stream=1)
    first, second = draw(8), draw(8)
    other = Uniforms(torch.arange(4000), stream=2)(8)
    for sample in (first, second, other):
        assert abs(sample.mean() - 0.5) < 0.01
        assert abs(sample.var() - 1 / 12) < 0.002
    stacked = torch.cat([first, second, other], dim=1)
    correlation = torch.corrcoef(stacked.T) - torch.eye(24)
    assert correlation.abs().max() < 0.08
    neighbours = torch.corrcoef(torch.stack([first[:-1, 0], first[1:, 0]]))[0, 1]
    assert abs(neighbours) < 0.05
    picked = draw.pick([0.6, 0.0, 0.4])
    assert (picked != 1).all()
    assert abs((picked == 0).float().mean() - 0.6) < 0.03


def test_faces_of_one_scene_look_different() -> None:
    """Patches of 6 x 6 samples of any two faces differ in at least one of mean colour and pattern."""
    sizes = torch.full((1, len(SLOT_KINDS), 3), 0.5)
    table = draw_surfaces(Uniforms(torch.tensor([3]), 0), sizes)
    faces = table.shape[1]
    grid = torch.linspace(-0.4, 0.4, 24)
    u, v = (c.flatten() for c in torch.meshgrid(grid, grid, indexing="ij"))
    row = torch.arange(faces)[:, None].expand(-1, len(u)).reshape(1, -1)
    axes = [c.repeat(faces)[None] for c in (u, v, u - v)]
    color = surface_color(gather_surface(table, row), (axes[0], axes[1], axes[2]), torch.zeros(1))
    looks = torch.stack([c.view(faces, -1) for c in color], dim=1).flatten(1)
    distance = torch.cdist(looks, looks) / looks.shape[1] ** 0.5 + torch.eye(faces)
    assert distance.min() > 0.02
    assert looks.std(dim=1).min() > 0.01
