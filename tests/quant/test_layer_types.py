"""The table of INT8 layers: what each kind stores, computes with, and asks of backends."""

import pytest
import torch
from torch import Tensor, nn

from tests.usable import running
from vggt_int8 import BackendError, Recipe, quantize
from vggt_int8.difference import relative_error
from vggt_int8.kernels.cpu import matmul
from vggt_int8.quant import quantization_report
from vggt_int8.quant.layer import int8_layers
from vggt_int8.quant.layer_types import INT8_TYPES, WITH_WEIGHTS, int8_type
from vggt_int8.recipe import Rule, Scheme

FLOATS: list[nn.Module] = [
    nn.Linear(6, 4),
    nn.Linear(6, 4, bias=False),
    nn.Conv2d(4, 6, 3),
    nn.ConvTranspose2d(4, 6, 2, bias=False),
]
STORED = {
    nn.Linear: {"weight", "weight_scale"},
    nn.Conv2d: {"weight", "weight_scale"},
    nn.ConvTranspose2d: {"weight", "weight_scale"},
}


@pytest.mark.parametrize("layer", FLOATS, ids=str)
def test_every_row_of_the_table(layer: nn.Module) -> None:
    kind = int8_type(layer)
    assert kind is INT8_TYPES[type(layer)]
    assert isinstance(layer, WITH_WEIGHTS)
    scheme = kind.narrowed(Scheme("dynamic", 6.0))
    assert scheme == (Scheme("dynamic", 6.0) if isinstance(layer, nn.Linear) else Scheme("none"))
    bias = {"bias"} if getattr(layer, "bias", None) is not None else set()
    for new in (kind.of(layer, scheme, "reference"), kind.unfilled(layer, scheme, "reference")):
        assert isinstance(new, kind)
        assert isinstance(new, nn.Module)
        assert set(new.state_dict()) == STORED[type(layer)] | bias
        assert (new.scheme, new.backend, new.runs_on("cpu")) == (scheme, "reference", "reference")
        assert new.kernel("cpu")
        assert new.reason("cpu")
        shapes = {name: tensor.shape for name, tensor in new.state_dict().items()}
        assert shapes["weight_scale"].numel() in (4, 6)


class Mixed(nn.Module):
    """A weight-only linear and a convolution beside one with INT8 activations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.head = nn.Conv2d(3, 16, 2), nn.Linear(16, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.first(self.conv(x).flatten(1)).relu())
        return y


MIXED = Recipe(rules=(Rule("head", activations="none"), Rule(".*")))


@pytest.mark.parametrize("backend", ["auto", *running("dynamic")])
def test_weight_only_layers_beside_codes_ask_for_the_same_backend_or_the_reference(backend: str) -> None:
    if backend in ("torchao", "bitsandbytes") and not matmul.int_mm_is_exact():
        pytest.skip("this CPU's integer product saturates")
    torch.manual_seed(0)
    plain, x = Mixed(), torch.randn(5, 3, 2, 2)
    want = plain(x)
    model = quantize(plain, MIXED, backend)
    rows = {row.name: row for row in quantization_report(model)}
    assert rows["first"].backend == ("native" if backend == "auto" else backend)
    assert rows["head"].scheme == rows["conv"].scheme == "W8A16"
    if backend == "bitsandbytes":
        assert (rows["head"].backend, rows["head"].reason) == (
            "reference",
            "bitsandbytes: it has no weight-only INT8",
        )
    else:
        assert (rows["head"].backend, rows["head"].reason) == (rows["first"].backend, rows["first"].reason)
    assert rows["conv"].backend == "reference"
    with torch.no_grad():
        assert relative_error(model(x), want) < 0.03  # three layers with codes of 7 bits and a sign


def test_a_backend_with_nothing_to_do_is_refused() -> None:
    recipe = Recipe(weights="keep", rules=(Rule("head", weights="int8", activations="none"),))
    for backend in ("native", "torchao", "reference"):
        ((name, layer),) = int8_layers(quantize(Mixed(), recipe, backend))
        assert (name, layer.runs_on("cpu")) == ("head", backend)
    with pytest.raises(BackendError, match="no layer for backend 'bitsandbytes'"):
        quantize(Mixed(), recipe, "bitsandbytes")
    with pytest.raises(BackendError, match="'bitsandbytes' cannot run W8A16"):
        quantize(Mixed(), Recipe(activations="none"), "bitsandbytes")
    with pytest.raises(BackendError, match="there is no backend 'portable'"):
        quantize(Mixed(), recipe, "portable")
