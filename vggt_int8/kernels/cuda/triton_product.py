"""A product straight to the next linear's codes, by the kernels that there are: one under static scales, else two."""

from torch import Tensor

from vggt_int8.kernels.cuda.triton_gemm import int8_gemm, int8_gemm_codes
from vggt_int8.kernels.cuda.triton_norm import quantize_rows
from vggt_int8.kernels.epilogue import Epilogue


def int8_gemm_quantize(
    x_codes: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, epilogue: Epilogue
) -> tuple[Tensor, Tensor]:
    """`reference.int8_gemm_quantize`: dynamic scales come from whole rows, which no tile of the product sees."""
    operands = x_codes, x_scale, weight, weight_scale
    if epilogue.out_scale is not None:
        return int8_gemm_codes(*operands, epilogue)
    floats = int8_gemm(*operands, epilogue._replace(rotation=0))
    return quantize_rows(floats, None, epilogue.rotation)
