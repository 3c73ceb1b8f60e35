"""The operators of `ops.py` on a CPU, in fp32 by the kernels of `compiled.py` where there are any.

Else by PyTorch, with less memory traffic than the definitions in `reference.py`: the passes around a product work in
place on slices of rows, in the order in which the definition rounds, so these results are equal, not close. The
compiled kernels have equal codes and sums for equal input, and round LayerNorm, GELU and RoPE in their own order.
Operators that are not listed here run as their definition.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from vggt_int8.kernels import reference
from vggt_int8.kernels.cpu import compiled, matmul
from vggt_int8.kernels.cpu.matmul import int8_sums, row_slices, rows_of_a_product, slices_of_rows
from vggt_int8.kernels.reference import CODE_MAX

_FEW_ROWS = 32  # of a weight-only layer, which reads its weight rather than computes
_WEIGHT_SLICE = 1 << 20  # elements of a weight-only layer that are floats at once


def quantize_rows(x: Tensor, input_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`reference.quantize_rows`."""
    if compiled.usable(x, input_scale):
        return compiled.quantize_rows(x, input_scale)
    codes, scale = x.new_empty(x.shape, dtype=torch.int8), x.new_empty(len(x), 1, dtype=torch.float32)
    for rows in slices_of_rows(*x.shape):
        _quantize_rows_into(codes[rows], scale[rows], x[rows].float(), input_scale)
    return codes, scale


def layer_norm_quantize(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, input_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`reference.layer_norm_quantize`."""
    if compiled.usable(x, input_scale):
        return compiled.layer_norm_quantize(x, weight, bias, eps, input_scale)
    codes, scale = x.new_empty(x.shape, dtype=torch.int8), x.new_empty(len(x), 1, dtype=torch.float32)
    weight, bias = weight.float(), bias.float()
    for rows in slices_of_rows(*x.shape):
        normed = F.layer_norm(x[rows].float(), x.shape[-1:], weight, bias, eps)
        _quantize_rows_into(codes[rows], scale[rows], normed, input_scale)
    return codes, scale


def int8_gemm(
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
    """`reference.int8_gemm`."""
    out = x_codes.new_empty(len(x_codes), len(weight), dtype=dtype if out_scale is None else torch.int8)
    int8_gemm_into_(out, x_codes, x_scale, weight, weight_scale, bias, gelu, gamma, residual, out_scale)
    return out


def int8_gemm_into_(
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
    """`reference.int8_gemm` into out [M, N], in its dtype. `out` may be the residual itself."""
    if compiled.usable(out if out_scale is None else out_scale, residual) and out.is_contiguous():
        operands = (x_codes, x_scale, weight, weight_scale, bias, gelu, gamma, residual, out_scale)
        compiled.int8_gemm_into_(out, *operands)
        return
    gamma = None if gamma is None else gamma.float()
    buffer = out if out.dtype == torch.float32 and residual is None and out_scale is None else None
    for rows, y in _product_slices(x_codes, x_scale, weight, weight_scale, bias, gelu, buffer):
        if residual is not None and gamma is not None:
            y.mul_(gamma).add_(residual[rows])
        if out_scale is not None:
            y.div_(out_scale).round_().clamp_(-CODE_MAX, CODE_MAX)
        if buffer is None:
            out[rows] = y


def int8_gemm_quantize(
    x_codes: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    gelu: bool = False,
) -> tuple[Tensor, Tensor]:
    """`reference.int8_gemm_quantize`. Floats become codes while they are in the cache."""
    if dtype == torch.float32 and compiled.usable(x_scale):
        return compiled.int8_gemm_quantize(x_codes, x_scale, weight, weight_scale, bias, gelu)
    codes, scale = x_codes.new_empty(len(x_codes), len(weight)), x_codes.new_empty(len(x_codes), 1, dtype=torch.float32)
    for rows, y in _product_slices(x_codes, x_scale, weight, weight_scale, bias, gelu):
        _quantize_rows_into(codes[rows], scale[rows], y.to(dtype).float(), None)
    return codes, scale


def w8a16_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """`reference.w8a16_linear`, except that the product runs in bf16 where x is bf16.

    A slice of the weight's rows at a time becomes float (codes are exact in every float dtype). CPUs are slow at fp16,
    and the unscaled sum would overflow it, so it runs in fp32.
    """
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
    q_weight: Tensor,
    q_bias: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    rope: Tensor,
    eps: float,
) -> None:
    """`reference.qk_norm_rope` in place. Attention then takes `qkv.unbind(1)` as strided views."""
    if compiled.usable(qkv):
        compiled.qk_norm_rope_(qkv, q_weight, q_bias, k_weight, k_bias, rope, eps)
        return
    tokens, _, heads, dim = qkv.shape
    per_frame = rope.shape[1]
    frames = qkv.view(tokens // per_frame, per_frame, 3, heads, dim)
    cos, sin = rope.unsqueeze(2)  # [P, 1, D]
    # Of each pair of quarters of the head dim, the first turns towards the second negated.
    sin = (sin.unflatten(-1, (2, 2, -1)) * sin.new_tensor([[-1.0], [1.0]])).flatten(-3)
    norms = ((q_weight.float(), q_bias.float()), (k_weight.float(), k_bias.float()))
    at_once = max(1, matmul.VALUES_AT_ONCE // (heads * dim))
    for part in row_slices(len(frames), max(1, at_once // per_frame)):
        for place in row_slices(per_frame, at_once):
            for i, (weight, bias) in enumerate(norms):
                x = frames[part, place, i]
                y = F.layer_norm(x.float(), (dim,), weight, bias, eps)
                quarters = y.chunk(4, dim=-1)
                turned = torch.cat([quarters[j] for j in (1, 0, 3, 2)], dim=-1).mul_(sin[place])
                torch.add(y.mul_(cos[place]), turned, out=x)


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


def _product_slices(
    x_codes: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    gelu: bool,
    buffer: Tensor | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """`x_codes weightᵀ * x_scale * weight_scale (+ bias) (-> GELU)` in fp32, some rows at a time, to be worked on.

    It lies in `buffer` [M, N] fp32 in the end, or is overwritten by what follows.
    """
    rows, outputs = len(x_codes), len(weight)
    at_once = rows_of_a_product(outputs)
    scratch = buffer
    if scratch is None:
        scratch = x_codes.new_empty(min(rows, at_once), outputs, dtype=torch.float32)
    x_scale, weight_scale = x_scale.view(-1, 1), weight_scale.view(1, -1)
    bias = None if bias is None else bias.float()
    for product in row_slices(rows, at_once):
        values = scratch[: product.stop - product.start] if buffer is None else scratch[product]
        sums = values.view(torch.int32)  # each becomes a float in its own place
        excess = int8_sums(x_codes[product], weight, sums)
        for part in slices_of_rows(*values.shape):
            here = slice(product.start + part.start, product.start + part.stop)
            acc = sums[part] if excess is None else sums[part].sub_(excess)
            y = values[part].copy_(acc).mul_(x_scale[here]).mul_(weight_scale)
            if bias is not None:
                y.add_(bias)
            if gelu:
                torch.ops.aten.gelu_(y)
            yield here, y


def _quantize_rows_into(codes: Tensor, scale: Tensor, x: Tensor, input_scale: Tensor | None) -> None:
    """`reference.quantize_rows` of x [M, K] fp32 into codes [M, K] int8 and scale [M, 1] fp32."""
    if input_scale is None:
        y = x.abs()
        torch.amax(y, dim=1, keepdim=True, out=scale).div_(CODE_MAX)
        scale.masked_fill_(scale == 0, 1.0)
        torch.div(x, scale, out=y)
    else:
        y = x * 0  # NaN or inf in a row must reach its result, and codes cannot carry it
        torch.sum(y, dim=1, keepdim=True, out=scale).add_(input_scale)
        torch.div(x, input_scale, out=y)
    codes.copy_(y.round_().clamp_(-CODE_MAX, CODE_MAX))
