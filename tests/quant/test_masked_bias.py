"""Which layers of others multiply their bias with a mask and do nothing else, in every dtype."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggt_int8.quant.masked_bias import added_bias, mask_problem

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Masked(nn.Linear):
    """As the public code of VGGT-Omega has it, with a bias that is small beside the products."""

    def __init__(self) -> None:
        super().__init__(256, 96)
        nn.init.normal_(self.weight, generator=torch.Generator().manual_seed(0))
        nn.init.normal_(self.bias, std=1e-3, generator=torch.Generator().manual_seed(1))
        self.register_buffer("bias_mask", torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(32))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias * self.bias_mask.to(self.bias.dtype))


class Apart(Masked):
    """The same, with one rounding more."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) + self.bias * self.bias_mask.to(self.bias.dtype)


class Unmasked(Masked):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Doubled(Masked):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, 2 * self.bias * self.bias_mask.to(self.bias.dtype))


class Scaled(Masked):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 1.5)


class Gated(Masked):
    def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) * gate


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [Masked, Apart])
def test_what_masks_its_bias_alone_may_be_replaced(kind: type[Masked], dtype: torch.dtype) -> None:
    layer = kind().to(dtype)
    assert mask_problem(layer) == ""
    bias = added_bias(layer)
    assert bias is not None
    assert bias[32:64].count_nonzero() == 0
    assert torch.equal(bias[:32], layer.bias[:32])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        *((kind, "does more than") for kind in (Unmasked, Doubled, Scaled)),
        (Gated, "cannot be called as a Linear: .*'gate'"),
    ],
)
def test_what_does_more_is_kept(kind: type[Masked], problem: str, dtype: torch.dtype) -> None:
    """A bias that is not masked after all, or another one, shows however small it is."""
    assert re.search(problem, mask_problem(kind().to(dtype)))
