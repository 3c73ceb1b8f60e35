"""Our own kernels (`kernels/ops.py`): Triton on CUDA, C on a CPU.

This runs single layers. A whole VGGT runs faster with fused layers: see `vggt_int8.runtime`.
"""

import functools

import torch
from torch import Tensor

from vggt_int8.kernels import ops
from vggt_int8.kernels.cpu import compiled, matmul
from vggt_int8.kernels.epilogue import Epilogue
from vggt_int8.machine import architecture, triton_is_there
from vggt_int8.quant.backends import Backend, QuantizedLinear
from vggt_int8.recipe import Scheme


class NativeBackend(Backend):
    name = "native"
    rotates = True

    def unsupported(self, scheme: Scheme, device_type: str) -> str | None:
        if scheme.outlier_threshold:
            return "outlier columns are not implemented"
        if device_type not in ("cpu", "cuda"):
            return "its kernels run on CPUs and CUDA GPUs"
        return _missing_on_cuda() if device_type == "cuda" else None

    def kernel(self, layer: QuantizedLinear, device_type: str) -> str:
        if layer.scheme.activations != "none":
            return "Triton int8 GEMM" if device_type == "cuda" else matmul.cpu_int8_kernel()
        if device_type == "cuda":
            return "Triton int8 weight-only for few rows, else dequantize + linear"
        slices = "dequantize in slices + matmul"
        library = compiled.library()
        return slices if library is None else f"{library.name} for few rows of fp32, else {slices}"

    def linear(self, x: Tensor, layer: QuantizedLinear, input_scale: Tensor | None) -> Tensor:
        y: Tensor
        if layer.scheme.activations == "none":
            y = ops.w8a16_linear(x, layer.codes, layer.weight_scale, layer.bias, layer.rotation)
        else:
            codes, scale = ops.quantize_rows(x, input_scale, layer.rotation)
            y = ops.int8_gemm(codes, scale, layer.codes, layer.weight_scale, Epilogue(layer.bias, x.dtype))
        return y


@functools.cache
def _missing_on_cuda() -> str | None:
    if not triton_is_there():
        return "Triton is not installed (it comes with PyTorch's CUDA builds for Linux)"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device here"
    arch = architecture(torch.device("cuda", torch.cuda.current_device()))
    return None if arch >= 80 else f"this GPU has compute capability {arch / 10}; its kernels need 8.0 or newer"


BACKEND = NativeBackend()
