"""The definition as a backend: plain PyTorch integer arithmetic, for every scheme and device, not optimized."""

from torch import Tensor

from vggt_int8.kernels import reference
from vggt_int8.quant.backends import Backend, QuantizedLinear
from vggt_int8.recipe import Scheme


class ReferenceBackend(Backend):
    name = "reference"

    def unsupported(self, scheme: Scheme, device_type: str) -> str | None:
        return None

    def kernel(self, layer: QuantizedLinear, device_type: str) -> str:
        if layer.scheme.activations == "none":
            return "fp32 matmul of codes"
        product = "int32 matmul" if device_type == "cpu" else "float64 matmul of codes (exact)"
        return f"{product} + outlier columns in fp32" if layer.scheme.outlier_threshold else product

    def linear(self, x: Tensor, layer: QuantizedLinear, input_scale: Tensor | None) -> Tensor:
        weight, scale, bias = layer.codes, layer.weight_scale, layer.bias
        if layer.scheme.activations == "none":
            return reference.w8a16_linear(x, weight, scale, bias)
        if layer.scheme.outlier_threshold:
            return reference.llm_int8_linear(x, weight, scale, bias, layer.scheme.outlier_threshold)
        return reference.w8a8_linear(x, weight, scale, bias, input_scale)


BACKEND = ReferenceBackend()
