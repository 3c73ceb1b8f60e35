"""GPTQ: rounds weights so that later weights compensate the error of earlier ones on calibration inputs.

Rounding every weight to the nearest code is optimal only for uncorrelated inputs. Here the columns are rounded one
after the other, and after each one the remaining float columns are adjusted so that the layer's outputs on calibration
inputs stay as close as possible to those of the float layer (Frantar et al., "GPTQ", 2023, after Hassibi and Stork's
"Optimal Brain Surgeon", 1992). This only needs the Gram matrix of the inputs. The scale of each row, and the code of
its largest weight, stay as in plain rounding, so the stored layer has the usual format, each row has a code of 127 or
-127, and nothing changes at run time.

Everything is computed in float64, so that CPUs and GPUs, which sum in different orders, hardly ever choose different
codes.
"""

import torch
from torch import Tensor

from vggt_int8.kernels.reference import CODE_MAX

# Relative to the mean of the Gram matrix's diagonal, and added to all of it, so that barely excited inputs do not
# dominate.
DAMPING = 0.01
_BLOCK = 128  # columns whose errors are propagated to all later columns in one matrix product


@torch.no_grad()
def round_by_inputs(weight: Tensor, scale: Tensor, gram: Tensor) -> Tensor:
    """weight [N, K] float, scale [N, 1], Gram matrix of the inputs [K, K] fp64 -> codes [N, K] int8.

    Columns are processed in the order of decreasing input energy, so that the most important ones have the most columns
    left to compensate their error. Without any input energy, all weights are rounded to nearest. Raises `ValueError` if
    the Gram matrix has another size.
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
    """The upper triangular U with U^T U = (gram + damping)^-1: row j says how columns after j compensate column j."""
    damping = DAMPING * gram.diagonal().mean()
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    if damping == 0:
        return identity
    lower = torch.linalg.cholesky(gram + damping * identity)
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
