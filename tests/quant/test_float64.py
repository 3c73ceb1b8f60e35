"""float64 is computed in fp32 inside of INT8 layers, on every backend alike, and comes out as float64."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.usable import RUNS, running, skip_unless_usable
from vggt_int8 import Recipe, VGGTInt8, quantize
from vggt_int8.difference import relative_error
from vggt_int8.quant import Int8Linear
from vggt_int8.recipe import Scheme

BACKENDS = running("dynamic")


@pytest.mark.parametrize(
    ("backend", "activations"), [(backend, kind) for backend in RUNS for kind in sorted(RUNS[backend] - {"llm_int8"})]
)
def test_an_int8_linear(backend: str, activations: str) -> None:
    scale = 0.01 if activations == "static" else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = Int8Linear.from_linear(nn.Linear(64, 24).double(), activations, backend, input_scale=scale)
        x = torch.rand(5, 64, dtype=torch.float64, requires_grad=True)
    skip_unless_usable(backend, layer.scheme)
    y = layer(x)
    assert y.dtype == torch.float64
    assert torch.equal(y.float(), layer(x.float()))
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float64


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_foreign_module(backend: str) -> None:
    skip_unless_usable(backend, Scheme())
    model = nn.Sequential(nn.Linear(16, 16), nn.Unflatten(1, (4, 2, 2)), nn.Conv2d(4, 4, 2)).double()
    quantize(model, Recipe(weights="int8", activations="dynamic", include=[".*"]), backend)
    assert model(torch.rand(3, 16, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_vggt(bare_int8: Path, tiny_images: Tensor, backend: str) -> None:
    skip_unless_usable(backend, Scheme())
    model = VGGTInt8.from_pretrained(bare_int8, dtype=torch.float64)
    model.set_runtime("off")
    want = model.float()(tiny_images, heads=("camera", "depth"))
    model.set_runtime("auto")
    model.double().set_backend(backend)
    assert model.dtype == torch.float64
    output = model(tiny_images, heads=("camera", "depth"))
    assert {value.dtype for value in output.values()} == {torch.float32}
    assert relative_error(output.depth, want.depth) < 0.02, "codes at their borders differ"
    assert model.runtime_report().mode == "plain"
    assert backend != "native" or "not in torch.float64" in model.runtime_report().reason


@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv2d])
def test_an_input_that_was_cast_to_the_weights_dtype_is_told(kind: type[nn.Module]) -> None:
    model = nn.Sequential(kind(*((4, 4) if kind is nn.Linear else (4, 4, 1))))
    quantize(model, Recipe(include=".*"))
    with pytest.raises(TypeError, match=r"must be floats, got torch.int8: .* keep the layer in the recipe \(Int8"):
        model(torch.rand(1, 4, 4, 4).to(model[0].weight.dtype))
