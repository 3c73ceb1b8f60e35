"""Operand checks for the operators of `ops.py`, whose kernels read and write by sizes and addresses, unchecked.

Each `check_…` takes the operands of its operator and raises ValueError, naming what is wrong.
"""

from typing import Any

import torch
from torch import Tensor

from vggt_int8.kernels import reference_attention
from vggt_int8.kernels.epilogue import Epilogue

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
MAX_ROTATION = 256


def check_devices(*operands: Any) -> None:
    """Kernels read addresses, which are invalid on another device."""
    device = operands[0].device
    for operand in operands[1:]:
        if isinstance(operand, Tensor) and operand.device != device:
            raise ValueError(f"all operands must be on one device, not on {device} and {operand.device}")


def check_float(x: Tensor, *_: Any, dims: int = 2, name: str = "x", **__: Any) -> None:
    if x.ndim != dims or x.dtype not in FLOATS:
        raise ValueError(f"{name} must be a float tensor of {dims} dimensions, not {x.dtype} {list(x.shape)}")


def check_quantize(x: Tensor, input_scale: Tensor | None = None, rotation: int = 0) -> None:
    check_float(x)
    check_static("input_scale", input_scale, len(x))
    check_rotation(x.shape[1], rotation)


def check_static(name: str, scale: Tensor | None, rows: int) -> None:
    """Static scales for `rows` rows: R values, where R divides `rows`, repeated cyclically."""
    if scale is None:
        return
    count = scale.numel()
    if scale.dtype != torch.float32 or count == 0 or rows % count:
        raise ValueError(
            f"{name} must be fp32 values as many as divide the {rows} rows, row m having number m % R: "
            f"not {scale.dtype} {list(scale.shape)}"
        )


def check_rotation(channels: int, rotation: int) -> None:
    power = rotation > 1 and rotation & (rotation - 1) == 0
    if rotation != 0 and not (power and rotation <= MAX_ROTATION and channels % rotation == 0):
        raise ValueError(
            f"rotation must be 0 or a power of two up to {MAX_ROTATION} that divides the {channels} channels, "
            f"not {rotation}"
        )


def check_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, input_scale: Tensor | None = None, rotation: int = 0
) -> None:
    check_quantize(x, input_scale, rotation)
    if weight.shape != x.shape[1:] or bias.shape != x.shape[1:]:
        raise ValueError(
            f"weight and bias must be [{x.shape[1]}] for x {list(x.shape)}, "
            f"not {list(weight.shape)} and {list(bias.shape)}"
        )


def check_sizes(**sizes: tuple[Tensor | None, int]) -> None:
    """Check the number of values in each tensor, which kernels read unchecked."""
    for name, (tensor, numbers) in sizes.items():
        if tensor is not None and tensor.numel() != numbers:
            raise ValueError(f"{name} must have {numbers} values, not {list(tensor.shape)}")


def check_qkv(
    qkv: Tensor,
    q_weight: Tensor | None,
    q_bias: Tensor | None,
    k_weight: Tensor | None,
    k_bias: Tensor | None,
    rope: Tensor,
    eps: float,
    rotate_half: bool = False,
) -> None:
    check_float(qkv, dims=4, name="qkv")
    if qkv.shape[1] != 3 or not qkv.is_contiguous():
        raise ValueError(f"qkv must be contiguous [T, 3, H, D], not {list(qkv.shape)}, strides {qkv.stride()}")
    _check_rope(qkv, rope)
    dim, norms = qkv.shape[3], (q_weight, q_bias, k_weight, k_bias)
    if any(norm is None for norm in norms) and not all(norm is None for norm in norms):
        raise ValueError("weights and biases of the norms of queries and keys must be given all, or none")
    check_sizes(q_weight=(q_weight, dim), q_bias=(q_bias, dim), k_weight=(k_weight, dim), k_bias=(k_bias, dim))


def check_heads(x: Tensor, weight: Tensor, bias: Tensor, rope: Tensor, eps: float) -> None:
    check_float(x, dims=4)
    if x.shape[1] not in (1, 2) or not x.is_contiguous():
        raise ValueError(f"x must be contiguous [T, 1 or 2, H, D], not {list(x.shape)}, strides {x.stride()}")
    _check_rope(x, rope)
    check_sizes(weight=(weight, x.shape[3]), bias=(bias, x.shape[3]))


def _check_rope(x: Tensor, rope: Tensor) -> None:
    tokens, _, _, dim = x.shape
    fits = rope.ndim == 3 and len(rope) == 2 and rope.shape[2] == dim and rope.shape[1] > 0
    if not fits or dim % 4 or tokens % rope.shape[1]:
        raise ValueError(
            f"rope must be [2, P, {dim}] with {tokens} tokens a multiple of P > 0 and D a multiple of 4, "
            f"not {list(rope.shape)}"
        )


def check_gemm(x_codes: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, epilogue: Epilogue) -> None:
    _check_gemm(x_codes, x_scale, weight, weight_scale, epilogue)
    if epilogue.rotation or epilogue.out_scale is not None:
        raise ValueError(
            f"rotation {epilogue.rotation}: a product that stays floats takes neither a rotation nor an out_scale, "
            "call int8_gemm_quantize, or quantize_rows after it"
        )


def _check_gemm(x_codes: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, epilogue: Epilogue) -> None:
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
    bias, _, _, gamma, residual, *_ = epilogue
    if (gamma is None) != (residual is None) or (residual is not None and residual.shape != (m, n)):
        shape = None if residual is None else list(residual.shape)
        raise ValueError(f"residual must be [{m}, {n}] and come with gamma [{n}], not {shape}")
    check_sizes(bias=(bias, n), gamma=(gamma, n))


def check_gemm_quantize(
    x_codes: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, epilogue: Epilogue
) -> None:
    _check_gemm(x_codes, x_scale, weight, weight_scale, epilogue)
    check_rotation(len(weight), epilogue.rotation)
    check_static("out_scale", epilogue.out_scale, len(x_codes))
    if epilogue.residual is not None:
        raise ValueError("a product that becomes codes takes no residual: call int8_gemm and quantize_rows")


def check_gemm_into(
    out: Tensor, x_codes: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, epilogue: Epilogue
) -> None:
    check_gemm(x_codes, x_scale, weight, weight_scale, epilogue)
    m, n = x_codes.shape[0], weight.shape[0]
    if out.shape != (m, n) or not out.is_contiguous():
        raise ValueError(f"out must be contiguous [{m}, {n}], not {list(out.shape)}, strides {out.stride()}")
    if out.dtype != epilogue.dtype:
        raise ValueError(f"out must be {epilogue.dtype}, as the epilogue says, not {out.dtype}")


def check_weight_only(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, rotation: int = 0) -> None:
    check_float(x)
    check_rotation(x.shape[1], rotation)
    if weight.ndim != 2 or weight.dtype != torch.int8 or weight.shape[1] != x.shape[1]:
        raise ValueError(f"weight must be int8 [N, {x.shape[1]}], not {weight.dtype} {list(weight.shape)}")
    check_sizes(weight_scale=(weight_scale, len(weight)), bias=(bias, len(weight)))


def check_halves(first: Tensor, second: Tensor, skip: int, weight: Tensor, bias: Tensor, eps: float) -> None:
    check_float(first, dims=3, name="first")
    if second.shape != first.shape or weight.numel() != 2 * first.shape[2] or not 0 <= skip <= first.shape[1]:
        raise ValueError(
            f"second must be {list(first.shape)}, weight [{2 * first.shape[2]}] and skip in [0, {first.shape[1]}], "
            f"not {list(second.shape)}, {list(weight.shape)} and {skip}"
        )
    check_sizes(bias=(bias, weight.numel()))


def check_resize(
    x: Tensor,
    height: int,
    width: int,
    columns: Tensor | None = None,
    rows: Tensor | None = None,
    bias: Tensor | None = None,
    addend: Tensor | None = None,
) -> None:
    check_float(x, dims=4)
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


def check_predict(
    x: Tensor, weight: Tensor, bias: Tensor | None, inverse_log: bool, values: Tensor, confidence: Tensor
) -> None:
    check_float(x, dims=4)
    check_sizes(weight=(weight, len(weight) * x.shape[3]), bias=(bias, len(weight)))
    shapes = (*x.shape[:3], weight.shape[0] - 1), x.shape[:3]
    for name, tensor, shape in zip(("values", "confidence"), (values, confidence), shapes, strict=True):
        if tensor.shape != shape or tensor.dtype != torch.float32 or not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous fp32 {list(shape)}, "
                f"not {tensor.dtype} {list(tensor.shape)}, strides {tensor.stride()}"
            )


def check_codes(weight: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> None:
    shapes = ((weight.shape[0], 1, 1), (1, weight.shape[1], 1)) if weight.ndim == 3 else ()
    if weight.dtype != torch.int8 or weight_scale.shape not in shapes:
        raise ValueError(
            f"weight must be int8 [A, B, T] with scales [A, 1, 1] or [1, B, 1], "
            f"not {weight.dtype} {list(weight.shape)} with {list(weight_scale.shape)}"
        )


def check_attention(q: Tensor, k: Tensor, v: Tensor) -> None:
    check_float(q, dims=4, name="q")
    check_float(k, dims=4, name="k")
    batch, heads, tokens, dim = q.shape
    keys = k.shape[2]
    for name, x in (("k", k), ("v", v)):
        if x.shape != (batch, heads, keys, dim) or x.dtype != q.dtype:
            raise ValueError(
                f"{name} must be {q.dtype} {[batch, heads, keys, dim]} for q {list(q.shape)}, "
                f"not {x.dtype} {list(x.shape)}"
            )
    if q.numel() and not keys:
        raise ValueError(f"{tokens} queries have no keys to attend to")
    if q.shape[3] > reference_attention.MAX_HEAD_DIM:
        raise ValueError(f"head dims up to {reference_attention.MAX_HEAD_DIM} are implemented, not {q.shape[3]}")


def check_attention_quantize(q: Tensor, k: Tensor, v: Tensor, out_scale: Tensor) -> None:
    check_attention(q, k, v)
    check_static("out_scale", out_scale, q.shape[0] * q.shape[2])
