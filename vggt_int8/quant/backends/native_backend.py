"""Our own kernels. On CUDA: Triton (`kernels/ops.py`). On a CPU: VNNI products by `torch._int_mm` (`kernels/cpu.py`).

This is one layer by itself. A whole VGGT runs faster, because layers are fused: see `vggt_int8.runtime`.
"""

import functools
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from vggt_int8.kernels import cpu, ops
from vggt_int8.quant.backends import Backend, QuantizedLinear
from vggt_int8.recipe import Scheme


class NativeBackend(Backend):
    name = "native"

    def __init__(self) -> None:
        # weight -> (its version and address, the sum of each row's codes that u8·s8 needs). Weak: offloaded weights
        # come and go.
        self._corrections: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def unsupported(self, scheme: Scheme, device_type: str) -> str | None:
        if scheme.outlier_threshold:
            return "outlier columns are not implemented"
        if device_type not in ("cpu", "cuda"):
            return "its kernels run on CPUs and CUDA GPUs"
        return _missing_on_cuda() if device_type == "cuda" else None

    def kernel(self, layer: QuantizedLinear, device_type: str) -> str:
        if device_type == "cuda":
            return "Triton int8 weight-only" if layer.scheme.activations == "none" else "Triton int8 GEMM"
        if layer.scheme.activations == "none":
            return "dequantize in slices + fp32 matmul"
        return cpu.cpu_int8_kernel()

    def linear(self, x: Tensor, layer: QuantizedLinear) -> Tensor:
        if x.is_cuda:
            return _linear_on_cuda(x, layer)
        if layer.scheme.activations == "none":
            return cpu.w8a16_linear_cpu(x, layer.weight, layer.weight_scale, layer.bias)
        return cpu.w8a8_linear_cpu(x, self._prepared(layer.weight), layer.weight_scale, layer.bias, layer.input_scale)

    def _prepared(self, weight: Tensor) -> cpu.PreparedWeight:
        if weight.is_inference():  # has no version, so a change could not be noticed
            return cpu.prepare(weight)
        state = (weight._version, weight.data_ptr())  # `weight.data = other` leaves the version alone
        known = self._corrections.get(weight)
        if known is not None and known[0] == state:
            return cpu.PreparedWeight(weight, known[1], cpu.cpu_int8_kernel())
        prepared = cpu.prepare(weight)
        # Only the row sums are kept: the prepared weight itself would hold its own key alive.
        self._corrections[weight] = (state, prepared.correction)
        return prepared


def _linear_on_cuda(x: Tensor, layer: QuantizedLinear) -> Tensor:
    stored = (layer.weight, layer.weight_scale, layer.bias)
    y: Tensor
    if layer.scheme.activations == "none":
        y = ops.w8a16_linear(x, *stored)
    else:
        y = ops.int8_gemm(*ops.quantize_rows(x, layer.input_scale), *stored, x.dtype)
    return y


@functools.cache
def _missing_on_cuda() -> str | None:
    if find_spec("triton") is None:
        return "Triton is not installed (it comes with PyTorch's CUDA builds for Linux)"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device here"
    major, minor = torch.cuda.get_device_capability()
    return None if major >= 8 else f"this GPU has compute capability {major}.{minor}; its kernels need 8.0 or newer"


BACKEND = NativeBackend()
