"""Saved scenes without a network: a wall in front of cameras that move sideways."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vggt_int8.export import Scene, save_scene
from vggt_int8.images import ImageTransform

HEIGHT, WIDTH, FOCAL = 24, 32, 30.0
MakeScene = Callable[..., Scene]


def make_wall(
    *, count: int = 3, scale: float = 1.0, noise: float = 0.0, seed: int = 0, padding: int = 0, cameras: bool = True
) -> Scene:
    """`count` cameras 0.2 apart look along z at a wall 2 away; `scale` multiplies all lengths, `noise` is of depth.

    The same `seed` gives the same images. padding: columns at the left that show nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    colors = torch.randint(0, 256, (count, HEIGHT, WIDTH, 3), generator=generator, dtype=torch.uint8)
    confidence = 1 + torch.rand(count, HEIGHT, WIDTH, generator=generator)
    depth = 2 * scale * (1 + noise * torch.randn(count, HEIGHT, WIDTH, generator=generator))
    extrinsic = torch.eye(3, 4).repeat(count, 1, 1)
    extrinsic[:, 0, 3] = -0.2 * scale * torch.arange(count)
    intrinsic = torch.tensor([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]]).repeat(count, 1, 1)
    transform = ImageTransform((HEIGHT, WIDTH - padding), (HEIGHT, WIDTH), (1.0, 1.0), (padding, 0))
    return Scene(
        names=[f"photo {index}.jpg" for index in range(count)],
        transforms=[transform] * count,
        colors=colors,
        extrinsic=extrinsic if cameras else None,
        intrinsic=intrinsic if cameras else None,
        depth=depth,
        depth_conf=confidence,
    )


@pytest.fixture
def wall() -> MakeScene:
    return make_wall


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Saves a wall as `run` does, under a name -> its folder."""

    def save(name: str, **options: object) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        save_scene(folder / "scene", make_wall(**options))
        return folder

    return save
