"""The stacked Muon makes the steps of PyTorch's own."""

import pytest
import torch
from torch.optim import Muon

from vggt_int8.training.muon import StackedMuon, orthogonalise

SHAPES = [(48, 32), (32, 48), (32, 32), (48, 32), (32, 32), (64, 32)]
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def test_steps_are_those_of_the_library() -> None:
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=generator) for shape in SHAPES]
    ours, theirs = ([start.clone().requires_grad_() for start in starts] for _ in range(2))
    stacked = StackedMuon(ours, lr=0.02, weight_decay=0.1)
    library = Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            # One matrix goes without a gradient, as one of an unused head does.
            a.grad = b.grad = None if (step, index) == (2, 3) else torch.randn(a.shape, generator=generator)
        stacked.step()
        library.step()
    for start, a, b in zip(starts, ours, theirs, strict=True):
        moved = (b - start).norm()
        assert (a - b).norm() < 0.01 * moved  # bf16 products, summed in another order
        torch.testing.assert_close(stacked.state[a]["momentum_buffer"], library.state[b]["momentum_buffer"])


@pytest.mark.parametrize("shape", [(3, 40, 40), (2, 64, 32), (2, 32, 64)])
def test_orthogonalise_brings_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    before = torch.linalg.svdvals(matrices)
    after = torch.linalg.svdvals(orthogonalise(matrices, COEFFICIENTS, 5, 1e-7).float())
    large = before > 0.05 * before.amax(dim=1, keepdim=True)
    assert ((after > 0.6) & (after < 1.3))[large].all()
