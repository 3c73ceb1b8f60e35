"""The definition of the INT8 arithmetic in plain PyTorch: every kernel and backend is tested against it.

Symmetric throughout: `scale = absmax / 127`, codes in [-127, 127]. There is no zero point, so the integer product needs
no correction terms. Integers accumulate exactly in int32; scales, bias and sums after the product are fp32, with one
cast at the very end. (Casting `int32 * scale_x` to fp16 before applying the weight scale can overflow although the
result is small.)

Notation: M rows (tokens), N outputs, K reduction.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vggt_int8.kernels.epilogue import Epilogue

CODE_MAX = 127


def scale_from_absmax(absmax: Tensor) -> Tensor:
    """fp32 `absmax / 127`. Zero becomes 1, so that zeros get codes of 0; NaN and inf are kept and propagate to the
    result.
    """
    scale = absmax.float() / CODE_MAX
    return torch.where(scale == 0, 1.0, scale)


def absmax_scale(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """The scale that covers all values of x along `dim`, fp32, with `dim` kept at size 1."""
    return scale_from_absmax(x.abs().amax(dim=dim, keepdim=True))


def quantize(x: Tensor, scale: Tensor) -> Tensor:
    """int8 codes of `x` under a scale that broadcasts: round half to even, clamp to [-127, 127]."""
    return (x.float() / scale).round_().clamp_(-CODE_MAX, CODE_MAX).to(torch.int8)


def quantize_per_token(x: Tensor) -> tuple[Tensor, Tensor]:
    """[M, K] float -> codes [M, K] int8, scale [M, 1] fp32: one scale per row."""
    scale = absmax_scale(x, dim=-1)
    return quantize(x, scale), scale


def rotate(x: Tensor, group: int) -> Tensor:
    """Multiply each group of `group` consecutive values of the last dimension by the orthonormal Hadamard matrix of
    that order, in fp32.

    x [..., K] float, group a power of two that divides K -> [..., K] fp32. It spreads a large value over its group, so
    that quantization with one scale loses less. It is its own inverse, and preserves products of two rotated rows. Rows
    and columns are in Sylvester's order: entry (i, j) is (-1)^popcount(i & j) / sqrt(group).
    """
    y = x.float() * (1 / group**0.5)
    distance = 1
    while distance < group:
        one, other = y.unflatten(-1, (-1, 2, distance)).unbind(-2)
        y = torch.stack([one + other, one - other], dim=-2).flatten(-3)
        distance *= 2
    return y


def rotate_rows(x: Tensor, rotation: int) -> Tensor:
    """`rotate` of rows [M, K] float in groups of `rotation`, rounded once to x's dtype: the input of a weight-only
    layer with a rotated weight.
    """
    return rotate(x, rotation).to(x.dtype)


def quantize_rows(x: Tensor, input_scale: Tensor | None = None, rotation: int = 0) -> tuple[Tensor, Tensor]:
    """[M, K] float -> codes [M, K] int8, scale [M, 1] fp32. `input_scale` as in `w8a8_linear`; `rotation`: group size
    of `rotate`, or 0 for none.

    With static scales, each row's scale is its static scale, but NaN for a row with NaN or inf.
    """
    if rotation:
        x = rotate(x, rotation)
    if input_scale is None:
        return quantize_per_token(x)
    scale = static_scales(input_scale, len(x))
    return quantize(x, scale), scale + (x.float() * 0).sum(dim=-1, keepdim=True)


def static_scales(scale: Tensor, rows: int) -> Tensor:
    """R static scales, where R divides `rows`, expanded to one per row, [rows, 1]: row m has number m % R."""
    return scale.reshape(-1, 1).repeat(rows // max(1, scale.numel()), 1)


def int8_matmul(x_codes: Tensor, weight: Tensor) -> Tensor:
    """[M, K] int8 x [N, K] int8 -> [M, N] int32, exact (K * 127^2 < 2^31 holds up to K = 133,144)."""
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

    input_scale: None for one dynamic scale per row of x. Otherwise R static fp32 scales from calibration, where R
        divides M: row m has number m % R, so there can be one scale for all rows, or one for each token of a frame.
        Larger inputs saturate at code 127, but a row with NaN or inf still becomes NaN.
    """
    codes, x_scale = quantize_rows(x, input_scale)
    return scaled_epilogue(int8_matmul(codes, weight), x_scale, weight_scale, bias, x.dtype)


def w8a16_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, rotation: int = 0) -> Tensor:
    """Weight-only linear: multiplies codes as floats and scales the fp32 sum. Shapes as above.

    rotation: group size in which rows of x are rotated first, as the weight is; 0 for none.
    """
    x = rotate_rows(x, rotation) if rotation else x
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
    """W8A8 dynamic, except that input columns with any |x| >= threshold are multiplied as floats (Dettmers et al.,
    LLM.int8()).

    Shapes as above; `matmul` is the integer product to use. Selecting the columns synchronizes with the host. In a
    graph, whose shapes cannot depend on values, all columns are multiplied as floats, with zeros for those that are not
    outliers.
    """
    outlier = (x.abs() >= threshold).any(dim=0)
    codes, x_scale = quantize_per_token(x.masked_fill(outlier, 0))
    y = scaled_epilogue(matmul(codes, weight), x_scale, weight_scale, bias, torch.float32)
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return (y + w8a16_linear(x.masked_fill(~outlier, 0).float(), weight, weight_scale, None)).to(x.dtype)
    columns = outlier.nonzero().view(-1)
    return (y + w8a16_linear(x[:, columns].float(), weight[:, columns], weight_scale, None)).to(x.dtype)


# The fused kernels: the same arithmetic, including what precedes and follows a linear.


def layer_norm_quantize(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, input_scale: Tensor | None = None, rotation: int = 0
) -> tuple[Tensor, Tensor]:
    """LayerNorm over the last dimension, in fp32, directly to codes [M, C] int8 and scales [M, 1] fp32.

    x [M, C] float; weight, bias [C] float. Smoothing divides channels by a factor: fold it into weight and bias.
    """
    y = F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), eps)
    return quantize_rows(y, input_scale, rotation)


def int8_gemm(x_codes: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, epilogue: Epilogue) -> Tensor:
    """x_codes [M, K] int8, x_scale [M, 1] fp32, weight [N, K] int8, weight_scale [N, 1] fp32 -> [M, N] in
    `epilogue.dtype`.
    """
    return finish(int8_matmul(x_codes, weight), x_scale, weight_scale, epilogue)


def finish(acc: Tensor, x_scale: Tensor, weight_scale: Tensor, epilogue: Epilogue) -> Tensor:
    """`scaled_epilogue`, then in fp32 exact GELU and `residual + gamma * y`, if requested.

    acc [M, N] int32, scales as above -> [M, N] in `epilogue.dtype`.
    """
    bias, dtype, gelu, gamma, residual, *_ = epilogue
    y = scaled_epilogue(acc, x_scale, weight_scale, bias, torch.float32)
    if gelu:
        y = F.gelu(y)
    if residual is not None and gamma is not None:
        y = residual.float() + gamma.float() * y
    return y.to(dtype)


def int8_gemm_quantize(
    x_codes: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, epilogue: Epilogue
) -> tuple[Tensor, Tensor]:
    """`int8_gemm` directly to the next linear's input: codes [M, N] int8 and a scale per row, [M, 1] fp32.

    The epilogue may have a bias, GELU, a rotation, and static scales `out_scale`. With static scales, the fp32 results
    become codes without rounding to `epilogue.dtype` in between (kernels may round), and NaN or inf in x_scale makes
    the scale of a row NaN.
    """
    if epilogue.out_scale is None:
        return quantize_rows(int8_gemm(x_codes, x_scale, weight, weight_scale, epilogue), rotation=epilogue.rotation)
    y = int8_gemm(x_codes, x_scale, weight, weight_scale, epilogue._replace(dtype=torch.float32))
    if epilogue.rotation:
        y = rotate(y, epilogue.rotation)
    scale = static_scales(epilogue.out_scale, len(y))
    return quantize(y, scale), scale + 0 * x_scale.view(-1, 1)


def qk_norm_rope(
    qkv: Tensor,
    q_weight: Tensor | None,
    q_bias: Tensor | None,
    k_weight: Tensor | None,
    k_bias: Tensor | None,
    rope: Tensor,
    eps: float,
    rotate_half: bool = False,
) -> Tensor:
    """LayerNorm over the head dim and 2-D RoPE of queries and keys, in fp32, rounded once; values are unchanged.

    qkv [T, 3, H, D] float, the output of the qkv linear, where T is any number of frames of P tokens; weights and
    biases [D], all of them or None for no LayerNorm; rope [2, P, D] fp32: cosines and sines. Channel i of each half is
    paired with channel i + D/4, or with `rotate_half` channel i with channel i + D/2. -> like qkv.
    """
    q, k, v = qkv.unbind(1)
    q = _norm_rope(q, q_weight, q_bias, rope, eps, rotate_half)
    k = _norm_rope(k, k_weight, k_bias, rope, eps, rotate_half)
    return torch.stack([q, k, v], dim=1)


def norm_rope(x: Tensor, weight: Tensor, bias: Tensor, rope: Tensor, eps: float) -> Tensor:
    """`qk_norm_rope` for queries or keys only, in x[:, 0]; the other entries, such as values, are unchanged.

    x [T, n, H, D] float; the other arguments as there. -> like x.
    """
    first, *others = x.unbind(1)
    return torch.stack([_norm_rope(first, weight, bias, rope, eps), *others], dim=1)


def _norm_rope(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, rope: Tensor, eps: float, rotate_half: bool = False
) -> Tensor:
    """x [T, H, D] -> like x."""
    y = x.float()
    if weight is not None and bias is not None:
        y = F.layer_norm(y, x.shape[-1:], weight.float(), bias.float(), eps)
    return _rope(y, rope, rotate_half).to(x.dtype)


def _rope(x: Tensor, rope: Tensor, rotate_half: bool) -> Tensor:
    """x [T, H, D], rope [2, P, D] -> [T, H, D]; token t of x has the angles of token t % P of a frame."""
    cos, sin = (table.repeat(x.shape[0] // table.shape[0], 1).unsqueeze(1) for table in rope)
    if rotate_half:
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin
    row_a, row_b, column_a, column_b = x.chunk(4, dim=-1)
    return x * cos + torch.cat([-row_b, row_a, -column_b, column_a], dim=-1) * sin


# Passes of the dense heads. A map is [F, h, w, C]: channels last.


def layer_norm_halves(first: Tensor, second: Tensor, skip: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm, in fp32, of tokens whose channels are split over two tensors, without the first `skip` tokens of each
    frame.

    first, second [F, P, C] float; weight, bias [2C] -> [F, P - skip, 2C] in the tokens' dtype.
    """
    x = torch.cat([first[:, skip:], second[:, skip:]], dim=-1)
    return F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), eps).to(x.dtype)


def resize(
    x: Tensor,
    height: int,
    width: int,
    columns: Tensor | None = None,
    rows: Tensor | None = None,
    bias: Tensor | None = None,
    addend: Tensor | None = None,
) -> Tensor:
    """Bilinear resize of maps (`align_corners=True`) plus optional addends, in fp32, rounded once.

    x [F, h, w, C] -> [F, height, width, C] in x's dtype. Addends: bias [C]; columns [width, C/2] to the first half of
    the channels and rows [height, C/2] to the second, both fp32 (a position embedding); addend, a map like the result.
    """
    y = x.float()
    if y.shape[1:3] != (height, width):
        y = F.interpolate(y.permute(0, 3, 1, 2), size=(height, width), mode="bilinear", align_corners=True)
        y = y.permute(0, 2, 3, 1)
    if bias is not None:
        y = y + bias.float()
    if columns is not None and rows is not None:
        y = y + torch.cat([columns.expand(height, -1, -1), rows[:, None].expand(-1, width, -1)], dim=-1)
    return (y if addend is None else y + addend.float()).to(x.dtype).contiguous()


def predict(x: Tensor, weight: Tensor, bias: Tensor | None, inverse_log: bool) -> tuple[Tensor, Tensor]:
    """The last 1x1 convolution and exponentials of a dense head, in fp32.

    x [F, H, W, C] float, weight [n, C], bias [n] -> values [F, H, W, n - 1]: exp(y), or with `inverse_log` sign(y) *
    (exp(|y|) - 1); and confidence [F, H, W]: 1 + exp of the last output. Both fp32.
    """
    y = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    value = y[..., :-1]
    value = value.sign() * value.abs().expm1() if inverse_log else value.exp()
    return value, 1 + y[..., -1].exp()


def dequantize(weight: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Codes [A, B, T] int8 and their fp32 scales [A, 1, 1] or [1, B, 1] -> floats [A, T, B], rounded once.

    T is the number of taps of a convolution, 1 for a linear layer; the result is channels last.
    """
    return (weight.float() * weight_scale).transpose(1, 2).to(dtype).contiguous()
