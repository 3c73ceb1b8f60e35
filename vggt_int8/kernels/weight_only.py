"""Weight-only layers in any floating-point dtype on any device: turn the codes back into floats, then
compute.

The float weight `codes * scale` is made in fp32 and cast once, so that half precision sees the true weight
and not codes of up to 127, whose products would overflow. Weights above 65504 are inf in fp16, as in a network
of floats.
"""

import torch
from torch import Tensor


def dequantize(weight: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """int8 codes and an fp32 scale that broadcasts over them -> the float weight, same shape, in `dtype`."""
    return (weight.float() * weight_scale).to(dtype)
