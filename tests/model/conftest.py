"""The small golden network and its golden inputs and outputs (see tests/data/parity)."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vggt_int8.model import VGGT, VGGTConfig

PARITY = Path(__file__).parent.parent / "data" / "parity"


@pytest.fixture(scope="session")
def parity_folder() -> Path:
    return PARITY


@pytest.fixture(scope="session")
def tiny_config() -> VGGTConfig:
    return VGGTConfig(**json.loads((PARITY / "tiny_vggt_config.json").read_text()))


@pytest.fixture(scope="session")
def tiny_weights() -> dict[str, Tensor]:
    return load_file(PARITY / "tiny_vggt.safetensors")


@pytest.fixture
def make_model(tiny_config: VGGTConfig, tiny_weights: dict[str, Tensor]) -> Callable[..., VGGT]:
    """Build the golden network: `make_model(dtype=torch.float16)`."""

    def make(dtype: torch.dtype = torch.float32) -> VGGT:
        model = VGGT(tiny_config).eval()
        model.load_state_dict(tiny_weights)
        return model.to(dtype)

    return make


@pytest.fixture
def golden() -> Callable[[str], dict[str, Tensor]]:
    return lambda name: load_file(PARITY / f"golden_{name}.safetensors")
