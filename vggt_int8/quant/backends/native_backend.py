"""Our own kernels. On a CPU: VNNI integer products through `torch._int_mm` (`kernels/cpu.py`)."""

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from vggt_int8.kernels import cpu
from vggt_int8.quant.backends import Backend, QuantizedLinear
from vggt_int8.recipe import Scheme


class NativeBackend(Backend):
    name = "native"

    def __init__(self) -> None:
        # weight -> (its version and address, the sum of each row's codes that u8·s8 needs). Weak: offloaded weights
        # come and go.
        self._corrections: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def unsupported(self, scheme: Scheme, device_type: str) -> str | None:
        if device_type != "cpu":
            return "its kernels run on the CPU only so far"
        return "outlier columns are not implemented" if scheme.outlier_threshold else None

    def kernel(self, layer: QuantizedLinear, device_type: str) -> str:
        if layer.scheme.activations == "none":
            return "dequantize in slices + fp32 matmul"
        return cpu.cpu_int8_kernel()

    def linear(self, x: Tensor, layer: QuantizedLinear) -> Tensor:
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


BACKEND = NativeBackend()
