"""The per-layer report and the size of a model, against numbers worked out by hand."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vggt_int8 import Recipe, VGGTInt8, estimate_model_size, quantize
from vggt_int8.kernels.cpu import compiled, matmul
from vggt_int8.machine import int_mm_is_exact
from vggt_int8.quant import quantization_report, quantize_module
from vggt_int8.quant.report import LayerReport, QuantizationReport

# What runs weight-only linears of a recipe for INT8 activations under each backend.
BESIDE = {"native": "native", "torchao": "torchao", "bitsandbytes": "reference", "reference": "reference"}


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(10, 20), nn.LayerNorm(20), nn.Linear(20, 5, bias=False), nn.Conv2d(3, 4, 2))


def test_rows_of_a_small_model() -> None:
    model = small()
    plan = quantize_module(model, Recipe(exclude="2"))
    report = quantization_report(model, plan)
    assert len(report) == 4
    rows = {row.name: row for row in report}
    assert [row.name for row in report] == ["0", "1", "2", "3"]
    linear = rows["0"]
    assert (linear.type, linear.scheme, linear.backend) == ("Int8Linear", "W8A8 dynamic", "native")
    assert (linear.kernel, linear.reason) == (matmul.cpu_int8_kernel(), "auto: native")
    assert linear.bytes == 10 * 20 + 20 * 4 + 20 * 2
    assert (rows["1"].scheme, rows["1"].backend, rows["1"].kernel) == ("float32", "pytorch", "LayerNorm")
    assert rows["1"].bytes == 2 * 20 * 4
    assert rows["1"].reason == "LayerNorm is not quantized"
    assert (rows["2"].scheme, rows["2"].reason, rows["2"].bytes) == ("float32", "excluded", 400)
    assert (rows["3"].type, rows["3"].scheme, rows["3"].backend) == ("Int8Conv2d", "W8A16", "reference")
    assert "alike under every backend" in rows["3"].reason
    assert rows["3"].bytes == 4 * 3 * 4 + 4 * 4 + 4 * 2
    summary = str(report)
    assert "W8A8 dynamic" in summary
    assert summary.splitlines()[-1].split()[:2] == ["4", "layers"]
    assert len(summary.splitlines()) == 5


@pytest.mark.parametrize(
    ("recipe", "backend", "name", "kernel"),
    [
        ("int8_dynamic", "auto", "native", ""),
        ("int8_dynamic", "reference", "reference", "int32 matmul"),
        ("int8_dynamic", "torchao", "torchao", "Int8Tensor linear in fp32"),
        ("int8_dynamic", "bitsandbytes", "bitsandbytes", "int8_linear_matmul"),
        ("int8_weight_only", "native", "native", "dequantize in slices + matmul"),
        ("int8_weight_only", "torchao", "torchao", "Int8Tensor dequantize"),
        ("llm_int8", "bitsandbytes", "bitsandbytes", "input columns >= 6 in fp32"),
        ("llm_int8", "reference", "reference", "outlier columns in fp32"),
    ],
)
def test_every_layer_of_vggt(
    make_bare: Callable[[], VGGTInt8], recipe: str, backend: str, name: str, kernel: str
) -> None:
    if name in ("torchao", "bitsandbytes") and not int_mm_is_exact():
        pytest.skip("this CPU's integer product saturates")
    model = quantize(make_bare(), recipe, backend)
    report = model.quantization_report()
    owners = [n for n, module in model.named_modules() if list(module.parameters(recurse=False))]
    assert [row.name for row in report] == owners
    assert sum(row.bytes for row in report) == pytest.approx(1e6 * estimate_model_size(model)["total_mb"])
    for row in report:
        assert row.reason, row
        part = row.name.split(".")[0]
        if row.type == "Int8Linear" and (part != "camera_head" or recipe == "int8_weight_only"):
            assert row.backend == name
            assert kernel in row.kernel
            assert row.reason == ("auto: native" if backend == "auto" else "requested")
        elif row.type == "Int8Linear":
            assert (row.scheme, row.backend) == ("W8A16", BESIDE[name])
            reason = {"auto": "auto: native", "bitsandbytes": "bitsandbytes: it has no weight-only INT8"}
            assert row.reason == reason.get(backend, "requested")
        elif row.type.startswith("Int8Conv"):
            assert (row.scheme, row.backend) == ("W8A16", "reference")
        else:
            assert (row.scheme, row.backend) == ("float32", "pytorch")
    kept = {row.name: row.reason for row in report if row.type in ("Linear", "Conv2d")}
    assert kept["camera_head.embed_pose"] == "pose embedding"
    assert kept["aggregator.patch_embed.patch_embed.proj"] == "patch embedding"


@pytest.mark.parametrize("in_c", [True, False])
def test_weight_only_kernels_are_those_of_a_call(
    make_tiny: Callable[[], VGGTInt8], tiny_images: Tensor, in_c: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = compiled.library()
    if in_c and library is None:
        pytest.skip("there are no compiled kernels here")
    if not in_c:
        monkeypatch.setattr(compiled, "library", lambda: None)
        monkeypatch.setattr(matmul, "cpu_int8_kernel", lambda: matmul.FLOAT32)
    called, call = set(), compiled.call
    monkeypatch.setattr(compiled, "call", lambda name, *rest: called.add(name) or call(name, *rest))
    model = quantize(make_tiny(), "int8_dynamic", "native")
    with torch.no_grad():
        model(tiny_images)
    assert model.runtime_report().mode == "fused"
    linear, conv = weight_only_kernels(model)
    assert ("vi_weight_only" in called) == ("vi_conv" in called) == in_c
    if library is not None and in_c:
        assert linear == f"{library.name} for few rows of fp32, else dequantize in slices + matmul"
        assert conv == f"conv2d of int8 and 16-bit integers, {library.name}"
    else:
        assert (linear, conv) == ("dequantize in slices + matmul", "dequantize + conv2d")
    model.bfloat16()  # which the compiled convolution does not take
    assert weight_only_kernels(model)[1] == "dequantize + conv2d"
    model.float().set_backend("reference")  # which runs module by module
    assert weight_only_kernels(model) == ("fp32 matmul of codes", "dequantize + conv2d")


def weight_only_kernels(model: VGGTInt8) -> tuple[str, str]:
    rows = {row.name: row.kernel for row in model.quantization_report()}
    return rows["camera_head.trunk.0.mlp.fc1"], rows["depth_head.scratch.output_conv1"]


def test_a_model_that_is_not_quantized(make_tiny: Callable[[], VGGTInt8]) -> None:
    rows = list(make_tiny().quantization_report())
    assert {row.scheme for row in rows} == {"float32"}
    assert {row.backend for row in rows} == {"pytorch"}


def test_it_names_the_global_attention_of_calls_that_do_not_say_it(make_tiny: Callable[[], VGGTInt8]) -> None:
    model = make_tiny()
    assert str(model.quantization_report()).endswith("global attention: exact")
    quantize(model, Recipe(global_attention="keyframes", keyframes=3))
    assert model.quantization_report().global_attention == "keyframes (K = 3)"
    assert quantization_report(nn.Sequential(nn.Linear(8, 8))).global_attention is None


def test_it_names_what_attended_in_global_blocks_of_the_last_call(
    make_tiny: Callable[[], VGGTInt8], tiny_images: torch.Tensor
) -> None:
    model = quantize(make_tiny(), "int8_dynamic", "native")
    assert model.quantization_report().attention_kernels == ()
    library = compiled.library()
    for mode, kernel in (
        ("on", library.name if library else "PyTorch flash_attention"),
        ("off", "PyTorch scaled_dot_product_attention"),
    ):
        model.set_runtime(mode)
        with torch.no_grad():
            model(tiny_images, global_attention="keyframes", keyframes=1)
        assert model.quantization_report().attention_kernels == (kernel,)
        assert f"attention of the last call: {kernel}" in str(model.quantization_report())
        assert str(model.runtime_report()).splitlines()[1] == f"global attention: keyframes (K = 1), by {kernel}"


def test_sizes_by_hand() -> None:
    model = nn.Sequential(nn.Linear(1000, 500), nn.Linear(500, 100, bias=False).half())
    model.register_buffer("table", torch.zeros(250, 1000, dtype=torch.int64))
    assert estimate_model_size(model) == pytest.approx(
        {
            "params_mb": 2.002 + 0.1,
            "buffers_mb": 2.0,
            "total_mb": 4.102,
            "float32_mb": 2.002,
            "float16_mb": 0.1,
            "int64_mb": 2.0,
        }
    )


def test_shared_tensors_count_once_and_meta_tensors_count() -> None:
    for device in ("cpu", "meta"):
        model = nn.Sequential(*(nn.Linear(100, 100, bias=False, device=device) for _ in range(2)))
        assert estimate_model_size(model)["total_mb"] == pytest.approx(0.08)
        model[1].weight = model[0].weight
        assert estimate_model_size(model)["total_mb"] == pytest.approx(0.04)


def test_int8_size_by_hand() -> None:
    model = nn.Sequential(nn.Linear(1000, 500))
    quantize(model, Recipe())
    assert estimate_model_size(model) == pytest.approx(
        {
            "params_mb": 0.5 + 0.002 + 0.001,
            "buffers_mb": 0.0,
            "total_mb": 0.503,
            "int8_mb": 0.5,
            "float32_mb": 0.002,
            "float16_mb": 0.001,
        }
    )


def test_the_summary_adds_up_the_bytes_of_a_kind() -> None:
    sizes = {"qkv": 3_000_000, "proj": 4_000_000}
    rows = [LayerReport(name, "Int8Linear", "W8A16", "native", "gemm", size, "") for name, size in sizes.items()]
    kept = LayerReport("norm", "LayerNorm", "float16", "pytorch", "LayerNorm", 500_000, "")
    lines = [line.split() for line in str(QuantizationReport((*rows, kept))).splitlines()]
    assert [line[:4] for line in lines] == [
        ["2", "layers", "7.00", "MB"],
        ["1", "layer", "0.50", "MB"],
        ["3", "layers", "7.50", "MB"],
    ]
