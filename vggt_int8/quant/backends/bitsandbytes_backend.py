"""bitsandbytes' INT8 GEMM over our stored codes, with LLM.int8() outlier columns if a recipe asks for them.

Its scales are absmax values, 127 times ours. The fused kernels behind `Linear8bitLt` read and write fp16; other dtypes
and outlier columns use fp32 scales around the same integer GEMM, because fp16 intermediates overflow where the result
fits.
"""

import bitsandbytes  # noqa: F401  (registers its operators)
import torch
import torch.nn.functional as F
from torch import Tensor

from vggt_int8.kernels import reference
from vggt_int8.machine import int_mm_is_exact, pytorch_uses_avx512
from vggt_int8.quant.backends import SATURATES, Backend, QuantizedLinear
from vggt_int8.recipe import Scheme

_MULTIPLE = 4  # of K, required by cuBLASLt's INT8 GEMM; bitsandbytes would fall back to floats


class BitsandbytesBackend(Backend):
    name = "bitsandbytes"

    def unsupported(self, scheme: Scheme, device_type: str) -> str | None:
        if scheme.activations == "none":
            return "it has no weight-only INT8"
        if scheme.activations == "static":
            return "it has no static activation scales"
        return SATURATES if device_type == "cpu" and _uses_int_mm() and not int_mm_is_exact() else None

    def kernel(self, layer: QuantizedLinear, device_type: str) -> str:
        gemm = "bitsandbytes int8_linear_matmul"
        if device_type == "cpu" and not _uses_int_mm():
            gemm += " (fp32 product: this CPU has no AVX-512)"
        if layer.in_features % _MULTIPLE:
            gemm += f", K padded to a multiple of {_MULTIPLE}"
        if layer.scheme.outlier_threshold:
            gemm += f" + input columns >= {layer.scheme.outlier_threshold:g} in fp32"
        return gemm

    def linear(self, x: Tensor, layer: QuantizedLinear, input_scale: Tensor | None) -> Tensor:
        if x.is_cuda and x.dtype == torch.float16 and not layer.scheme.outlier_threshold:
            return self._fused(x, layer)
        if layer.scheme.outlier_threshold:
            threshold = layer.scheme.outlier_threshold
            return reference.llm_int8_linear(
                x, layer.codes, layer.weight_scale, layer.bias, threshold, matmul=_int8_matmul
            )
        codes, x_scale = reference.quantize_per_token(x)
        acc = _int8_matmul(codes, layer.codes)
        return reference.scaled_epilogue(acc, x_scale, layer.weight_scale, layer.bias, x.dtype)

    @staticmethod
    def _fused(x: Tensor, layer: QuantizedLinear) -> Tensor:
        extra = -layer.in_features % _MULTIPLE
        weight = F.pad(layer.codes, (0, extra)) if extra else layer.codes
        x = F.pad(x, (0, extra)) if extra else x.contiguous()
        codes, row_absmax, _ = torch.ops.bitsandbytes.int8_vectorwise_quant(x)
        row_absmax = row_absmax + 0 * x.amax(dim=-1).float()  # propagate NaN, which its maximum skips
        weight_absmax = layer.weight_scale.view(-1) * reference.CODE_MAX
        return torch.ops.bitsandbytes.int8_scaled_mm(
            codes, weight, row_absmax, weight_absmax, bias=layer.bias, dtype=x.dtype
        )


def _uses_int_mm() -> bool:
    """Whether bitsandbytes multiplies integers on this CPU."""
    return pytorch_uses_avx512()


def _int8_matmul(x_codes: Tensor, weight: Tensor) -> Tensor:
    """[M, K] int8 x [N, K] int8 -> [M, N] int32 through bitsandbytes."""
    extra = -weight.shape[1] % _MULTIPLE
    if extra:
        x_codes, weight = F.pad(x_codes, (0, extra)), F.pad(weight, (0, extra))
    return torch.ops.bitsandbytes.int8_linear_matmul(x_codes, weight)


BACKEND = BitsandbytesBackend()
