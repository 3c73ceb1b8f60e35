"""Weight-only linears inside a W8A8 recipe: codes to floats, then PyTorch's own linear, on any device."""

import torch.nn.functional as F
from torch import Tensor

from vggt_int8.kernels.weight_only import dequantize
from vggt_int8.quant.backends import PORTABLE, Backend, QuantizedLinear
from vggt_int8.recipe import Scheme


class PortableBackend(Backend):
    name = PORTABLE

    def unsupported(self, scheme: Scheme, device_type: str) -> str | None:
        return None if scheme.activations == "none" else "it is for weight-only layers"

    def kernel(self, layer: QuantizedLinear, device_type: str) -> str:
        return "dequantize + linear"

    def linear(self, x: Tensor, layer: QuantizedLinear) -> Tensor:
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        return F.linear(x, dequantize(layer.codes, layer.weight_scale, x.dtype), bias)


BACKEND = PortableBackend()
