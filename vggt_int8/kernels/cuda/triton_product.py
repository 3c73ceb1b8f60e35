"""A product straight to the next linear's codes: by one kernel under static scales, else by two.

Of few rotated rows under static scales, too: tiles that hold groups of 256 columns are few then, and each launch
fetches twice as many instructions (a call of one frame on an H200 took 11.3 ms so; `int8_rotated`, by two, 10.6).
"""

from torch import Tensor

from vggt_int8.kernels.cuda.tiles import MANY_ROWS
from vggt_int8.kernels.cuda.triton_gemm import int8_gemm, int8_gemm_codes
from vggt_int8.kernels.cuda.triton_norm import quantize_rows
from vggt_int8.kernels.epilogue import Epilogue


def int8_gemm_quantize(
    x_codes: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, epilogue: Epilogue
) -> tuple[Tensor, Tensor]:
    """`reference.int8_gemm_quantize`: dynamic scales come from whole rows, which no tile of the product sees. What two
    kernels hand on is rounded to `epilogue.dtype`.
    """
    operands, static = (x_codes, x_scale, weight, weight_scale), epilogue.out_scale
    if static is not None and (not epilogue.rotation or len(x_codes) >= MANY_ROWS):
        return int8_gemm_codes(*operands, epilogue)
    floats = int8_gemm(*operands, epilogue._replace(out_scale=None, rotation=0))
    return quantize_rows(floats, static, epilogue.rotation)
