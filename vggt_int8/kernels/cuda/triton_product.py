"""A product directly to the next linear's codes: one kernel with static scales, otherwise two.

Few rotated rows with static scales use two as well: there are only few tiles that hold groups of 256 columns, and each
launch fetches twice as many instructions (a call of one frame on an H200 took 11.3 ms that way, and 10.6 with two
kernels under `int8_rotated`).
"""

from torch import Tensor

from vggt_int8.kernels.cuda.tiles import MANY_ROWS
from vggt_int8.kernels.cuda.triton_gemm import int8_gemm, int8_gemm_codes
from vggt_int8.kernels.cuda.triton_norm import quantize_rows
from vggt_int8.kernels.epilogue import Epilogue


def int8_gemm_quantize(
    x_codes: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, epilogue: Epilogue
) -> tuple[Tensor, Tensor]:
    """`reference.int8_gemm_quantize`. Dynamic scales depend on whole rows, which no tile of the product sees. With two
    kernels, the intermediate is rounded to `epilogue.dtype`.
    """
    operands, static = (x_codes, x_scale, weight, weight_scale), epilogue.out_scale
    if static is not None and (not epilogue.rotation or len(x_codes) >= MANY_ROWS):
        return int8_gemm_codes(*operands, epilogue)
    floats = int8_gemm(*operands, epilogue._replace(out_scale=None, rotation=0))
    return quantize_rows(floats, static, epilogue.rotation)
