"""A linear layer of a block with what stands before and after it, fused as far as the layer's kind allows.

The layer is read, never copied: an `nn.Linear`, or an `Int8Linear` with INT8 or floating-point activations. The
operators of `vggt_int8.kernels.ops` do the INT8 part.
"""

from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggt_int8.kernels import ops
from vggt_int8.kernels.epilogue import Epilogue
from vggt_int8.quant.backends import get_backend
from vggt_int8.quant.linear import Int8Linear


def linear(x: Tensor, layer: nn.Module) -> Tensor:
    """x [M, K] -> [M, N] in x's dtype."""
    if takes_codes(layer):
        codes, scale = ops.quantize_rows(x, layer.input_scale, layer.rotation)
        return _gemm(codes, scale, layer, Epilogue(layer.bias, x.dtype))
    if isinstance(layer, Int8Linear):
        y: Tensor = ops.w8a16_linear(x, layer.codes, layer.weight_scale, layer.bias)
        return y
    assert isinstance(layer, nn.Linear)
    return F.linear(x, layer.weight, layer.bias)


def norm_linear(x: Tensor, norm: nn.LayerNorm, layer: nn.Module, gelu: bool = False) -> Tensor:
    """x [M, K] -> LayerNorm -> linear (-> GELU) -> [M, N] in x's dtype."""
    if takes_codes(layer):
        codes, scale = _norm(x, norm, layer)
        return _gemm(codes, scale, layer, Epilogue(layer.bias, x.dtype, gelu))
    y = linear(F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps), layer)
    return F.gelu(y) if gelu else y


def linear_residual_(out: Tensor, y: Tensor, layer: nn.Module, gamma: Tensor, x: Tensor) -> None:
    """Write `x + gamma * linear(y)` into `out`, which may be x: y [M, K], gamma [N], x and out [M, N]."""
    if takes_codes(layer):
        codes, scale = ops.quantize_rows(y, layer.input_scale, layer.rotation)
        _gemm_into(out, codes, scale, layer, Epilogue(layer.bias, out.dtype, gamma=gamma, residual=x))
    else:
        torch.addcmul(x, linear(y, layer), gamma, out=out)


def mlp_residual_(x: Tensor, norm: nn.LayerNorm, fc1: nn.Module, fc2: nn.Module, gamma: Tensor) -> None:
    """`x += gamma * fc2(gelu(fc1(norm(x))))`, x [M, C].

    fc1 makes fc2's codes where both take codes: with a static scale the hidden floats never exist, with a dynamic one
    they do on a GPU, and on a CPU as long as they are in the cache.
    """
    if not (takes_codes(fc1) and takes_codes(fc2)):
        linear_residual_(x, norm_linear(x, norm, fc1, gelu=True), fc2, gamma, x)
        return
    codes, scale = _norm(x, norm, fc1)
    if fc2.input_scale is None:
        epilogue = Epilogue(fc1.bias, x.dtype, gelu=True, rotation=fc2.rotation)
        hidden, hidden_scale = ops.int8_gemm_quantize(codes, scale, fc1.codes, fc1.weight_scale, epilogue)
    elif fc2.rotation:  # of whole rows, which a tile of the product does not see
        floats = _gemm(codes, scale, fc1, Epilogue(fc1.bias, x.dtype, gelu=True))
        hidden, hidden_scale = ops.quantize_rows(floats, fc2.input_scale, fc2.rotation)
    else:
        hidden = _gemm(codes, scale, fc1, Epilogue(fc1.bias, x.dtype, gelu=True, out_scale=fc2.input_scale))
        # Codes cannot carry NaN: a row that holds it passes it on through its scale.
        hidden_scale = fc2.input_scale + 0 * scale
    _gemm_into(x, hidden, hidden_scale, fc2, Epilogue(fc2.bias, x.dtype, gamma=gamma, residual=x))


def takes_codes(layer: nn.Module) -> TypeGuard[Int8Linear]:
    """Whether the layer's input is quantized."""
    return isinstance(layer, Int8Linear) and layer.scheme.activations != "none"


def kernel(layer: Int8Linear, device_type: str) -> str:
    """What multiplies the layer on "cpu" or "cuda", in words: these operators are the native backend's."""
    return get_backend("native").kernel(layer, device_type)


def _norm(x: Tensor, norm: nn.LayerNorm, layer: Int8Linear) -> tuple[Tensor, Tensor]:
    """What the layer multiplies: codes and scales of its LayerNorm."""
    result: tuple[Tensor, Tensor] = ops.layer_norm_quantize(
        x, norm.weight, norm.bias, norm.eps, layer.input_scale, layer.rotation
    )
    return result


def _gemm(codes: Tensor, scale: Tensor, layer: Int8Linear, epilogue: Epilogue) -> Tensor:
    result: Tensor = ops.int8_gemm(codes, scale, layer.codes, layer.weight_scale, epilogue)
    return result


def _gemm_into(out: Tensor, codes: Tensor, scale: Tensor, layer: Int8Linear, epilogue: Epilogue) -> None:
    ops.int8_gemm_into_(out, codes, scale, layer.codes, layer.weight_scale, epilogue)
