"""The operators on a CPU: schema, fake tensors, operand checks. Their CUDA side is in `cuda/`."""

import copy
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from tests.kernels.compiled import without
from vggt_int8.kernels import ops, reference, reference_attention
from vggt_int8.kernels.epilogue import Epilogue


def operands() -> dict[str, tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 64, generator=generator).half()
    vector, scale = torch.rand(64, generator=generator).half(), torch.tensor(0.05)
    weight = torch.randint(-127, 128, (24, 64), generator=generator, dtype=torch.int8)
    weight_scale = torch.rand(24, 1, generator=generator)
    gemm = (*reference.quantize_rows(x), weight, weight_scale, None, torch.float16)
    qkv, head = torch.randn(10, 3, 2, 16, generator=generator), torch.rand(16, generator=generator)
    return {
        "quantize_rows": (x,),
        "quantize_rows static": (x, scale),
        "quantize_rows static, for each row": (x, torch.rand(5, 1, generator=generator)),
        "layer_norm_quantize": (x, vector, vector, 1e-5),
        "layer_norm_quantize static": (x, vector, vector, 1e-5, scale),
        "int8_gemm": (*gemm, True),
        "int8_gemm residual": (*gemm, False, torch.rand(24), torch.rand(5, 24)),
        "int8_gemm_quantize": (*gemm, True, None, None, None),
        "int8_gemm_quantize rotated": (*gemm, True, None, None, None, 8),
        "int8_gemm_quantize static": (*gemm, True, None, None, scale),
        "int8_gemm_quantize static rotated": (*gemm, True, None, None, torch.rand(5, 1, generator=generator), 8),
        "qk_norm_rope_": (qkv, head, head, head, head, torch.rand(2, 5, 16), 1e-5),
        "norm_rope_": (qkv[:, 1:].contiguous(), head, head, torch.rand(2, 5, 16), 1e-5),
        "int8_gemm_into_": (torch.rand(5, 24).half(), *gemm, False, torch.rand(24), torch.rand(5, 24)),
        "layer_norm_halves": (x.view(1, 5, 64), x.view(1, 5, 64) * 2, 2, torch.rand(128), torch.rand(128), 1e-5),
        "resize": (x.view(1, 5, 8, 8), 7, 9, torch.rand(9, 4), torch.rand(7, 4), vector[:8], torch.rand(1, 7, 9, 8)),
        "resize alone": (x.view(1, 5, 8, 8), 7, 9),
        "resize strided": (x.float().view(1, 5, 8, 8).permute(0, 3, 1, 2), 8, 5),
        "dequantize fp32": (weight.view(24, 16, 4), weight_scale.view(24, 1, 1), torch.float32),
        "predict_": (
            x.view(1, 5, 4, 16),
            vector[:64].view(4, 16),
            None,
            True,
            torch.rand(1, 5, 4, 3),
            torch.rand(1, 5, 4),
        ),
        "dequantize": (weight.view(24, 16, 4), weight_scale.view(24, 1, 1), torch.float16),
        "w8a16_linear": (x, weight, weight_scale, torch.rand(24)),
        "w8a16_linear rotated": (x, weight, weight_scale, None, 32),
        "float_attention": tuple(qkv.view(2, 5, 3, 2, 16).half().permute(2, 0, 3, 1, 4).unbind(0)),
        "float_attention_quantize": (
            *qkv.view(2, 5, 3, 2, 16).half().permute(2, 0, 3, 1, 4).unbind(0),
            torch.rand(5, generator=generator) * 0.01,
        ),
    }


def packed(case: str, arguments: Sequence[Any]) -> list[Any]:
    """Operands as they are called with: PyTorch knows the fields of an `Epilogue`."""
    tensors = {"int8_gemm": 4, "int8_gemm_quantize": 4, "int8_gemm_into_": 5}.get(case.split()[0])
    return list(arguments) if tensors is None else [*arguments[:tensors], Epilogue(*arguments[tensors:])]


@pytest.mark.parametrize("case", operands())
def test_opcheck(case: str) -> None:
    opcheck(getattr(ops, case.split()[0]).op, operands()[case])


@pytest.mark.parametrize("through_pytorch", [True, False])
@pytest.mark.parametrize("case", [case for case in operands() if not case.endswith("_")])
def test_equals_its_definition(case: str, through_pytorch: bool) -> None:
    name, arguments = case.split()[0], packed(case, operands()[case])
    definitions = reference_attention if "attention" in name else reference
    with torch.set_grad_enabled(through_pytorch):
        got, want = getattr(ops, name)(*arguments), getattr(definitions, name)(*arguments)
    for a, b in zip(*((r,) if isinstance(r, Tensor) else r for r in (got, want)), strict=True):
        assert torch.equal(a, b)


def test_qk_norm_rope_writes_in_place() -> None:
    qkv, *rest = operands()["qk_norm_rope_"]
    want = reference.qk_norm_rope(qkv, *rest)
    assert not torch.equal(want, qkv)
    ops.qk_norm_rope_(qkv, *rest)
    torch.testing.assert_close(qkv, want, rtol=1e-6, atol=1e-6)


def test_results_that_are_written_in_place() -> None:
    out, *rest = packed("int8_gemm_into_", operands()["int8_gemm_into_"])
    ops.int8_gemm_into_(out, *rest)
    assert torch.equal(out, reference.int8_gemm(*rest))
    *inputs, values, confidence = operands()["predict_"]
    ops.predict_(*inputs, values, confidence)
    for got, want in zip((values, confidence), reference.predict(*inputs), strict=True):
        assert torch.equal(got, want)


def test_resize_is_that_of_pytorch() -> None:
    x, _, _, columns, rows, bias, addend = operands()["resize"]
    x = x.float()
    want = torch.nn.functional.interpolate(x.permute(0, 3, 1, 2), size=(7, 9), mode="bilinear", align_corners=True)
    torch.testing.assert_close(ops.resize(x, 7, 9), want.permute(0, 2, 3, 1), rtol=1e-6, atol=1e-6)
    want = want + bias.float()[:, None, None] + addend.permute(0, 3, 1, 2)
    want[:, :4] += columns.T[:, None]
    want[:, 4:] += rows.T[:, :, None]
    torch.testing.assert_close(ops.resize(x, 7, 9, columns, rows, bias, addend), want.permute(0, 2, 3, 1))


def test_smoothing_folds_into_the_norm() -> None:
    x, weight, bias, eps = operands()["layer_norm_quantize"]
    factor = torch.linspace(0.5, 2, 64)
    codes, scale = reference.layer_norm_quantize(x, weight / factor, bias / factor, eps)
    y = torch.nn.functional.layer_norm(x.float(), (64,), weight.float(), bias.float(), eps) / factor
    assert (codes * scale - y).abs().max() <= scale.max() * 0.51


def test_pytorch_is_left_out_only_where_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Watcher(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    (x,) = operands()["quantize_rows"]
    want = ops.quantize_rows(x)
    with torch.no_grad():
        with Watcher():
            ops.quantize_rows(x)
        assert seen == ["vggt_int8.quantize_rows.default"]
        compiled = torch.compile(lambda x: ops.quantize_rows(x), backend="eager", fullgraph=True)
        got = [compiled(x), ops.quantize_rows(x.as_subclass(Subclass)), ops.quantize_rows(x=x)]
        monkeypatch.setattr(ops.quantize_rows, "op", None)
        got.append(ops.quantize_rows(x))
    for codes, scale in got:
        assert torch.equal(codes, want[0])
        assert torch.equal(scale, want[1])
    with pytest.raises(TypeError, match="NoneType"):
        ops.quantize_rows(x)


class Subclass(Tensor):
    pass


def in_fp32(case: str) -> list[Any]:
    """Operands that compiled kernels take."""
    return packed(
        case,
        [
            a.float() if isinstance(a, Tensor) and a.is_floating_point() else torch.float32 if a == torch.float16 else a
            for a in operands()[case]
        ],
    )


def result(function: Any, arguments: list[Any]) -> list[Tensor]:
    """What is returned, or what is written to."""
    got = function(*arguments)
    got = [a for a in arguments if isinstance(a, Tensor)] if got is None else got
    return [got] if isinstance(got, Tensor) else list(got)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("case", operands())
def test_defaults_of_the_process_do_not_matter(case: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        without(monkeypatch)
    operator, originals = getattr(ops, case.split()[0]), in_fp32(case)
    with torch.no_grad():
        want = result(operator, copy.deepcopy(originals))
        for dtype, device in ((torch.float64, "cpu"), (torch.float16, "cpu"), (torch.float32, "meta")):
            arguments = copy.deepcopy(originals)
            torch.set_default_dtype(dtype)
            try:
                with torch.device(device):
                    got = result(operator, arguments)
            finally:
                torch.set_default_dtype(torch.float32)
            for a, b in zip(got, want, strict=True):
                assert a.dtype == b.dtype
                assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("case", [case for case in operands() if not case.split()[0].endswith("_")])
def test_traced(case: str) -> None:
    first, *rest = in_fp32(case)
    operator = getattr(ops, case.split()[0])
    with torch.no_grad():
        traced = torch.jit.trace(lambda x: operator(x, *rest), first)
        for a, b in zip(result(traced, [first]), result(operator, [first, *rest]), strict=True):
            assert torch.equal(a, b)


def test_operands_of_another_device() -> None:
    x, weight, bias, eps = in_fp32("layer_norm_quantize")
    with torch.no_grad(), pytest.raises(ValueError, match="all operands must be on one device, not on cpu and meta"):
        ops.layer_norm_quantize(x, weight, bias.to("meta"), eps)
    with torch.no_grad(), pytest.raises(ValueError, match="all operands must be on one device, not on cpu and meta"):
        ops.layer_norm_quantize(x, weight, bias, eps, input_scale=torch.ones(1, device="meta"))


@pytest.mark.parametrize("through_pytorch", [True, False])
@pytest.mark.parametrize(
    ("case", "position", "value", "message"),
    [
        ("quantize_rows", 0, torch.zeros(2, 3, 4), r"x must be a float tensor of 2 dimensions, not torch.float32 \[2,"),
        ("quantize_rows static", 1, torch.ones(4, 1), r"input_scale .* divide the 5 rows, .* torch.float32 \[4, 1\]"),
        ("quantize_rows static", 1, torch.ones(0), r"input_scale .* divide the 5 rows, .* not torch.float32 \[0\]"),
        ("layer_norm_quantize static", 4, torch.ones(2), r"input_scale .* divide the 5 rows, .* torch.float32 \[2\]"),
        ("int8_gemm", 0, torch.ones(64, dtype=torch.int8), r"x_codes and weight must be int8 .* torch.int8 \[64\]"),
        ("int8_gemm", 2, torch.ones(64, dtype=torch.int8), r"x_codes and weight must be int8 .* torch.int8 \[64\]"),
        ("int8_gemm_into_", 0, torch.ones(5, 24, dtype=torch.int8), r"out must be torch.float16, as .* not torch.int8"),
        ("qk_norm_rope_", 5, torch.ones(1, 5, 16), r"rope must be \[2, P, 16\] .* not \[1, 5, 16\]"),
        ("qk_norm_rope_", 5, torch.ones(2, 0, 16), r"a multiple of P > 0 .* not \[2, 0, 16\]"),
        ("resize alone", 0, torch.ones(1, 0, 8, 8), r"maps must have pixels: x is \[1, 0, 8, 8\], its result 7 x 9"),
        ("resize alone", 1, 0, r"maps must have pixels: x is \[1, 5, 8, 8\], its result 0 x 9"),
        ("dequantize", 0, torch.ones(24, dtype=torch.int8), r"weight must be int8 \[A, B, T\] .* \[24\] with"),
        ("layer_norm_quantize", 1, torch.ones(3), r"weight and bias must be \[64\] for x \[5, 64\], not \[3\]"),
        ("layer_norm_quantize", 2, torch.ones(3), r"weight and bias must be \[64\] for x .* not \[64\] and \[3\]"),
        ("int8_gemm", 2, torch.ones(24, 64), r"x_codes and weight must be int8 .* torch.float32 \[24, 64\]"),
        ("int8_gemm", 1, torch.ones(1), r"x_scale \[5, 1\] and weight_scale \[24, 1\], not \[1\]"),
        ("int8_gemm residual", 8, torch.ones(5, 1), r"residual must be \[5, 24\] and come with gamma \[24\], not"),
        ("int8_gemm", 4, torch.ones(1), r"bias must have 24 values, not \[1\]"),
        ("int8_gemm_quantize static", 9, torch.ones(2), r"out_scale .* divide the 5 rows, .* not torch.float32 \[2\]"),
        ("int8_gemm_quantize static", 9, torch.ones(0), r"out_scale .* divide the 5 rows, .* not torch.float32 \[0\]"),
        ("int8_gemm_quantize static", 9, torch.ones(5).half(), r"out_scale must be fp32 .* not torch.float16 \[5\]"),
        ("int8_gemm_quantize", 8, torch.ones(5, 24), r"residual must be \[5, 24\] and come with gamma \[24\]"),
        ("int8_gemm_quantize static rotated", 10, 16, r"rotation must be 0 or a power .* the 24 channels, not 16"),
        ("float_attention_quantize", 3, torch.ones(3), r"out_scale .* divide the 10 rows, .* not torch.float32 \[3\]"),
        ("w8a16_linear rotated", 4, 24, "rotation must be 0 or a power .* that divides the 64 channels, not 24"),
        ("w8a16_linear", 1, torch.ones(24, 63, dtype=torch.int8), r"weight must be int8 \[N, 64\], not .*\[24, 63\]"),
        ("w8a16_linear", 2, torch.ones(1, 1), r"weight_scale must have 24 values, not \[1, 1\]"),
        ("predict_", 2, torch.ones(1), r"bias must have 4 values, not \[1\]"),
        ("int8_gemm_into_", 0, torch.ones(5, 23), r"out must be contiguous \[5, 24\], not \[5, 23\]"),
        ("layer_norm_halves", 2, 6, r"skip in \[0, 5\], not \[1, 5, 64\], \[128\] and 6"),
        ("resize", 4, None, r"columns and rows come together"),
        ("resize", 6, torch.ones(1, 7, 8, 8), r"addend must be \[1, 7, 9, 8\] for a result of 7 x 9, not \[1,"),
        ("predict_", 4, torch.ones(1, 5, 4, 3).half(), r"values must be contiguous fp32 \[1, 5, 4, 3\], not "),
        ("dequantize", 1, torch.ones(24), r"weight must be int8 .* with \[24\]"),
        ("float_attention", 1, torch.ones(2, 2, 4, 16).half(), r"v must be .* \[2, 2, 4, 16\] for q .*, not "),
        ("float_attention", 1, torch.ones(2, 1, 5, 16).half(), r"k must be .* for q .*, not .* \[2, 1, 5, 16\]"),
        ("float_attention", 2, torch.ones(2, 2, 5, 16), r"v must be torch.float16 .* not torch.float32"),
        ("norm_rope_", 0, torch.ones(10, 3, 2, 16), r"x must be contiguous \[T, 1 or 2, H, D\], not \[10, 3, 2, 16\]"),
        ("norm_rope_", 3, torch.ones(2, 3, 16), r"10 tokens a multiple of P .* not \[2, 3, 16\]"),
        ("qk_norm_rope_", 5, torch.ones(2, 3, 16), r"10 tokens a multiple of P .* not \[2, 3, 16\]"),
    ],
)  # fmt: skip
def test_wrong_operands(case: str, position: int, value: Tensor, message: str, through_pytorch: bool) -> None:
    arguments = list(operands()[case])
    arguments[position] = value
    with torch.set_grad_enabled(through_pytorch), pytest.raises(ValueError, match=message):
        getattr(ops, case.split()[0])(*packed(case, arguments))


@pytest.mark.parametrize(
    ("case", "position"),
    [("qk_norm_rope_", 0), ("norm_rope_", 0), ("int8_gemm_into_", 0), ("predict_", 4), ("predict_", 5)],
)
def test_what_is_written_in_place_must_be_contiguous(case: str, position: int) -> None:
    """Kernels take contiguous operands: of any other, a copy would be written."""
    arguments = list(operands()[case])
    arguments[position] = arguments[position].mT.contiguous().mT
    with pytest.raises(ValueError, match="must be contiguous"):
        getattr(ops, case)(*packed(case, arguments))


@pytest.mark.parametrize("follows", [{"rotation": 8}, {"out_scale": torch.ones(1)}])
def test_floats_are_neither_rotated_nor_codes(follows: dict[str, Any]) -> None:
    *tensors, epilogue = packed("int8_gemm", operands()["int8_gemm"])
    with pytest.raises(ValueError, match=r"stays floats takes neither a rotation nor an out_scale, call int8_ge"):
        ops.int8_gemm(*tensors, epilogue._replace(**follows))


@pytest.mark.slow
def test_import_does_not_need_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import vggt_int8.kernels.ops, vggt_int8.kernels.cpu.matmul"
    subprocess.run([sys.executable, "-c", code], check=True)
