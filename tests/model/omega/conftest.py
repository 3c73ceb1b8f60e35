"""The small golden VGGT-Ω and its golden inputs and outputs (see tests/data/parity_omega)."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vggt_int8 import VGGTOmega, VGGTOmegaConfig

OMEGA = Path(__file__).parents[2] / "data" / "parity_omega"


@pytest.fixture(scope="session")
def omega_folder() -> Path:
    return OMEGA


@pytest.fixture(scope="session")
def omega_config() -> VGGTOmegaConfig:
    return VGGTOmegaConfig(**json.loads((OMEGA / "tiny_omega_config.json").read_text()))


@pytest.fixture(scope="session")
def omega_weights() -> dict[str, Tensor]:
    return load_file(OMEGA / "tiny_omega.safetensors")


@pytest.fixture
def make_omega(omega_config: VGGTOmegaConfig, omega_weights: dict[str, Tensor]) -> Callable[..., VGGTOmega]:
    """Build the golden network: `make_omega(dtype=torch.float16)`."""

    def make(dtype: torch.dtype = torch.float32) -> VGGTOmega:
        model = VGGTOmega(omega_config).eval()
        model.load_state_dict(omega_weights)
        return model.to(dtype)

    return make


@pytest.fixture
def golden_omega() -> Callable[[str], dict[str, Tensor]]:
    return lambda name: load_file(OMEGA / f"golden_{name}.safetensors")
