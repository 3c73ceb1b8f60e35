"""A linear layer of a block, fused with what precedes and follows it as far as its type allows.

The layer is read and never copied: an `nn.Linear`, or an `Int8Linear` with INT8 or floating-point activations. The
operators of `vggt_int8.kernels.ops` do the INT8 part. `scale_of` returns the static scales of a layer for the rows at
hand (`TokenScales.of`); by default the layer's own, one for all rows.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggt_int8.kernels import ops
from vggt_int8.kernels.epilogue import Epilogue
from vggt_int8.quant.backends import get_backend
from vggt_int8.quant.linear import Int8Linear
from vggt_int8.quant.masked_bias import added_bias


class Codes(NamedTuple):
    """Quantized activations: codes [M, K] int8 and one scale per row [M, 1] fp32."""

    codes: Tensor
    scale: Tensor


def own_scale(layer: Int8Linear) -> Tensor | None:
    return layer.input_scale


ScaleOf = Callable[[Int8Linear], Tensor | None]


ALL = slice(None)


def linear(x: Tensor, layer: nn.Module, scale_of: ScaleOf = own_scale, outputs: slice = ALL) -> Tensor:
    """x [M, K] -> [M, N] in x's dtype. outputs: compute only this slice of the N outputs."""
    assert isinstance(layer, nn.Linear | Int8Linear)
    bias = added_bias(layer) if isinstance(layer, nn.Linear) else layer.bias
    bias = None if bias is None else bias[outputs]
    if takes_codes(layer):
        return _gemm(_quantize(x, layer, scale_of), layer, Epilogue(bias, x.dtype), outputs)
    if isinstance(layer, Int8Linear):
        y: Tensor = ops.w8a16_linear(x, layer.codes[outputs], layer.weight_scale[outputs], bias, layer.rotation)
        return y
    return F.linear(x, layer.weight[outputs], bias)


def norm_linear(
    x: Tensor,
    norm: nn.LayerNorm,
    layer: nn.Module,
    gelu: bool = False,
    scale_of: ScaleOf = own_scale,
    outputs: slice = ALL,
) -> Tensor:
    """x [M, K] -> LayerNorm -> linear (-> GELU) -> [M, N] in x's dtype. outputs: compute only this slice of the N
    outputs.
    """
    if takes_codes(layer):
        bias = None if layer.bias is None else layer.bias[outputs]
        return _gemm(_norm(x, norm, layer, scale_of), layer, Epilogue(bias, x.dtype, gelu), outputs)
    normed = F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    y = linear(normed, layer, outputs=outputs)
    return F.gelu(y) if gelu else y


def linear_residual_(
    out: Tensor, y: Tensor | Codes, layer: nn.Module, gamma: Tensor, x: Tensor, scale_of: ScaleOf = own_scale
) -> None:
    """Write `x + gamma * linear(y)` into `out`, which may be x. y [M, K], gamma [N], x and out [M, N]."""
    if takes_codes(layer):
        codes = y if isinstance(y, Codes) else _quantize(y, layer, scale_of)
        _gemm_into(out, codes, layer, Epilogue(layer.bias, out.dtype, gamma=gamma, residual=x))
    else:
        assert isinstance(y, Tensor)
        torch.addcmul(x, linear(y, layer), gamma, out=out)


def mlp_residual_(
    x: Tensor, norm: nn.LayerNorm, fc1: nn.Module, fc2: nn.Module, gamma: Tensor, scale_of: ScaleOf = own_scale
) -> None:
    """`x += gamma * fc2(gelu(fc1(norm(x))))`, x [M, C].

    If both layers take codes, fc1 writes the codes that fc2 reads. With static scales the hidden floats never exist (if
    rotated, some rows of them on a CPU); with dynamic scales they exist in memory on a GPU and in the cache on a CPU.
    """
    if not (takes_codes(fc1) and takes_codes(fc2)):
        linear_residual_(x, norm_linear(x, norm, fc1, gelu=True, scale_of=scale_of), fc2, gamma, x, scale_of)
        return
    epilogue = Epilogue(fc1.bias, x.dtype, gelu=True, out_scale=scale_of(fc2), rotation=fc2.rotation)
    normed = _norm(x, norm, fc1, scale_of)
    hidden = Codes(*ops.int8_gemm_quantize(*normed, fc1.codes, fc1.weight_scale, epilogue))
    _gemm_into(x, hidden, fc2, Epilogue(fc2.bias, x.dtype, gamma=gamma, residual=x))


def takes_codes(layer: nn.Module) -> TypeGuard[Int8Linear]:
    """Whether the layer's input is quantized."""
    return isinstance(layer, Int8Linear) and layer.scheme.activations != "none"


def kernel(layer: Int8Linear, device_type: str) -> str:
    """Description of the kernel that runs the layer on "cpu" or "cuda": the native backend's, whose operators these
    are.
    """
    return get_backend("native").kernel(layer, device_type)


def _quantize(x: Tensor, layer: Int8Linear, scale_of: ScaleOf) -> Codes:
    return Codes(*ops.quantize_rows(x, scale_of(layer), layer.rotation))


def _norm(x: Tensor, norm: nn.LayerNorm, layer: Int8Linear, scale_of: ScaleOf) -> Codes:
    """The LayerNorm of x as the codes and scales that `layer` multiplies."""
    affine = norm.weight, norm.bias, norm.eps
    return Codes(*ops.layer_norm_quantize(x, *affine, scale_of(layer), layer.rotation))


def _gemm(x: Codes, layer: Int8Linear, epilogue: Epilogue, outputs: slice = ALL) -> Tensor:
    result: Tensor = ops.int8_gemm(*x, layer.codes[outputs], layer.weight_scale[outputs], epilogue)
    return result


def _gemm_into(out: Tensor, x: Codes, layer: Int8Linear, epilogue: Epilogue) -> None:
    ops.int8_gemm_into_(out, *x, layer.codes, layer.weight_scale, epilogue)
