"""`Int8Attention`: attention whose product of queries and keys runs in INT8, in place of `SoftmaxAttention`."""

import torch
from torch import Tensor

from vggt_int8.kernels import ops, reference_attention
from vggt_int8.model.attention import SoftmaxAttention
from vggt_int8.quant.backends import PORTABLE, BackendError, exports_onnx, get_backend
from vggt_int8.recipe import Scheme


class Int8Attention(SoftmaxAttention):
    """`reference_attention.int8_attention` as a module: q, k, v [B, H, N, D] -> [B, N, H * D] in v's dtype.

    It stores nothing, so it runs alike under every backend: the definition under "reference" and on a CPU, the Triton
    kernel otherwise. Gradients are those of float attention (straight-through).
    """

    def __init__(self, backend: str = "auto") -> None:
        super().__init__()
        self.backend = backend

    @property
    def resolved_backend(self) -> str:
        """ "reference", or "portable" for what runs under every other backend."""
        return "reference" if self.backend == "reference" else PORTABLE

    def kernel(self, device_type: str) -> str:
        """What computes it, in words, for the report."""
        if device_type == "cuda" and self.backend != "reference":
            return "Triton attention, int8 scores"
        return "int8 scores in fp32, exact"

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if v.dtype == torch.float64:  # which no kernel knows: fp32 inside, under every backend
            return self.forward(*(x.float() for x in (q, k, v))).double()
        q, k = q.to(v.dtype), k.to(v.dtype)  # a norm under autocast gives fp32
        defined = self.backend == "reference" or exports_onnx()
        attend = reference_attention.int8_attention if defined else ops.int8_attention
        if not (torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))):
            y: Tensor = attend(q, k, v)
            return y
        plain = super().forward(q, k, v)
        return plain + (attend(*(x.detach() for x in (q, k, v))) - plain).detach()


def check_attention_backend(backend: str, device_type: str) -> None:
    """Raise `BackendError` if INT8 attention cannot run under `backend` on "cpu" or "cuda"."""
    if backend == "reference" or device_type == "cpu":
        return
    if reason := get_backend("native").unsupported(Scheme("none"), device_type):  # it is one of the native kernels
        raise BackendError(
            f"attention = 'int8' cannot run on {device_type}: {reason}. Choose backend='reference', or a recipe with "
            "attention = 'float'"
        )
