"""The operators of `ops.py` on a CPU: the kernels of `compiled.py` for fp32 if available, else PyTorch.

PyTorch computes the definitions of `reference.py` some rows at a time, which bounds the memory of intermediates, with
equal results. (A resize adds in place instead.) The compiled kernels have equal codes and sums for equal input;
LayerNorm, GELU and RoPE round in their own order. Operators that are not listed here run as their definition.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from vggt_int8.kernels import reference
from vggt_int8.kernels.cpu import compiled, matmul
from vggt_int8.kernels.cpu.matmul import row_slices, rows_of_a_product, slices_of_rows
from vggt_int8.kernels.epilogue import Epilogue

_FEW_ROWS = 32  # of a weight-only layer, which reads its weight rather than computes
_WEIGHT_SLICE = 1 << 20  # elements of a weight-only layer that are floats at once


def quantize_rows(x: Tensor, input_scale: Tensor | None = None, rotation: int = 0) -> tuple[Tensor, Tensor]:
    """`reference.quantize_rows`."""
    if compiled.usable(x, input_scale):
        return compiled.quantize_rows(x, input_scale, rotation)
    codes, scale = _codes(x, *x.shape)
    for rows in slices_of_rows(*x.shape):
        codes[rows], scale[rows] = reference.quantize_rows(x[rows], _of_rows(input_scale, rows, len(x)), rotation)
    return codes, scale


def rotate_rows(x: Tensor, rotation: int, alone: bool = False) -> Tensor:
    """`reference.rotate_rows`. alone: on this thread only, for callers that are themselves parallel."""
    if compiled.usable(x):
        return compiled.rotate_rows(x, rotation, alone)
    out = x.new_empty(x.shape)
    for rows in slices_of_rows(*x.shape):
        out[rows] = reference.rotate_rows(x[rows], rotation)
    return out


def layer_norm_quantize(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, input_scale: Tensor | None = None, rotation: int = 0
) -> tuple[Tensor, Tensor]:
    """`reference.layer_norm_quantize`."""
    if compiled.usable(x, input_scale):
        return compiled.layer_norm_quantize(x, weight, bias, eps, input_scale, rotation)
    codes, scale = _codes(x, *x.shape)
    for rows in slices_of_rows(*x.shape):
        own = _of_rows(input_scale, rows, len(x))
        codes[rows], scale[rows] = reference.layer_norm_quantize(x[rows], weight, bias, eps, own, rotation)
    return codes, scale


def _of_rows(static: Tensor | None, rows: slice, total: int) -> Tensor | None:
    """Static scales for a slice of `total` rows."""
    return static if static is None or static.numel() == 1 else reference.static_scales(static, total)[rows]


def int8_gemm(x_codes: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, epilogue: Epilogue) -> Tensor:
    """`reference.int8_gemm`."""
    out = x_codes.new_empty(len(x_codes), len(weight), dtype=epilogue.dtype)
    int8_gemm_into_(out, x_codes, x_scale, weight, weight_scale, epilogue)
    return out


def int8_gemm_into_(
    out: Tensor, x_codes: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, epilogue: Epilogue
) -> None:
    """`reference.int8_gemm` into out [M, N], in its dtype. `out` may be the residual itself."""
    if compiled.usable(out, epilogue.residual):
        compiled.int8_gemm_into_(out, x_codes, x_scale, weight, weight_scale, epilogue)
        return
    for rows, result in _gemm_parts(x_codes, x_scale, weight, weight_scale, epilogue):
        out[rows] = result


def int8_gemm_quantize(
    x_codes: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, epilogue: Epilogue
) -> tuple[Tensor, Tensor]:
    """`reference.int8_gemm_quantize`. Floats are quantized while they are in the cache."""
    if epilogue.dtype == torch.float32 and compiled.usable(x_scale, epilogue.out_scale):
        return compiled.int8_gemm_quantize(x_codes, x_scale, weight, weight_scale, epilogue)
    codes, scale = _codes(x_codes, len(x_codes), len(weight))
    static, rotation = epilogue.out_scale, epilogue.rotation
    of_floats = epilogue if static is None else epilogue._replace(dtype=torch.float32)
    for rows, result in _gemm_parts(x_codes, x_scale, weight, weight_scale, of_floats):
        codes[rows], scale[rows] = reference.quantize_rows(result, _of_rows(static, rows, len(x_codes)), rotation)
    return codes, scale


def w8a16_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, rotation: int = 0) -> Tensor:
    """`reference.w8a16_linear`, except that the product runs in bf16 if x is bf16.

    Decodes a slice of the weight's rows at a time (codes are exact in every float dtype). fp16 is slow on CPUs, and the
    unscaled sum would overflow it, so it is computed in fp32.
    """
    x = rotate_rows(x, rotation) if rotation else x
    if len(x) <= _FEW_ROWS and compiled.usable(x):
        return compiled.w8a16_linear(x, weight, weight_scale, bias)
    compute = torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32
    x_compute = x.to(compute)
    n, k = weight.shape
    out = x.new_empty(x.shape[0], n)
    for cols in row_slices(n, max(1, _WEIGHT_SLICE // k)):
        y = (x_compute @ weight[cols].to(compute).t()).float().mul_(weight_scale[cols].view(1, -1))
        out[:, cols] = y if bias is None else y.add_(bias[cols].float())
    return out


def qk_norm_rope_(
    qkv: Tensor,
    q_weight: Tensor | None,
    q_bias: Tensor | None,
    k_weight: Tensor | None,
    k_bias: Tensor | None,
    rope: Tensor,
    eps: float,
    rotate_half: bool = False,
) -> None:
    """`reference.qk_norm_rope` in place. Attention then takes `qkv.unbind(1)` as strided views."""
    if compiled.usable(qkv):
        compiled.qk_norm_rope_(qkv, q_weight, q_bias, k_weight, k_bias, rope, eps, rotate_half)
        return
    for x, angles in _heads_and_angles(qkv, rope):
        x.copy_(reference.qk_norm_rope(x, q_weight, q_bias, k_weight, k_bias, angles, eps, rotate_half))


def norm_rope_(x: Tensor, weight: Tensor, bias: Tensor, rope: Tensor, eps: float) -> None:
    """`reference.norm_rope` in place."""
    if compiled.usable(x):
        compiled.norm_rope_(x, weight, bias, rope, eps)
        return
    for part, angles in _heads_and_angles(x, rope):
        part.copy_(reference.norm_rope(part, weight, bias, angles, eps))


def _heads_and_angles(x: Tensor, rope: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """x [T, n, H, D] and rope [2, P, D] in parts, with views of x: some frames, or some tokens of one."""
    tokens, count, heads, dim = x.shape
    per_frame = rope.shape[1]
    frames = x.view(tokens // per_frame, per_frame, count, heads, dim)
    at_once = max(1, matmul.VALUES_AT_ONCE // (heads * dim))
    for part in row_slices(len(frames), max(1, at_once // per_frame)):
        for place in row_slices(per_frame, at_once):
            yield frames[part, place].flatten(0, 1), rope[:, place]  # several frames are taken whole


def layer_norm_halves(first: Tensor, second: Tensor, skip: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`reference.layer_norm_halves`."""
    if compiled.usable(first, second):
        return compiled.layer_norm_halves(first, second, skip, weight, bias, eps)
    return reference.layer_norm_halves(first, second, skip, weight, bias, eps)


def resize(
    x: Tensor,
    height: int,
    width: int,
    columns: Tensor | None = None,
    rows: Tensor | None = None,
    bias: Tensor | None = None,
    addend: Tensor | None = None,
) -> Tensor:
    """`reference.resize`."""
    if compiled.usable(x, addend):
        return compiled.resize(x, height, width, columns, rows, bias, addend)
    if x.shape[1:3] == (height, width):
        y = x.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    else:
        y = x.float().permute(0, 3, 1, 2)
        y = F.interpolate(y, size=(height, width), mode="bilinear", align_corners=True).permute(0, 2, 3, 1)
    if bias is not None:
        y.add_(bias)
    if columns is not None and rows is not None:
        half = x.shape[3] // 2
        y[..., :half].add_(columns)
        y[..., half:].add_(rows[:, None])
    if addend is not None:
        y.add_(addend)
    return y.to(x.dtype).contiguous()


def predict_(
    x: Tensor, weight: Tensor, bias: Tensor | None, inverse_log: bool, values: Tensor, confidence: Tensor
) -> None:
    """`reference.predict` into values [F, H, W, n - 1] and confidence [F, H, W]."""
    if compiled.usable(x) and compiled.predict_(x, weight, bias, inverse_log, values, confidence):
        return
    value, certainty = reference.predict(x, weight, bias, inverse_log)
    values.copy_(value)
    confidence.copy_(certainty)


def _gemm_parts(
    x_codes: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, epilogue: Epilogue
) -> Iterator[tuple[slice, Tensor]]:
    """Some rows of `reference.int8_gemm` at a time: few products, with epilogues in parts that fit in a cache."""
    x_scale, residual = x_scale.view(-1, 1), epilogue.residual
    for product in row_slices(len(x_codes), rows_of_a_product(len(weight))):
        sums = matmul.int8_matmul(x_codes[product], weight)
        for part in slices_of_rows(*sums.shape):
            rows = slice(product.start + part.start, product.start + part.stop)
            here = epilogue if residual is None else epilogue._replace(residual=residual[rows])
            yield rows, reference.finish(sums[part], x_scale[rows], weight_scale, here)


def _codes(x: Tensor, rows: int, width: int) -> tuple[Tensor, Tensor]:
    """Uninitialized codes and a scale per row."""
    return x.new_empty(rows, width, dtype=torch.int8), x.new_empty(rows, 1, dtype=torch.float32)
