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

    The column whose input is largest comes first: it has the most columns behind it. Inputs that are zero throughout
    leave nothing to choose by, so all of these round to the nearest code. Raises `ValueError` for another K.
    """
    n, k = weight.shape
    if gram.shape != (k, k):
        raise ValueError(f"the Gram matrix is {list(gram.shape)} for a layer of {k} inputs: it must be [{k}, {k}]")
    order = gram.diagonal().argsort(descending=True, stable=True)
    factor = _cholesky_of_inverse(gram[order][:, order])
    factor /= factor.diagonal().unsqueeze(1).clone()  # row j: what columns behind j take for a lost step of column j
    # Columns of the weight in steps, each in one piece [K, N]: the scale is the same for all of a row's columns.
    columns = (weight.double()[:, order] / scale.double().view(n, 1)).t().contiguous()
    largest = columns.abs().argmax(dim=0, keepdim=True)
    kept = columns.gather(0, largest).round_().squeeze(0)
    is_kept = torch.zeros(k, n, dtype=torch.bool, device=weight.device).scatter_(0, largest, True)
    for begin in range(0, k, _BLOCK):
        end = min(begin + _BLOCK, k)
        lost = _round_block(columns[begin:end], factor[begin:end, begin:end], kept, is_kept[begin:end])
        columns[end:].addmm_(factor[begin:end, end:].t(), lost, alpha=-1)
    codes = torch.empty(n, k, dtype=torch.int8, device=weight.device)
    codes[:, order] = columns.t().to(torch.int8)
    return codes


def _round_block(columns: Tensor, factor: Tensor, kept: Tensor, is_kept: Tensor) -> Tensor:
    """Round columns [B, N] in place, one after the other, and return what each has lost, [B, N], all in steps.

    factor [B, B]: its row j is what later columns take for a step that column j lost. kept [N]: the codes of weights
    that are not to move, where is_kept [B, N]. On a GPU launches are what it takes: five for a column.
    """
    takes = factor.t().contiguous()
    lost = torch.empty_like(columns)
    for j, column in enumerate(columns):
        exact = torch.addmv(column, lost[:j].t(), takes[j, :j], alpha=-1)
        torch.round(exact, out=column).clamp_(-CODE_MAX, CODE_MAX)
        torch.where(is_kept[j], kept, column, out=column)
        torch.sub(exact, column, out=lost[j])
    return lost


def _cholesky_of_inverse(gram: Tensor) -> Tensor:
    """The upper triangular U with U^T U = (gram + damping)^-1: row j says how columns after j compensate column j."""
    damping = DAMPING * gram.diagonal().mean()
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    if damping == 0:
        return identity
    lower = torch.linalg.cholesky(gram + damping * identity)
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
