"""The kernels that the report names are those that run: in a fused call, and on the network's own modules."""

import pytest
import torch
from torch import Tensor, nn

from tests.runtime.conftest import Make
from vggt_int8 import VGGT, Recipe, VGGTInt8, quantize
from vggt_int8.quant import Int8Conv2d, Int8ConvTranspose2d, Int8Linear, quantization_report
from vggt_int8.quant.storage import Int8Storage
from vggt_int8.runtime import Runtime

KINDS = (Int8Linear, Int8Conv2d, Int8ConvTranspose2d)
POINTS = torch.tensor([[3.0, 4.0], [13.0, 9.0]])


def called(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the INT8 layers that are called as modules, from here on."""
    found, names = set(), {module: name for name, module in model.named_modules()}
    for kind in KINDS:
        forward = kind.forward
        monkeypatch.setattr(
            kind, "forward", lambda self, *a, f=forward, **k: found.add(names[self]) or f(self, *a, **k)
        )
    return found


def int8_layers(model: nn.Module) -> dict[str, Int8Storage]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Int8Storage)}


@pytest.fixture
def all_int8(make_quantized: Make) -> VGGTInt8:
    """Every layer that can be INT8 is, in the parts that shipped recipes keep as well."""
    return quantize(make_quantized("none"), Recipe(), backend="native")


def test_a_fused_call_names_all_layers_but_those_that_it_calls(
    all_int8: VGGTInt8, tiny_images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = called(all_int8, monkeypatch)
    all_int8(tiny_images, POINTS, check_finite=False)
    assert all_int8.runtime_report().mode == "fused"
    fused, layers = all_int8.fused_kernels("cpu"), int8_layers(all_int8)
    decoded = {name for name in layers if name.endswith("output_conv2.2")}  # by the kernel that predicts, as ever
    assert len(decoded) == 2
    assert fused.keys() == layers.keys() - modules - decoded
    assert {name.split(".")[0] for name in fused} == {
        "aggregator",
        "camera_head",
        "depth_head",
        "point_head",
        "track_head",
    }
    assert {"aggregator.patch_embed.patch_embed.proj"} < modules
    rows = {row.name: row.kernel for row in all_int8.quantization_report()}
    assert all(rows[name] == fused.get(name, layers[name].kernel("cpu")) for name in layers)


def test_calls_of_modules_name_the_modules_own(
    all_int8: VGGTInt8, tiny_images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_int8.set_runtime("off")
    modules, layers = called(all_int8, monkeypatch), int8_layers(all_int8)
    all_int8(tiny_images, POINTS, check_finite=False)
    assert modules == layers.keys()
    rows = {row.name: row.kernel for row in all_int8.quantization_report()}
    assert all(rows[name] == layer.kernel("cpu") for name, layer in layers.items())


def test_asked_for_fused_calls_take_the_native_kernels(make_quantized: Make, tiny_images: Tensor) -> None:
    model = make_quantized("int8_dynamic")  # on the reference backend
    name = "aggregator.frame_blocks.0.attn.qkv"
    own, native = "int32 matmul", Int8Linear.from_linear(nn.Linear(8, 8), backend="native").kernel("cpu")
    assert kernel_of(model, name) == own
    model.set_runtime("on")
    assert kernel_of(model, name) == native
    model(tiny_images)
    assert model.runtime_report().mode == "fused"
    model.set_backend("native")
    model.set_runtime("auto")
    assert kernel_of(model, name) == native
    model.aggregator.frame_blocks[1].forward = None  # so no call runs fused
    assert model.fused_kernels("cpu") == {}


def test_the_plain_class_calls_its_modules(tiny_sizes: dict[str, object]) -> None:
    """`Runtime(model)` runs it fused, which is not a call of the model."""
    from vggt_int8 import VGGTConfig

    model = quantize(VGGT(VGGTConfig(**tiny_sizes)).eval(), "int8_dynamic", "native")
    layers = int8_layers(model)
    rows = {row.name: row.kernel for row in quantization_report(model)}
    assert all(rows[name] == layer.kernel("cpu") for name, layer in layers.items())
    assert set() < Runtime(model).kernels("cpu").keys() <= layers.keys()


def kernel_of(model: VGGTInt8, name: str) -> str:
    return next(row.kernel for row in model.quantization_report() if row.name == name)
