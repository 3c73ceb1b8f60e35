"""The golden network under each recipe, and what its tracker is called with."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.poison import poison_new_memory
from vggt_int8 import VGGTInt8, quantize
from vggt_int8.kernels.cpu.attention import attention_cpu
from vggt_int8.model.track_head import Tracker
from vggt_int8.runtime import attention, convolution

RECIPES = ("fp16", "int8_weight_only", "int8_dynamic", "int8_rotated")
Make = Callable[[str, torch.dtype], VGGTInt8]


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernels below leave unwritten reaches the network's results as NaN."""
    poison_new_memory(monkeypatch)


@pytest.fixture(autouse=True)
def float_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions decode their weights here, and attention is in floats, as without compiled kernels: bounds are those
    of fp32.

    `test_cpu.py` has the integer convolutions.
    """
    monkeypatch.setattr(convolution, "int8_conv_is_there", lambda: False)
    monkeypatch.setattr(attention, "attention_cpu", lambda q, k, v, _: attention_cpu(q, k, v))


@pytest.fixture(scope="module")
def originals() -> dict[str, VGGTInt8]:
    """What `make_quantized` has built, to be copied."""
    return {}


@pytest.fixture
def make_quantized(make_tiny: Callable[[], VGGTInt8], originals: dict[str, VGGTInt8]) -> Make:
    """Builds the golden network under a recipe ("none": not quantized), INT8 layers on the reference backend."""

    def make(recipe: str, dtype: torch.dtype = torch.float32) -> VGGTInt8:
        if recipe not in originals:
            model = make_tiny().requires_grad_(False)
            if recipe != "none":
                quantize(model, recipe, "auto" if recipe == "fp16" else "reference")
            originals[recipe] = model
        return copy.deepcopy(originals[recipe]).to(dtype)

    return make


TrackerCalls = list[tuple[Tensor, Tensor, int | None]]


@pytest.fixture
def tracker_calls(monkeypatch: pytest.MonkeyPatch) -> TrackerCalls:
    """Feature maps, query points and chunk of every call of a tracker from here on.

    The tracker of the golden network makes an error of its maps 35 times as large in fp32, and with INT8 codes any
    size: a code that tips over moves all that follows. What a runtime computes for it are its maps, so these are
    compared, and its tracks with those that the network's own tracker makes of the same maps.
    """
    calls: TrackerCalls = []
    forward = Tracker.forward

    def spy(self: Tracker, *arguments: Any) -> Any:
        calls.append(arguments)
        return forward(self, *arguments)

    monkeypatch.setattr(Tracker, "forward", spy)
    return calls
