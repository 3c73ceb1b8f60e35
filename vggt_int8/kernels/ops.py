"""The fused kernels as PyTorch operators `vggt_int8::…`: what the runtime calls, and what torch.compile sees.

Each is defined, and its arguments are described, in `reference.py` or `reference_attention.py`. On a CPU it is the
function of the same name in `cpu/ops.py`, or the definition itself where there is none; on CUDA it is the Triton kernel
of the same name. Operands are checked on both. Triton is imported by the first call on CUDA. No operator synchronises
with the host or tunes itself, so all of them can be captured in a CUDA graph once they have run (which compiles them).
They have no derivative.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.library import CustomOpDef, custom_op, infer_schema
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from vggt_int8.kernels import reference, reference_attention
from vggt_int8.kernels.cpu import ops as cpu_ops

FLOATS = (torch.float16, torch.bfloat16, torch.float32)


class Operator:
    """An operator, called like a function; `op` is what PyTorch knows of it.

    PyTorch's way to a function in Python takes 50 to 75 us (Zen 3). On a CPU it is left out where nobody stands on it:
    no gradients, compiler, tracer or dispatch mode, and ordinary tensors. `torch.profiler` does not see those calls.
    """

    def __init__(self, op: CustomOpDef, on_cpu: Callable[..., Any]) -> None:
        self.op, self._on_cpu = op, on_cpu
        self.__doc__ = on_cpu.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # first: the compiler cannot trace what the others ask
            return self.op(*args, **kwargs)
        if torch.is_grad_enabled() or torch.jit.is_tracing() or is_in_torch_dispatch_mode():
            return self.op(*args, **kwargs)
        if args and type(args[0]) in (Tensor, nn.Parameter) and args[0].device.type == "cpu":
            return self._on_cpu(*args, **kwargs)
        return self.op(*args, **kwargs)


def _operator(
    cpu: Callable[..., Any],
    check: Callable[..., None],
    module: str,
    fake: Callable[..., Any],
    mutates: tuple[str, ...] = (),
    strided: bool = False,
) -> Operator:
    """The operator that `cpu` computes on a CPU; `module` is the file with the Triton launcher of the same name, which
    takes operands of any strides if `strided`.
    """
    name = cpu.__name__

    @functools.wraps(cpu)
    def on_cpu(*args: Any, **kwargs: Any) -> Any:
        _check_devices(*args, *kwargs.values())
        check(*args, **kwargs)
        return cpu(*args, **kwargs)

    def on_cuda(*args: Any, **kwargs: Any) -> Any:
        _check_devices(*args, *kwargs.values())
        check(*args, **kwargs)
        launch = getattr(importlib.import_module(f"vggt_int8.kernels.cuda.{module}"), name)
        if not strided:
            args = tuple(a.contiguous() if isinstance(a, Tensor) else a for a in args)
            kwargs = {key: a.contiguous() if isinstance(a, Tensor) else a for key, a in kwargs.items()}
        with torch.cuda.device(args[0].device):  # Triton launches on the current device, not on its operands'
            return launch(*args, **kwargs)

    schema = infer_schema(cpu, mutates_args=mutates)
    op = custom_op(f"vggt_int8::{name}", on_cpu, mutates_args=mutates, device_types="cpu", schema=schema)
    op.register_kernel("cuda")(on_cuda)
    op.register_fake(fake)
    return Operator(op, on_cpu)


def _codes_like(x: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty((x.shape[0], 1), dtype=torch.float32)


def _gemm_like(
    x_codes: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    gelu: bool = False,
    gamma: Tensor | None = None,
    residual: Tensor | None = None,
    out_scale: Tensor | None = None,
) -> Tensor:
    out_dtype = dtype if out_scale is None else torch.int8
    return x_codes.new_empty((x_codes.shape[0], weight.shape[0]), dtype=out_dtype)


def _check_devices(*operands: Any) -> None:
    """Kernels read addresses, which mean nothing on another device."""
    device = operands[0].device
    for operand in operands[1:]:
        if isinstance(operand, Tensor) and operand.device != device:
            raise ValueError(f"all operands must be on one device, not on {device} and {operand.device}")


def _check_float(x: Tensor, *_: Any, dims: int = 2, name: str = "x", **__: Any) -> None:
    if x.ndim != dims or x.dtype not in FLOATS:
        raise ValueError(f"{name} must be a float tensor of {dims} dimensions, not {x.dtype} {list(x.shape)}")


def _check_quantize(x: Tensor, input_scale: Tensor | None = None) -> None:
    _check_float(x)
    _check_sizes(input_scale=(input_scale, 1))


def _check_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, input_scale: Tensor | None = None) -> None:
    _check_quantize(x, input_scale)
    if weight.shape != x.shape[1:] or bias.shape != x.shape[1:]:
        raise ValueError(
            f"weight and bias must be [{x.shape[1]}] for x {list(x.shape)}, "
            f"not {list(weight.shape)} and {list(bias.shape)}"
        )


def _check_sizes(**sizes: tuple[Tensor | None, int]) -> None:
    """Kernels read so many values of each tensor without looking."""
    for name, (tensor, numbers) in sizes.items():
        if tensor is not None and tensor.numel() != numbers:
            raise ValueError(f"{name} must have {numbers} values, not {list(tensor.shape)}")


def _check_qkv(
    qkv: Tensor, q_weight: Tensor, q_bias: Tensor, k_weight: Tensor, k_bias: Tensor, rope: Tensor, eps: float
) -> None:
    _check_float(qkv, dims=4, name="qkv")
    tokens, three, _, dim = qkv.shape
    if three != 3 or not qkv.is_contiguous():
        raise ValueError(f"qkv must be contiguous [T, 3, H, D], not {list(qkv.shape)}, strides {qkv.stride()}")
    fits = rope.ndim == 3 and len(rope) == 2 and rope.shape[2] == dim and rope.shape[1] > 0
    if not fits or dim % 4 or tokens % rope.shape[1]:
        raise ValueError(
            f"rope must be [2, P, {dim}] with {tokens} tokens a multiple of P > 0 and D a multiple of 4, "
            f"not {list(rope.shape)}"
        )
    _check_sizes(q_weight=(q_weight, dim), q_bias=(q_bias, dim), k_weight=(k_weight, dim), k_bias=(k_bias, dim))


def _check_gemm(
    x_codes: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    gelu: bool = False,
    gamma: Tensor | None = None,
    residual: Tensor | None = None,
    out_scale: Tensor | None = None,
) -> None:
    fits = x_codes.ndim == weight.ndim == 2 and x_codes.dtype == weight.dtype == torch.int8
    if not fits or weight.shape[1] != x_codes.shape[1]:
        raise ValueError(
            f"x_codes and weight must be int8 [M, K] and [N, K], not {x_codes.dtype} {list(x_codes.shape)} "
            f"and {weight.dtype} {list(weight.shape)}"
        )
    m, n = len(x_codes), len(weight)
    if x_scale.numel() != m or weight_scale.numel() != n:
        raise ValueError(
            f"a scale per row is needed: x_scale [{m}, 1] and weight_scale [{n}, 1], "
            f"not {list(x_scale.shape)} and {list(weight_scale.shape)}"
        )
    if (gamma is None) != (residual is None) or (residual is not None and residual.shape != (m, n)):
        shape = None if residual is None else list(residual.shape)
        raise ValueError(f"residual must be [{m}, {n}] and come with gamma [{n}], not {shape}")
    _check_sizes(bias=(bias, n), gamma=(gamma, n), out_scale=(out_scale, 1))


def _check_weight_only(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> None:
    _check_float(x)
    if weight.ndim != 2 or weight.dtype != torch.int8 or weight.shape[1] != x.shape[1]:
        raise ValueError(f"weight must be int8 [N, {x.shape[1]}], not {weight.dtype} {list(weight.shape)}")
    _check_sizes(weight_scale=(weight_scale, len(weight)), bias=(bias, len(weight)))


def _check_gemm_into(
    out: Tensor,
    x_codes: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    gelu: bool = False,
    gamma: Tensor | None = None,
    residual: Tensor | None = None,
    out_scale: Tensor | None = None,
) -> None:
    _check_gemm(x_codes, x_scale, weight, weight_scale, bias, out.dtype, gelu, gamma, residual, out_scale)
    m, n = x_codes.shape[0], weight.shape[0]
    if out.shape != (m, n) or not out.is_contiguous():
        raise ValueError(f"out must be contiguous [{m}, {n}], not {list(out.shape)}, strides {out.stride()}")
    if out.dtype not in (FLOATS if out_scale is None else (torch.int8,)):
        raise ValueError(f"out must be float, or int8 if there is an out_scale, not {out.dtype}")


def _check_halves(first: Tensor, second: Tensor, skip: int, weight: Tensor, bias: Tensor, eps: float) -> None:
    _check_float(first, dims=3, name="first")
    if second.shape != first.shape or weight.numel() != 2 * first.shape[2] or not 0 <= skip <= first.shape[1]:
        raise ValueError(
            f"second must be {list(first.shape)}, weight [{2 * first.shape[2]}] and skip in [0, {first.shape[1]}], "
            f"not {list(second.shape)}, {list(weight.shape)} and {skip}"
        )
    _check_sizes(bias=(bias, weight.numel()))


def _check_resize(
    x: Tensor,
    height: int,
    width: int,
    columns: Tensor | None = None,
    rows: Tensor | None = None,
    bias: Tensor | None = None,
    addend: Tensor | None = None,
) -> None:
    _check_float(x, dims=4)
    frames, *size, channels = x.shape
    if min(*size, height, width) < 1:
        raise ValueError(f"maps must have pixels: x is {list(x.shape)}, its result {height} x {width}")
    expected = {
        "columns": (columns, (width, channels // 2)),
        "rows": (rows, (height, channels // 2)),
        "bias": (bias, (channels,)),
        "addend": (addend, (frames, height, width, channels)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(
                f"{name} must be {list(shape)} for a result of {height} x {width}, not {list(tensor.shape)}"
            )
    if (columns is None) != (rows is None) or (columns is not None and channels % 2):
        raise ValueError("columns and rows come together, for an even number of channels")


def _check_predict(
    x: Tensor, weight: Tensor, bias: Tensor | None, inverse_log: bool, values: Tensor, confidence: Tensor
) -> None:
    _check_float(x, dims=4)
    _check_sizes(weight=(weight, len(weight) * x.shape[3]), bias=(bias, len(weight)))
    shapes = (*x.shape[:3], weight.shape[0] - 1), x.shape[:3]
    for name, tensor, shape in zip(("values", "confidence"), (values, confidence), shapes, strict=True):
        if tensor.shape != shape or tensor.dtype != torch.float32 or not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous fp32 {list(shape)}, "
                f"not {tensor.dtype} {list(tensor.shape)}, strides {tensor.stride()}"
            )


def _check_codes(weight: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> None:
    shapes = ((weight.shape[0], 1, 1), (1, weight.shape[1], 1)) if weight.ndim == 3 else ()
    if weight.dtype != torch.int8 or weight_scale.shape not in shapes:
        raise ValueError(
            f"weight must be int8 [A, B, T] with scales [A, 1, 1] or [1, B, 1], "
            f"not {weight.dtype} {list(weight.shape)} with {list(weight_scale.shape)}"
        )


def _check_attention(q: Tensor, k: Tensor, v: Tensor) -> None:
    _check_float(q, dims=4, name="q")
    for name, x in (("k", k), ("v", v)):
        if x.shape != q.shape or x.dtype != q.dtype:
            raise ValueError(f"{name} must be like q, {q.dtype} {list(q.shape)}, not {x.dtype} {list(x.shape)}")
    if q.shape[3] > reference_attention.MAX_HEAD_DIM:
        raise ValueError(f"head dims up to {reference_attention.MAX_HEAD_DIM} are implemented, not {q.shape[3]}")


def _attention_like(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, heads, tokens, dim = v.shape
    return v.new_empty(batch, tokens, heads * dim)


quantize_rows = _operator(cpu_ops.quantize_rows, _check_quantize, "triton_norm", _codes_like)
layer_norm_quantize = _operator(cpu_ops.layer_norm_quantize, _check_norm, "triton_norm", _codes_like)
int8_gemm = _operator(cpu_ops.int8_gemm, _check_gemm, "triton_gemm", _gemm_like)
int8_gemm_quantize = _operator(
    cpu_ops.int8_gemm_quantize,
    _check_gemm,
    "triton_norm",
    lambda x_codes, _, weight, *__: _codes_like(x_codes.new_empty(x_codes.shape[0], weight.shape[0])),
)
qk_norm_rope_ = _operator(cpu_ops.qk_norm_rope_, _check_qkv, "triton_rope", lambda *_, **__: None, mutates=("qkv",))
w8a16_linear = _operator(
    cpu_ops.w8a16_linear,
    _check_weight_only,
    "triton_weight_only",
    lambda x, weight, *_: x.new_empty(x.shape[0], weight.shape[0]),
)
int8_gemm_into_ = _operator(
    cpu_ops.int8_gemm_into_, _check_gemm_into, "triton_gemm", lambda *_, **__: None, mutates=("out",)
)
layer_norm_halves = _operator(
    cpu_ops.layer_norm_halves,
    _check_halves,
    "triton_norm",
    lambda first, _, skip, *__: first.new_empty(first.shape[0], first.shape[1] - skip, 2 * first.shape[2]),
)
resize = _operator(
    cpu_ops.resize,
    _check_resize,
    "triton_resize",
    lambda x, height, width, *_, **__: x.new_empty(x.shape[0], height, width, x.shape[3]),
)
predict_ = _operator(
    cpu_ops.predict_, _check_predict, "triton_predict", lambda *_, **__: None, mutates=("values", "confidence")
)
dequantize = _operator(
    reference.dequantize,
    _check_codes,
    "triton_weight_only",
    lambda weight, _, dtype: weight.new_empty(weight.shape[0], weight.shape[2], weight.shape[1], dtype=dtype),
)
int8_attention, float_attention = (
    _operator(definition, _check_attention, "triton_attention", _attention_like, strided=True)
    for definition in (reference_attention.int8_attention, reference_attention.float_attention)
)
