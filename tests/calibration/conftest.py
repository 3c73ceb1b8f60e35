"""Images to calibrate with, and recipes with static scales for small networks."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from vggt_int8 import Recipe, load_recipe


@pytest.fixture(scope="session")
def scenes() -> Tensor:
    """[3, 2, 3, 42, 56]: three scenes of two different images."""
    return torch.rand(3, 2, 3, 42, 56, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="session")
def static_recipe() -> Recipe:
    """int8_static_rotated with weights rounded to the nearest code, in a third less time: GPTQ has tests of its own."""
    return replace(load_recipe("int8_static_rotated"), rounding="nearest")


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two folders of three and two image files of 56 x 42 pixels."""
    made = []
    for number, count in enumerate((3, 2)):
        folder = tmp_path / f"scene_{number}"
        folder.mkdir()
        for image in range(count):
            pixels = torch.randint(0, 256, (42, 56, 3), generator=torch.Generator().manual_seed(10 * number + image))
            Image.fromarray(pixels.byte().numpy()).save(folder / f"{image}.png")
        made.append(folder)
    return made
