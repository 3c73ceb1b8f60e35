"""The definition of the INT8 arithmetic in plain PyTorch: every kernel and backend is tested against it.

Symmetric throughout: `scale = absmax / 127`, codes in [-127, 127]. There is no zero point, so the integer
product needs no correction terms. Integers accumulate in int32 exactly; scales, bias and sums after the
product are fp32, and there is one cast at the very end. (Casting `int32 * scale_x` to fp16 before the weight
scale is applied overflows although the true result is small; the order here cannot.)

Notation: M rows (tokens), N outputs, K reduction.
"""

from collections.abc import Callable

import torch
from torch import Tensor

CODE_MAX = 127


def scale_from_absmax(absmax: Tensor) -> Tensor:
    """fp32 `absmax / 127`. Zero becomes 1, so that zeros get codes of 0; NaN and inf stay, and reach the result."""
    scale = absmax.float() / CODE_MAX
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def absmax_scale(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """The scale that covers every value of x along `dim`, fp32, with `dim` kept at size 1."""
    return scale_from_absmax(x.abs().amax(dim=dim, keepdim=True))


def quantize(x: Tensor, scale: Tensor) -> Tensor:
    """int8 codes of `x` under a scale that broadcasts: round half to even, clamp to [-127, 127]."""
    return (x.float() / scale).round_().clamp_(-CODE_MAX, CODE_MAX).to(torch.int8)


def quantize_per_token(x: Tensor) -> tuple[Tensor, Tensor]:
    """[M, K] float -> codes [M, K] int8, scale [M, 1] fp32: one scale per row."""
    scale = absmax_scale(x, dim=-1)
    return quantize(x, scale), scale


def int8_matmul(x_codes: Tensor, weight: Tensor) -> Tensor:
    """[M, K] int8 x [N, K] int8 -> [M, N] int32, exact (K * 127^2 < 2^31 holds up to K = 133,152)."""
    if x_codes.is_cuda:
        # CUDA has no general integer GEMM; float64 holds every product and sum below 2^53 exactly.
        return (x_codes.double() @ weight.double().t()).to(torch.int32)
    return x_codes.to(torch.int32) @ weight.to(torch.int32).t()


def scaled_epilogue(
    acc: Tensor, x_scale: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """`acc * x_scale * weight_scale + bias` in fp32, then one cast.

    acc [M, N] int32, x_scale [M, 1] or scalar fp32, weight_scale [N, 1] fp32, bias [N] any float
    -> [M, N] dtype.
    """
    y = acc.float() * x_scale * weight_scale.view(1, -1)
    return (y if bias is None else y + bias.float()).to(dtype)


def w8a8_linear(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, input_scale: Tensor | None = None
) -> Tensor:
    """INT8 linear. x [M, K] float, weight [N, K] int8, weight_scale [N, 1] fp32 -> [M, N] in x's dtype.

    `input_scale` None: one dynamic scale per row of x. Otherwise a static fp32 scale (one value) from
    calibration; larger inputs saturate at 127 codes, but a row that holds NaN or inf still comes out as NaN.
    """
    if input_scale is None:
        codes, x_scale = quantize_per_token(x)
    else:
        poison = (x.float() * 0).sum(dim=-1, keepdim=True)
        codes, x_scale = quantize(x, input_scale), input_scale + poison
    return scaled_epilogue(int8_matmul(codes, weight), x_scale, weight_scale, bias, x.dtype)


def w8a16_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """Weight-only linear: codes multiply as floats, the scale goes on the fp32 sum. Shapes as above."""
    y = (x.float() @ weight.float().t()) * weight_scale.view(1, -1)
    return (y if bias is None else y + bias.float()).to(x.dtype)


def llm_int8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    threshold: float,
    matmul: Callable[[Tensor, Tensor], Tensor] = int8_matmul,
) -> Tensor:
    """W8A8 dynamic, but input columns where any |x| >= threshold multiply as floats (Dettmers et al., LLM.int8()).

    Shapes as above; `matmul` is the integer product to use. Choosing the columns synchronises with the host.
    """
    outlier = (x.abs() >= threshold).any(dim=0)
    codes, x_scale = quantize_per_token(x.masked_fill(outlier, 0))
    y = scaled_epilogue(matmul(codes, weight), x_scale, weight_scale, bias, torch.float32)
    columns = outlier.nonzero().view(-1)
    return (y + w8a16_linear(x[:, columns].float(), weight[:, columns], weight_scale, None)).to(x.dtype)
