"""Linears that add only a part of their bias: the qkv layers of VGGT-Ω, whose keys have none.

Such a layer is a subclass of `nn.Linear` with a buffer `bias_mask` [N], and adds the product of bias and mask. This
package has one (`KeylessBiasLinear`), the public code another. An INT8 layer has no mask: it stores the product as its
bias.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggt_int8.model.omega.constants import KeylessBiasLinear

MASK = "bias_mask"
_ROWS = 3  # on which a foreign layer is called, the first of zeros
_TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 1e-1}  # relative to the largest result; 1e-4 for other dtypes


def has_bias_mask(layer: nn.Module) -> bool:
    """Whether a layer has the tensors of a linear with a masked bias."""
    mask, bias = layer._buffers.get(MASK), layer._parameters.get("bias")
    return isinstance(layer, nn.Linear) and mask is not None and bias is not None and mask.shape == bias.shape


def bias_mask(layer: nn.Module) -> Tensor:
    """The mask [N] of a layer that has one. For this package's own class it is a constant, also on the meta device."""
    if isinstance(layer, KeylessBiasLinear):
        place = layer.bias.device
        return layer.constants(torch.device("cpu") if place.type == "meta" else place)
    return layer.get_buffer(MASK)


def added_bias(layer: nn.Linear) -> Tensor | None:
    """What a linear adds to its product, [N]; None without a bias."""
    if layer.bias is None or not has_bias_mask(layer):
        return layer.bias
    return masked(layer.bias.detach(), bias_mask(layer))


def masked(bias: Tensor, mask: Tensor) -> Tensor:
    """bias * mask; where the mask is 0, the bias may hold anything, even NaN."""
    return torch.where(mask == 0, 0, bias * mask.to(bias))


@torch.no_grad()
def mask_problem(layer: nn.Linear) -> str:
    """Why a layer with a mask does more, or something else, than this module assumes; empty if it does not.

    A foreign layer is called on some rows, since its code may use the mask in any way. For a row of zeros it must
    return exactly the masked bias.
    """
    if isinstance(layer, KeylessBiasLinear):
        return ""
    kind, mask = type(layer).__name__, layer.get_buffer(MASK)
    if layer.weight.is_meta or mask.is_meta:
        return f"{kind} is more than a Linear"
    if not bool(mask.isfinite().all()):
        return f"the {MASK} of {kind} holds NaN or inf: load the model's weights, of which it is one, first"
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(_ROWS, layer.in_features, generator=draw).to(layer.weight)
    rows[0] = 0
    want = F.linear(rows, layer.weight, added_bias(layer)).float()
    try:
        got = type(layer).forward(layer, rows).float()
    except Exception as error:  # foreign code may raise anything
        return f"{kind} has a {MASK}, but cannot be called as a Linear: {error}"
    bound = torch.full_like(want, _TOLERANCE.get(layer.weight.dtype, 1e-4) * want.abs().max().item())
    bound[0] = 2 * torch.finfo(layer.weight.dtype).eps * want[0].abs()
    if got.shape != want.shape or not bool(((got - want).abs() <= bound).all()):
        return f"{kind} has a {MASK}, but does more than to multiply its bias with it"
    return ""
