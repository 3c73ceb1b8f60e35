"""`Int8Attention`: attention whose product of queries and keys runs in INT8, in place of `SoftmaxAttention`."""

from typing import Self

import torch
from torch import Tensor, nn

from vggt_int8.kernels import ops, reference_attention
from vggt_int8.model.attention import SoftmaxAttention
from vggt_int8.quant.backends import BackendError, exports_onnx, get_backend
from vggt_int8.quant.layer import Choice, Int8Layer
from vggt_int8.recipe import AttentionScheme, Scheme


class Int8Attention(SoftmaxAttention, Int8Layer):
    """`reference_attention.int8_attention` as a module: q, k, v [B, H, N, D] -> [B, N, H * D] in v's dtype.

    It stores nothing, so it runs beside every backend: the definition under "reference" and on a CPU, the native
    backend's Triton kernel otherwise. Gradients are those of float attention (straight-through).
    """

    scheme = AttentionScheme()

    def __init__(self, backend: str = "auto") -> None:
        super().__init__()
        self.backend = backend

    @classmethod
    def of(cls, layer: nn.Module, scheme: AttentionScheme, backend: str) -> Self:
        return cls(backend)

    unfilled = of

    @classmethod
    def choose(cls, scheme: AttentionScheme, backend: str, beside_codes: bool) -> Choice:
        if backend in ("auto", "native", "reference"):
            return Choice(backend)
        return Choice("native", f"{backend}: it has no INT8 attention")

    @classmethod
    def check(cls, scheme: AttentionScheme, backend: str, device_type: str) -> None:
        if backend == "reference" or device_type == "cpu":
            return
        if reason := get_backend("native").unsupported(Scheme("none"), device_type):  # it is one of its kernels
            raise BackendError(
                f"attention = 'int8' cannot run on {device_type}: {reason}. Choose backend='reference', or a recipe "
                "with attention = 'float'"
            )

    def runs_on(self, device_type: str) -> str:
        return "reference" if self.backend == "reference" else "native"

    def reason(self, device_type: str) -> str:
        return "auto: native" if self.backend == "auto" else super().reason(device_type)

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
