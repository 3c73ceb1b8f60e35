"""torchao's `Int8Tensor` linears over our stored codes.

Any symmetric pair of codes and scale is a valid `Int8Tensor`, so nothing is converted. Four properties of torchao are
worked around:

- Its linear computes `int32 * scale` in the activation's dtype before applying the weight scale, which overflows fp16
  although the result would fit. Inputs are fp32 here.
- Products with 16 rows or fewer, or with sides that are not multiples of 8, fall back to floats or even to the CPU.
  They are padded with zeros, which does not change results.
- Its dynamic scales have a lower bound of 1.2e-7, which is too coarse for small tokens. Rows are divided by their own
  scale first, and the result is multiplied by it.
- Its static codes reach -128 and hide NaN and inf. Rows are divided by their static scale and clamped first, so its
  codes are those of the definition, and the row's factor carries NaN to the result.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchao.quantization import Int8Tensor, PerRow, PerTensor
from torchao.quantization.quantize_.workflows.int8.int8_tensor import QuantizeTensorToInt8Kwargs

from vggt_int8.kernels import reference
from vggt_int8.machine import int_mm_is_exact
from vggt_int8.quant.backends import SATURATES, Backend, QuantizedLinear
from vggt_int8.recipe import Scheme

_DYNAMIC = QuantizeTensorToInt8Kwargs(granularity=PerRow())
_STATIC = QuantizeTensorToInt8Kwargs(granularity=PerTensor())  # for rows that only need rounding
_MIN_ROWS = 24  # the first multiple of 8 above the 16 rows that the CUDA GEMM refuses
_MULTIPLE = 8


class TorchaoBackend(Backend):
    name = "torchao"

    def unsupported(self, scheme: Scheme, device_type: str) -> str | None:
        if scheme.outlier_threshold:
            return "it has no outlier columns"
        if device_type == "cpu" and scheme.activations != "none" and not int_mm_is_exact():
            return SATURATES
        return None

    def kernel(self, layer: QuantizedLinear, device_type: str) -> str:
        if layer.scheme.activations == "none":
            return "torchao Int8Tensor dequantize + linear"
        padding = []
        if layer.in_features % _MULTIPLE or layer.out_features % _MULTIPLE:
            padding.append(f"sides padded to multiples of {_MULTIPLE}")
        if device_type == "cuda":
            padding.append(f"fewer than {_MIN_ROWS} rows padded to {_MIN_ROWS}")
        return "; ".join(["torchao Int8Tensor linear in fp32", *padding])

    def linear(self, x: Tensor, layer: QuantizedLinear, input_scale: Tensor | None) -> Tensor:
        if layer.scheme.activations == "none":
            weight = Int8Tensor(layer.codes, layer.weight_scale, [1, layer.in_features], x.dtype)
            bias = None if layer.bias is None else layer.bias.to(x.dtype)
            return F.linear(x, weight.dequantize(), bias)
        rows = x.shape[0]
        extra_k, extra_n = -layer.in_features % _MULTIPLE, -layer.out_features % _MULTIPLE
        extra_rows = max(0, _MIN_ROWS - rows) if x.is_cuda else 0
        codes, scale = layer.codes, layer.weight_scale
        inputs = x.float()
        if extra_k or extra_n:
            codes = F.pad(codes, (0, extra_k, 0, extra_n))
            scale = F.pad(scale, (0, 0, 0, extra_n), value=1.0)
        if input_scale is None:
            row_scale = reference.absmax_scale(inputs, dim=-1)
            inputs = inputs / row_scale
        else:
            row_scale = input_scale.view(-1, 1) + (inputs * 0).sum(dim=-1, keepdim=True)
            inputs = (inputs / input_scale.view(-1, 1)).clamp(-reference.CODE_MAX, reference.CODE_MAX)
        if extra_k or extra_rows:
            inputs = F.pad(inputs, (0, extra_k, 0, extra_rows))
        in_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
        product = _product_in_graph if in_graph else _product
        y = product(inputs, codes, scale, input_scale is not None)[:rows, : layer.out_features] * row_scale
        return (y if layer.bias is None else y + layer.bias.float()).to(x.dtype)


def _product(inputs: Tensor, codes: Tensor, scale: Tensor, static: bool) -> Tensor:
    """fp32 [M, K], codes [N, K], scale [N, 1] -> fp32 [M, N], with inputs quantized by torchao.

    static: inputs only need rounding.
    """
    block = [1, codes.shape[1]]
    if not static:
        weight = Int8Tensor(codes, scale, block, torch.float32, act_quant_kwargs=_DYNAMIC)
    else:
        one = scale.new_ones(1, 1)
        weight = Int8Tensor(codes, scale, block, torch.float32, act_quant_kwargs=_STATIC, act_quant_scale=one)
    return F.linear(inputs, weight)


# torch.compile and torch.jit.trace cannot follow the construction of this tensor, so in a graph it is one operator.
_product_in_graph = torch.library.custom_op("vggt_int8::torchao_linear", _product, mutates_args=())


@_product_in_graph.register_fake
def _(inputs: Tensor, codes: Tensor, scale: Tensor, static: bool) -> Tensor:
    return inputs.new_empty(inputs.shape[0], codes.shape[0])


BACKEND = TorchaoBackend()
