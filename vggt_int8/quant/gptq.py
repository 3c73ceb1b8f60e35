"""Rounding that knows the inputs: what one weight loses, weights that are not rounded yet make good.

Rounding each weight to the nearest code is best only if inputs do not go together. Here columns are rounded one after
the other, and after each the columns that are still floats move to where, with what is rounded already, the layer's
outputs on calibration inputs are closest to those of the float layer (Frantar et al., "GPTQ", 2023; the idea is that of
Hassibi and Stork's "Optimal Brain Surgeon", 1992). Of the inputs it needs their Gram matrix alone. The scale of a row
stays that of its largest weight, and so does the code of that weight: the stored layer is an ordinary one, each row of
which has a code of 127 or -127, and nothing is different at run time.

All in float64: then CPUs and GPUs, which add in other orders, hardly ever choose another code.
"""

import torch
from torch import Tensor

from vggt_int8.kernels.reference import CODE_MAX

# Of the mean of the Gram matrix's diagonal, added to all of it: inputs that calibration hardly showed must not decide.
DAMPING = 0.01
_BLOCK = 128  # columns that are rounded before what they lost is handed to the columns behind them, in one product


@torch.no_grad()
def round_by_inputs(weight: Tensor, scale: Tensor, gram: Tensor) -> Tensor:
    """weight [N, K] float, scale [N, 1], Gram matrix of the inputs [K, K] fp64 -> codes [N, K] int8.

    The column whose input is largest comes first: it has the most columns behind it. Inputs that are zero throughout
    leave nothing to choose by, so all of these round to the nearest code. Raises `ValueError` for another K.
    """
    n, k = weight.shape
    if gram.shape != (k, k):
        raise ValueError(f"the Gram matrix is {list(gram.shape)} for a layer of {k} inputs: it must be [{k}, {k}]")
    order = gram.diagonal().argsort(descending=True, stable=True)
    factor = _cholesky_of_inverse(gram[order][:, order])
    floats, steps = weight.double()[:, order], scale.double().view(n, 1)
    largest = floats.abs().argmax(dim=1, keepdim=True)
    kept = (floats.gather(1, largest) / steps).round_()
    codes = torch.empty(n, k, dtype=torch.int8, device=weight.device)
    for begin in range(0, k, _BLOCK):
        end = min(begin + _BLOCK, k)
        lost = torch.empty(n, end - begin, dtype=torch.float64, device=weight.device)
        for column in range(begin, end):
            exact = floats[:, column : column + 1]
            rounded = torch.where(largest == column, kept, exact / steps).round_().clamp_(-CODE_MAX, CODE_MAX)
            codes[:, order[column]] = rounded.view(-1).to(torch.int8)
            error = (exact - rounded * steps) / factor[column, column]
            floats[:, column:end] -= error * factor[column, column:end]
            lost[:, column - begin] = error.view(-1)
        floats[:, end:] -= lost @ factor[begin:end, end:]
    return codes


def _cholesky_of_inverse(gram: Tensor) -> Tensor:
    """The upper triangle U with U^T U = (gram + damping)^-1: row j says how columns behind j answer for column j."""
    damping = DAMPING * gram.diagonal().mean()
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    if damping == 0:
        return identity
    lower = torch.linalg.cholesky(gram + damping * identity)
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
