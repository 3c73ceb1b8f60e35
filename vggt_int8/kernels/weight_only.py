"""Weight-only layers in any floating-point dtype on any device: decode the weight, then compute.

The float weight `codes * scale` is computed in fp32 and cast once, so that half precision gets the scaled weight and
not codes of up to 127, whose products would overflow. Weights above 65504 become inf in fp16, as in a network of
floats.
"""

import torch
from torch import Tensor


def dequantize(weight: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """int8 codes and an fp32 scale that broadcasts over them -> the float weight, same shape, in `dtype`."""
    return (weight.float() * weight_scale).to(dtype)
