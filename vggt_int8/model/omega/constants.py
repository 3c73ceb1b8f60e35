"""Layers with a buffer of constants in the checkpoint, among them the linear without a bias for keys.

They are separate from the network's other layers because quantization uses them without importing transformers.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConstantBuffer(nn.Module):
    """Base of a layer with a buffer of constants that is in the checkpoint and that `forward` does not read.

    Loaders that leave buffers uninitialized, or round them, therefore do no harm. Other constants in a checkpoint
    belong to another network: `load_state_dict` raises for them, and `holds` detects them.
    """

    buffer: ClassVar[str]

    def constants(self, device: torch.device | None = None) -> Tensor:
        raise NotImplementedError

    def holds(self, values: Tensor) -> bool:
        """Whether a buffer has these constants, to the precision of bfloat16."""
        want = self.constants(values.device)
        return values.shape == want.shape and torch.allclose(values.float(), want, rtol=2**-8, atol=0)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        name = prefix + self.buffer
        if (values := state_dict.get(name)) is not None and not (values.is_meta or self.holds(values)):
            *_, errors = rest
            errors.append(f"{name} holds other constants than those of VGGT-Omega")
            return
        super()._load_from_state_dict(state_dict, prefix, *rest)


class KeylessBiasLinear(nn.Linear, ConstantBuffer):
    """Queries, keys and values [..., 3C] of tokens [..., C]; the bias has no part for keys.

    The checkpoint has unused values there, and `bias_mask`, a mask of ones, zeros and ones.
    """

    buffer = "bias_mask"

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.register_buffer(self.buffer, self.constants())

    def constants(self, device: torch.device | None = None) -> Tensor:
        """[3C] of ones, zeros (keys) and ones."""
        return torch.tensor([1.0, 0.0, 1.0], device=device).repeat_interleave(self.out_features // 3)

    def effective_bias(self) -> Tensor:
        """[3C]: the bias with the mask applied."""
        query, key, value = self.bias.chunk(3)
        return torch.cat([query, torch.zeros_like(key), value])

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.effective_bias())
