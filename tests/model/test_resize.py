"""The gradient of a resize, made of matrix products, is the one that PyTorch scatters."""

import pytest
import torch
import torch.nn.functional as F

from vggt_int8.model.resize import interpolation_matrix, resize


@pytest.mark.parametrize(
    ("source", "target"), [((7, 6), (14, 13)), ((1, 4), (5, 9)), ((9, 6), (4, 3)), ((5, 5), (1, 8)), ((3, 3), (3, 3))]
)
def test_values_and_gradients_are_pytorchs(source: tuple[int, int], target: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, *source, dtype=torch.float64, generator=generator, requires_grad=True)
    gradient = torch.randn(2, 5, *target, dtype=torch.float64, generator=generator)
    result, expected = resize(x, target), F.interpolate(x, size=target, mode="bilinear", align_corners=True)
    assert torch.equal(result, expected)
    (got,), (want,) = torch.autograd.grad(result, x, gradient), torch.autograd.grad(expected, x, gradient)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)  # the weights are kept in fp32


def test_rows_of_the_matrix_sum_to_one() -> None:
    matrix = interpolation_matrix(56, 112, device=torch.device("cpu"))
    torch.testing.assert_close(matrix.sum(1), torch.ones(112))
    assert (matrix > 0).sum(1).max() == 2
