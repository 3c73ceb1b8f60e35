"""The golden network under each recipe, and how far two results may be apart."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vggt_int8 import VGGTInt8, quantize
from vggt_int8.kernels.cpu_attention import attention_cpu
from vggt_int8.runtime import attention, convolution

RECIPES = ("fp16", "int8_weight_only", "int8_dynamic")
Make = Callable[[str, torch.dtype], VGGTInt8]


@pytest.fixture(autouse=True)
def float_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions decode their weights here, and attention is in floats, as without compiled kernels: bounds are those
    of fp32.

    `test_cpu.py` has the integer convolutions.
    """
    monkeypatch.setattr(convolution, "int8_conv_is_there", lambda: False)
    monkeypatch.setattr(attention, "attention_cpu", lambda q, k, v, _: attention_cpu(q, k, v))


@pytest.fixture
def make_quantized(make_tiny: Callable[[], VGGTInt8]) -> Make:
    """Builds the golden network under a recipe ("none": not quantized), INT8 layers on the reference backend."""

    def make(recipe: str, dtype: torch.dtype = torch.float32) -> VGGTInt8:
        model = make_tiny().requires_grad_(False)
        if recipe != "none":
            quantize(model, recipe, "auto" if recipe == "fp16" else "reference")
        return model.to(dtype)

    return make


def relative(got: Tensor, want: Tensor) -> float:
    """||got - want|| / ||want||; NaN if either holds one."""
    return float((got.double() - want.double()).norm() / want.double().norm())
