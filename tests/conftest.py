"""Shared by all tests: GPU tests only where there is a GPU, and the small golden network as a checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vggt_int8 import VGGTConfig, VGGTInt8

PARITY = Path(__file__).parent / "data" / "parity"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out `gpu` tests without CUDA: they are for another machine, not skipped here."""
    if torch.cuda.is_available():
        return
    for_gpu = [item for item in items if item.get_closest_marker("gpu")]
    items[:] = [item for item in items if not item.get_closest_marker("gpu")]
    config.hook.pytest_deselected(items=for_gpu)


@pytest.fixture(scope="session")
def tiny_sizes() -> dict[str, object]:
    """Keyword arguments of `VGGTConfig` for the golden network."""
    return json.loads((PARITY / "tiny_vggt_config.json").read_text())


@pytest.fixture(scope="session")
def tiny_weights() -> dict[str, Tensor]:
    return load_file(PARITY / "tiny_vggt.safetensors")


@pytest.fixture(scope="session")
def tiny_images() -> Tensor:
    """[2, 3, 42, 56]: two different frames."""
    return torch.rand(2, 3, 42, 56, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def tiny_points() -> Tensor:
    return torch.tensor([[3.0, 4.0], [30.0, 20.0], [55.0, 41.0]])


@pytest.fixture
def make_tiny(tiny_sizes: dict[str, object], tiny_weights: dict[str, Tensor]) -> Callable[[], VGGTInt8]:
    """Builds the golden network in fp32, not quantized."""

    def make() -> VGGTInt8:
        model = VGGTInt8(VGGTConfig(**tiny_sizes)).eval()
        model.load_state_dict(tiny_weights)
        return model

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tiny_sizes: dict[str, object], tiny_weights: dict[str, Tensor]
) -> Path:
    """The golden network as an fp32 checkpoint. Read only."""
    folder = tmp_path_factory.mktemp("tiny") / "fp32"
    model = VGGTInt8(VGGTConfig(**tiny_sizes))
    model.load_state_dict(tiny_weights)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def int8_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """The golden network under recipe int8_dynamic. Read only."""
    folder = tmp_path_factory.mktemp("tiny") / "int8"
    VGGTInt8.from_pretrained(tiny_checkpoint, recipe="int8_dynamic").save_pretrained(folder)
    return folder
