"""Changes are measured one at a time on every scene, tracks included, and the model is the same afterwards."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vggt_int8 import VGGTInt8, VGGTOmegaConfig, VGGTOmegaInt8
from vggt_int8.sensitivity.measure import compare_on, measure_changes, outputs_of
from vggt_int8.sensitivity.measures import measure
from vggt_int8.sensitivity.record import Record
from vggt_int8.sensitivity.scenes import Scene


@dataclass(frozen=True)
class Scaled:
    """One weight times a factor: a change that no recipe has."""

    unit: str
    choice: str
    factor: float

    @contextmanager
    def made(self, model: nn.Module) -> Iterator[None]:
        weight = model.get_submodule(self.unit).weight
        before = weight.clone()
        weight.mul_(self.factor)
        yield
        weight.copy_(before)


@torch.inference_mode()
def test_vggt_omega_is_measured_by_what_it_gives() -> None:
    sizes = {
        "embed_dim": 32,
        "encoder_depth": 1,
        "depth": 1,
        "dpt_layers": [0] * 4,
        "register_layers": [],
        "img_size": 32,
    }
    heads = {"encoder_num_heads": 1, "num_heads": 1, "camera_depth": 1, "camera_num_heads": 1, "dpt_features": 8}
    model = VGGTOmegaInt8(VGGTOmegaConfig(**sizes, **heads)).eval()
    outputs = outputs_of(model, Scene("one", torch.rand(2, 3, 32, 32)), seed=0)
    assert {"rotation", "direction", "depth"} <= measure(outputs, outputs, (32, 32)).keys()


@pytest.fixture
def scenes(tiny_images: Tensor) -> list[Scene]:
    return [Scene("one", tiny_images), Scene("other", tiny_images.flip(-1))]


@pytest.mark.slow
def test_changes_of_any_kind_are_measured(
    make_tiny: Callable[[], VGGTInt8], scenes: list[Scene], tmp_path: Path
) -> None:
    model, other = make_tiny(), make_tiny()
    name = "aggregator.global_blocks.1.mlp.fc2"
    changes = [Scaled(name, "same", 1.0), Scaled(name, "large", 1.5)]
    record, steps = Record(tmp_path / "record", {}), []
    measure_changes(model, scenes, changes, record, 0, lambda done, total: steps.append((done, total)))
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert record.errors(name, "same", 2) == 2 * [dict.fromkeys(record.errors(name, "large", 1)[0], 0.0)]
    with torch.no_grad():
        other.get_submodule(name).weight.mul_(1.5)
    wanted = compare_on(model, other, scenes, 0)
    assert record.errors(name, "large", 2) == wanted
    assert all(value > 0 for errors in wanted for value in errors.values())
    assert {"rotation", "direction", "depth", "points", "tracks"} <= wanted[0].keys()
    assert wanted[0] != wanted[1]


def test_points_that_are_followed_come_from_the_seed(make_tiny: Callable[[], VGGTInt8], scenes: list[Scene]) -> None:
    model = make_tiny()
    with torch.inference_mode():
        first, again, other = (outputs_of(model, scenes[0], seed)["track"] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first[0, 0].min() >= 0
    assert (first[0, 0] <= torch.tensor([55, 41])).all(), "inside of the image"
