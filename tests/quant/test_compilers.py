"""Quantized modules under torch.compile, torch.export, torch.jit.trace and torch.onnx.export: one graph, equal results.

The graphs hold the very operators of eager mode, so most results are equal. Where they are not, `BOUND` covers sums in
another order: of 64 products of fp32, and of columns whose outliers are multiplied apart.
"""

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.usable import skip_unless_usable
from vggt_int8 import VGGT, Recipe, VGGTConfig, VGGTInt8, VGGTOutput, quantize
from vggt_int8.difference import relative_error
from vggt_int8.model import resize
from vggt_int8.model.dpt_head import DPTHead
from vggt_int8.quant import Int8Linear
from vggt_int8.quant.backends import BackendError
from vggt_int8.recipe import Scheme
from vggt_int8.runtime import Runtime

BOUND = 1e-6  # of the error's norm, relative to the result's
DYNAMIC = Recipe(weights="int8", activations="dynamic", include=[".*"])
WEIGHT_ONLY = Recipe(weights="int8", activations="none", include=[".*"])
OUTLIERS = Recipe(weights="int8", activations="dynamic", include=[".*"], outlier_threshold=0.8)
SLOW = pytest.mark.slow  # every backend is quick once, and so is every scheme
WAYS = [
    pytest.param("native", DYNAMIC, id="native"),
    pytest.param("native", WEIGHT_ONLY, id="native-weights", marks=SLOW),
    pytest.param("reference", DYNAMIC, id="reference", marks=SLOW),
    pytest.param("reference", WEIGHT_ONLY, id="reference-weights", marks=SLOW),
    pytest.param("reference", OUTLIERS, id="reference-outliers"),
    pytest.param("bitsandbytes", DYNAMIC, id="bitsandbytes"),
    pytest.param("bitsandbytes", OUTLIERS, id="bitsandbytes-outliers", marks=SLOW),
    pytest.param("torchao", DYNAMIC, id="torchao", marks=SLOW),
    pytest.param("torchao", WEIGHT_ONLY, id="torchao-weights"),
]


class Small(nn.Sequential):
    """Two linears and a convolution of somebody else's network."""

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            super().__init__(nn.Linear(64, 48), nn.GELU(), nn.Linear(48, 64), nn.Unflatten(1, (4, 4, 4)))
            self.append(nn.Conv2d(4, 2, 3))


def rows(count: int = 5) -> Tensor:
    return torch.rand(count, 64, generator=torch.Generator().manual_seed(count))


def error(got: Tensor, want: Tensor) -> float:
    assert got.dtype == want.dtype
    return relative_error(got, want)


def compiled(model: Callable[..., Any], backend: str = "eager") -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(model, backend=backend, fullgraph=True)


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "recipe"), WAYS)
def test_torch_compile_sees_one_graph(backend: str, recipe: Recipe) -> None:
    skip_unless_usable(backend, Scheme(recipe.activations, recipe.outlier_threshold))
    model = quantize(Small(), recipe, backend).eval()
    graph = compiled(model)
    with torch.no_grad():
        for count in (5, 7):  # compiled before the first eager call, and then for a size that varies
            assert error(graph(rows(count)), model(rows(count))) <= BOUND


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["native", "reference", "bitsandbytes", "torchao"])
def test_gradients_pass_a_compiled_layer(backend: str) -> None:
    skip_unless_usable(backend, Scheme())
    model = quantize(Small(), DYNAMIC, backend)
    gradients = []
    for call in (compiled(model, "aot_eager"), model):
        x = rows().requires_grad_()
        call(x).square().sum().backward()
        gradients.append(x.grad)
    assert error(*gradients) <= BOUND


def test_another_backend_is_another_graph() -> None:
    model = quantize(Small(), DYNAMIC, "reference")
    operators: list[str] = []

    def note(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        operators.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    graph, x = torch.compile(model, backend=note, fullgraph=True), rows()
    before = graph(x)
    assert "int8_linear_matmul" not in " ".join(operators)
    for module in model.modules():
        if isinstance(module, Int8Linear):
            module.backend = "bitsandbytes"
    assert error(graph(x), before) <= BOUND
    assert "int8_linear_matmul" in " ".join(operators)


def test_a_backend_that_cannot_run_is_named_by_the_compiler_too() -> None:
    model = nn.Sequential(Int8Linear.from_linear(nn.Linear(64, 8), "none", "bitsandbytes"))
    with pytest.raises(Exception, match="'bitsandbytes' cannot run") as caught:
        compiled(model)(rows())
    assert isinstance(caught.value, BackendError) or "BackendError" in str(caught.value)


@pytest.mark.parametrize(("backend", "recipe"), WAYS)
def test_torch_export(backend: str, recipe: Recipe) -> None:
    skip_unless_usable(backend, Scheme(recipe.activations, recipe.outlier_threshold))
    model = quantize(Small(), recipe, backend).eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (rows(),), dynamic_shapes=({0: batch},))
    for count in (5, 9):
        assert error(program.module()(rows(count)), model(rows(count))) <= BOUND


@pytest.mark.parametrize(("backend", "recipe"), WAYS)
def test_torch_jit_trace(backend: str, recipe: Recipe) -> None:
    skip_unless_usable(backend, Scheme(recipe.activations, recipe.outlier_threshold))
    model = quantize(Small(), recipe, backend).eval()
    traced = torch.jit.trace(model, (rows(),))
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    buffer.seek(0)
    for count in (5, 9):
        assert error(traced(rows(count)), model(rows(count))) <= BOUND
        buffer.seek(0)
        assert error(torch.jit.load(buffer)(rows(count)), model(rows(count))) <= BOUND


@pytest.mark.parametrize(("backend", "recipe"), WAYS)
def test_a_graph_for_onnx_has_standard_operators_alone(
    monkeypatch: pytest.MonkeyPatch, backend: str, recipe: Recipe
) -> None:
    """As `torch.onnx.export(dynamo=False)` traces it, which needs a package of its own to go on from there."""
    skip_unless_usable(backend, Scheme(recipe.activations, recipe.outlier_threshold))
    model = quantize(Small(), recipe, backend).eval()
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    traced = torch.jit.trace(model, (rows(),))
    kinds = {node.kind().partition("::")[0] for node in traced.inlined_graph.nodes()}
    assert kinds <= {"aten", "prim"}
    assert "ones_like" not in str(traced.inlined_graph), "which the exporter makes a constant of this many rows"
    assert error(traced(rows(9)), quantize(Small(), recipe, "reference")(rows(9))) <= BOUND


def test_points_for_onnx_need_no_operator_that_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """expm1, whose stand-in keeps the digits of small values."""
    head = DPTHead.__new__(DPTHead)
    nn.Module.__init__(head)
    head.activation = "inv_log"
    x = torch.cat([10.0 ** torch.arange(-30, 2), -(10.0 ** torch.arange(-30, 2)), torch.zeros(2)]).view(-1, 2)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    traced = torch.jit.trace(lambda x: head.activate(x), (x,))
    assert "expm1" not in str(traced.graph)
    want = x[:, :1].double()
    torch.testing.assert_close(traced(x)[0].double(), want.sign() * want.abs().expm1(), rtol=1e-6, atol=0)


@pytest.fixture(scope="module")
def few_layers(tiny_sizes: dict[str, Any]) -> VGGTConfig:
    """One of each part of the network, so that it compiles in seconds."""
    few = {"encoder_depth": 1, "depth": 1, "dpt_layers": [0, 0, 0, 0], "camera_depth": 1, "camera_iterations": 1}
    return VGGTConfig(**tiny_sizes | few | {"enable_point": False, "enable_track": False})


@pytest.fixture
def make_vggt(few_layers: VGGTConfig) -> Callable[[str], VGGTInt8]:
    """Builds a small VGGT of random weights, quantized for a backend."""

    def make(backend: str) -> VGGTInt8:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = VGGTInt8(few_layers).eval()
        quantize(
            model, Recipe(weights="int8", activations="dynamic", include=["aggregator.*", "depth_head.*"]), backend
        )
        return model

    return make


@pytest.mark.slow
def test_one_frame_for_onnx_makes_no_empty_tensor(few_layers: VGGTConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX expands nothing to no frames: it would make two of one. Gradients are on, as they are by default, though the
    exporter cannot look into functions with a gradient of their own.
    """
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    monkeypatch.setattr(resize, "_Resize", None)
    side = few_layers.img_size
    model = quantize(VGGT(few_layers).eval(), Recipe(weights="int8", activations="dynamic", include=["aggregator.*"]))
    assert any(parameter.requires_grad for parameter in VGGT(few_layers).parameters())
    for network in (model, VGGT(few_layers).eval()):
        traced = torch.jit.trace(network, (torch.rand(1, 3, side, side),), strict=False, check_trace=False)
        values = [value.type() for node in traced.inlined_graph.nodes() for value in node.outputs()]
        sizes = [value.sizes() for value in values if value.kind() == "TensorType"]
        assert len(sizes) > 100
        assert not [size for size in sizes if size and 0 in size]


def modules_alone(model: VGGTInt8, images: Tensor) -> VGGTOutput:
    """What the network's own modules give, which the fused network equals only closely."""
    model.set_runtime("off")
    output = model(images)
    model.set_runtime("auto")
    return output


def same(output: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert output.keys() == want.keys()
    for name in set(output) - {"intrinsic"}:  # which random weights make infinite, and pose_enc holds
        assert error(output[name], want[name]) <= BOUND, name


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["native", "bitsandbytes"])  # of one operator, and of several
@torch.no_grad()
def test_a_quantized_vggt_compiles_into_one_graph(
    make_vggt: Callable[[str], VGGTInt8], tiny_images: Tensor, backend: str
) -> None:
    model = make_vggt(backend)
    output, want = compiled(model)(tiny_images), modules_alone(model, tiny_images)
    assert isinstance(output, VGGTOutput)
    same(output, want)
    assert model(tiny_images).keys() == want.keys()  # and goes on as it was


@pytest.mark.slow
@torch.no_grad()
def test_a_quantized_vggt_is_exported_and_traced(make_vggt: Callable[[str], VGGTInt8], tiny_images: Tensor) -> None:
    model = make_vggt("native")
    model(tiny_images)  # fused
    assert model.runtime_report().mode == "fused"
    want = modules_alone(model, tiny_images)
    exported = torch.export.export(model, (tiny_images,)).module()(tiny_images)
    traced = torch.jit.trace(model, (tiny_images,), strict=False, check_trace=False)(tiny_images)  # which gives a dict
    for output in (exported, traced):
        same(output, want)
    fused = Runtime(model)
    with pytest.raises(BackendError, match="a tracer records"):
        torch.jit.trace(lambda images: fused(images).depth, (tiny_images,), check_trace=False)
