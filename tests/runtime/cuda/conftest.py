"""VGGT-1B's shapes with random weights on a GPU, and one network in INT8 for all tests of a file."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from tests.runtime.cuda.models import build, release
from vggt_int8 import VGGT, VGGTConfig, VGGTInt8


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """VGGT-1B without tracks, random, drawn so that every branch contributes; fp32 on the CPU."""
    with torch.device("cuda"):
        torch.manual_seed(0)
        model = VGGT(VGGTConfig(enable_track=False))
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.uniform_(parameter, 0.05, 0.2)
        elif name.endswith(("_token", "_tokens")):
            nn.init.normal_(parameter, std=0.3)
    return {name: tensor.cpu() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def int8(weights: dict[str, Tensor]) -> VGGTInt8:
    return build(weights, "int8_dynamic", "native")


@pytest.fixture(autouse=True)
def clean(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    if "int8" in request.fixturenames:
        request.getfixturevalue("int8").set_runtime("auto")
    release()
