"""The fused kernels as PyTorch operators `vggt_int8::…`: what the runtime calls, and what torch.compile sees.

`reference.py` and `reference_attention.py` define each operator and describe its arguments. On a CPU it runs the
function of the same name in `cpu/ops.py`, or the definition itself if there is none; on CUDA it runs the Triton kernel
of the same name. Operands are checked on both. Triton is imported by the first call on CUDA. No operator synchronizes
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

from vggt_int8.kernels import checks, reference, reference_attention
from vggt_int8.kernels.cpu import ops as cpu_ops
from vggt_int8.kernels.epilogue import Epilogue


class Operator:
    """An operator, called like a function; `op` is its registration in PyTorch.

    PyTorch's dispatch to a Python function takes 50 to 75 us (Zen 3). On a CPU it is bypassed if nothing depends on it:
    no gradients, compiler, tracer or dispatch mode, and ordinary tensors. `torch.profiler` does not see those calls.

    PyTorch does not know `Epilogue`: if an operator takes one as its last argument, `op` takes its fields instead.
    """

    def __init__(self, op: CustomOpDef, on_cpu: Callable[..., Any]) -> None:
        self.op, self._on_cpu = op, on_cpu
        self.__doc__ = on_cpu.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # first, since the compiler cannot trace the other checks
            return self.op(*_flat(args), **kwargs)
        if torch.is_grad_enabled() or torch.jit.is_tracing() or is_in_torch_dispatch_mode():
            return self.op(*_flat(args), **kwargs)
        if args and type(args[0]) in (Tensor, nn.Parameter) and args[0].device.type == "cpu":
            return self._on_cpu(*args, **kwargs)
        return self.op(*_flat(args), **kwargs)


def _flat(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments, with a trailing `Epilogue` replaced by its fields."""
    return (*args[:-1], *args[-1]) if args and isinstance(args[-1], Epilogue) else args


# The operands of a GEMM for `torch.library`: the fields of an `Epilogue` follow the factors.
_GEMM = (
    "Tensor x_codes, Tensor x_scale, Tensor weight, Tensor weight_scale, Tensor? bias, ScalarType dtype, "
    "bool gelu=False, Tensor? gamma=None, Tensor? residual=None, Tensor? out_scale=None, int rotation=0"
)


def _operator(
    cpu: Callable[..., Any],
    check: Callable[..., None],
    module: str,
    fake: Callable[..., Any],
    mutates: tuple[str, ...] = (),
    strided: bool = False,
    gemm: str = "",
) -> Operator:
    """Register the operator that `cpu` implements on a CPU.

    module: the file with the Triton launcher of the same name.
    strided: the launcher takes operands with any strides.
    gemm: the schema, if both functions end in an `Epilogue`.
    """
    name = cpu.__name__
    tensors = 4 + len(mutates)  # before the epilogue

    def packed(args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (*args[:tensors], Epilogue(*args[tensors:])) if gemm else args

    @functools.wraps(cpu)
    def on_cpu(*args: Any, **kwargs: Any) -> Any:
        checks.check_devices(*_flat(args), *kwargs.values())
        check(*args, **kwargs)
        return cpu(*args, **kwargs)

    def from_pytorch(*args: Any, **kwargs: Any) -> Any:
        return on_cpu(*packed(args), **kwargs)

    def on_cuda(*args: Any, **kwargs: Any) -> Any:
        checks.check_devices(*args, *kwargs.values())
        check(*packed(args), **kwargs)
        launch = _launcher(module, name)
        if not strided:
            args = tuple(a.contiguous() if isinstance(a, Tensor) else a for a in args)
            kwargs = {key: a.contiguous() if isinstance(a, Tensor) else a for key, a in kwargs.items()}
        with torch.cuda.device(args[0].device):  # Triton launches on the current device, not on its operands'
            return launch(*packed(args), **kwargs)

    schema = gemm or infer_schema(cpu, mutates_args=mutates)
    op = custom_op(f"vggt_int8::{name}", from_pytorch, mutates_args=mutates, device_types="cpu", schema=schema)
    op.register_kernel("cuda")(on_cuda)
    op.register_fake(fake)
    return Operator(op, on_cpu)


@functools.cache
def _launcher(module: str, name: str) -> Callable[..., Any]:
    launcher: Callable[..., Any] = getattr(importlib.import_module(f"vggt_int8.kernels.cuda.{module}"), name)
    return launcher


def _codes_like(x: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty((x.shape[0], 1), dtype=torch.float32)


def _gemm_like(x_codes: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, *epilogue: Any) -> Tensor:
    return x_codes.new_empty((x_codes.shape[0], weight.shape[0]), dtype=Epilogue(*epilogue).dtype)


def _attention_like(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, heads, tokens, dim = q.shape
    return v.new_empty(batch, tokens, heads * dim)


quantize_rows = _operator(cpu_ops.quantize_rows, checks.check_quantize, "triton_norm", _codes_like)
layer_norm_quantize = _operator(cpu_ops.layer_norm_quantize, checks.check_norm, "triton_norm", _codes_like)
int8_gemm = _operator(cpu_ops.int8_gemm, checks.check_gemm, "triton_gemm", _gemm_like, gemm=f"({_GEMM}) -> Tensor")
int8_gemm_quantize = _operator(
    cpu_ops.int8_gemm_quantize,
    checks.check_gemm_quantize,
    "triton_product",
    lambda x_codes, _, weight, *__: _codes_like(x_codes.new_empty(x_codes.shape[0], weight.shape[0])),
    gemm=f"({_GEMM}) -> (Tensor, Tensor)",
)
qk_norm_rope_ = _operator(
    cpu_ops.qk_norm_rope_, checks.check_qkv, "triton_rope", lambda *_, **__: None, mutates=("qkv",)
)
norm_rope_ = _operator(cpu_ops.norm_rope_, checks.check_heads, "triton_rope", lambda *_, **__: None, mutates=("x",))
w8a16_linear = _operator(
    cpu_ops.w8a16_linear,
    checks.check_weight_only,
    "triton_weight_only",
    lambda x, weight, *_: x.new_empty(x.shape[0], weight.shape[0]),
)
int8_gemm_into_ = _operator(
    cpu_ops.int8_gemm_into_,
    checks.check_gemm_into,
    "triton_gemm",
    lambda *_, **__: None,
    mutates=("out",),
    gemm=f"(Tensor(a!) out, {_GEMM}) -> ()",
)
layer_norm_halves = _operator(
    cpu_ops.layer_norm_halves,
    checks.check_halves,
    "triton_norm",
    lambda first, _, skip, *__: first.new_empty(first.shape[0], first.shape[1] - skip, 2 * first.shape[2]),
)
resize = _operator(
    cpu_ops.resize,
    checks.check_resize,
    "triton_resize",
    lambda x, height, width, *_, **__: x.new_empty(x.shape[0], height, width, x.shape[3]),
)
predict_ = _operator(
    cpu_ops.predict_, checks.check_predict, "triton_predict", lambda *_, **__: None, mutates=("values", "confidence")
)
dequantize = _operator(
    reference.dequantize,
    checks.check_codes,
    "triton_weight_only",
    lambda weight, _, dtype: weight.new_empty(weight.shape[0], weight.shape[2], weight.shape[1], dtype=dtype),
)
float_attention = _operator(
    reference_attention.float_attention, checks.check_attention, "triton_attention", _attention_like, strided=True
)
float_attention_quantize = _operator(
    reference_attention.float_attention_quantize,
    checks.check_attention_quantize,
    "triton_attention",
    lambda q, *_: _codes_like(q.new_empty(q.shape[0] * q.shape[2], q.shape[1] * q.shape[3])),
    strided=True,
)
