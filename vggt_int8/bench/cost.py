"""The static cost card: the number of operations of a forward pass, the machine's limits, and the time that follows.

The limits are measured on the same device in the same run: a large product in floating point and in int8, the fastest
attention on long sequences with VGGT's head dimension, and a copy. A row's floor is the sum of its parts at these
rates; its share is floor / time. This bounds the large parts only: element-wise passes and launches count as loss.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vggt_int8.bench.timing import time_calls
from vggt_int8.kernels import ops
from vggt_int8.kernels.cpu import matmul
from vggt_int8.kernels.epilogue import Epilogue
from vggt_int8.machine import architecture
from vggt_int8.model.configs import AnyConfig
from vggt_int8.model.families import AnyNetwork, network_class
from vggt_int8.model.unfilled import unfilled
from vggt_int8.quant.backends import get_backend
from vggt_int8.recipe import Scheme
from vggt_int8.runtime.attention import TRITON, backends

HEADS, HEAD_DIM = 16, 64
DTYPES = {"cuda": (torch.bfloat16,), "cpu": (torch.bfloat16, torch.float32)}
SECONDS = 0.2  # per ceiling
# What the ceilings are measured on: side of the products, length of the attention, bytes of the copy.
LOADS = {"cuda": (8192, 16384, 1 << 30), "cpu": (1024, 1024, 1 << 26)}


@dataclass(frozen=True)
class Work:
    """Floating-point operations (or integer ones: a multiplication and an addition are two) of one forward pass."""

    linears: float
    attention: float
    convolutions: float

    @property
    def total(self) -> float:
        return self.linears + self.attention + self.convolutions


@dataclass(frozen=True)
class Ceilings:
    """Measured rates: TFLOP/s of products in `dtype` and of attention, TOPS of int8 products, GB/s read and written."""

    dtype: str
    product: float
    int8: float
    attention: float
    copy: float

    def floor_ms(self, work: Work, weight_bytes: int, int8: bool) -> float:
        """The shortest time for `work`: each part at its ceiling, or every weight read once if that takes longer."""
        linears = work.linears / (self.int8 if int8 else self.product)
        arithmetic = linears + work.attention / self.attention + work.convolutions / self.product
        return max(arithmetic / 1e9, weight_bytes / self.copy / 1e6)


class WorkCounter:
    """Counts operations on the meta device, without weights. All counts are polynomials of degree 2 in the number of
    frames; the square is that of global attention, in which `keyframes` replaces one factor.
    """

    def __init__(self, config: AnyConfig, size: tuple[int, int]) -> None:
        model = unfilled(network_class(config), config).eval().requires_grad_(False)
        self._known = [_count(model, frames, size) for frames in (1, 2, 3)]
        tokens = size[0] * size[1] // config.patch_size**2 + model.aggregator.num_special
        width = config.embed_dim
        self._keys_and_values = 2 * len(model.global_layers) * tokens * width * 2 * width  # of a frame

    def __call__(self, frames: int, keyframes: int | None = None) -> Work:
        s = frames - 1
        parts = zip(*([w.linears, w.attention, w.convolutions] for w in self._known), strict=True)
        work = Work(*(a + s * (b - a) + s * (s - 1) / 2 * (c - 2 * b + a) for a, b, c in parts))
        if keyframes is None or keyframes >= frames:
            return work
        left_out, (a, b, c) = frames - keyframes, (w.attention for w in self._known)
        linears = work.linears - left_out * self._keys_and_values
        return Work(linears, work.attention - (c - 2 * b + a) / 2 * frames * left_out, work.convolutions)


@torch.no_grad()
def _count(model: AnyNetwork, frames: int, size: tuple[int, int]) -> Work:
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(frames, 3, *size, device="meta"))
    counts = {str(op).removeprefix("aten."): n for op, n in counter.get_flop_counts()["Global"].items()}
    linears = counts.pop("addmm", 0) + counts.pop("mm", 0)
    convolutions = counts.pop("convolution", 0)
    attention = sum(counts.pop(op) for op in [*counts] if op == "bmm" or op.startswith("_scaled_dot_product"))
    if counts:
        raise RuntimeError(f"this version of PyTorch counts operations that have no place here: {counts}")
    return Work(linears, attention, convolutions)


def measure_ceilings(device: torch.device) -> Ceilings:
    """Products in bf16 on CUDA, on a CPU in bf16 or fp32, whichever is faster there. Attention likewise, on CUDA also
    in fp16, in which the native runtime computes.
    """
    side, length, copied = LOADS[device.type]
    products = {dtype: _product_rate(device, dtype, side) for dtype in DTYPES[device.type]}
    dtype = max(products, key=lambda dtype: products[dtype])
    codes = torch.randint(-127, 128, (side, side), device=device, dtype=torch.int8)
    attention_dtypes = (dtype, torch.float16) if device.type == "cuda" else (dtype,)
    heads = torch.randn(1, length, 3, HEADS, HEAD_DIM, device=device).permute(2, 0, 3, 1, 4)
    amount = 4 * HEADS * HEAD_DIM * length**2
    attentions = [_rate(amount, call, heads.to(kind)) for kind in attention_dtypes for call in _attentions(device)]
    source = torch.empty(copied, device=device, dtype=torch.uint8)

    return Ceilings(
        dtype=str(dtype).removeprefix("torch."),
        product=products[dtype] / 1e12,
        int8=max(_rate(2 * side**3, call, codes) for call in _int8_products(codes)) / 1e12,
        attention=max(attentions) / 1e12,
        copy=_rate(2 * source.numel(), torch.clone, source) / 1e9,
    )


def _attentions(device: torch.device) -> Iterator[Callable[[Tensor], Tensor]]:
    """PyTorch's kernel that is the fastest here, and ours where it runs; both of q, k, v in one tensor."""

    def library(qkv: Tensor) -> Tensor:
        with fastest_attention(device):
            return F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])

    yield library
    if device.type == "cuda" and get_backend("native").unsupported(Scheme(), "cuda") is None:
        yield lambda qkv: ops.float_attention(qkv[0], qkv[1], qkv[2])


def _product_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    a = torch.randn(side, side, device=device, dtype=dtype)
    return _rate(2 * side**3, lambda x: x @ a, a)


def _int8_products(codes: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
    """PyTorch's product and ours, on CUDA with its scales."""
    yield lambda x: torch._int_mm(x, codes.t())
    if codes.is_cuda and get_backend("native").unsupported(Scheme(), "cuda") is None:
        scale = torch.ones(len(codes), 1, device=codes.device)
        yield lambda x: ops.int8_gemm(x, scale, codes, scale, Epilogue(None, torch.float16))
    if not codes.is_cuda:
        yield lambda x: matmul.int8_matmul(x, codes)


def _rate(amount: float, call: Callable[[Tensor], object], x: Tensor) -> float:
    call(x)
    return amount / (time_calls(call, [x], SECONDS).ms * 1e-3)


@contextmanager
def fastest_attention(device: torch.device) -> Iterator[None]:
    """PyTorch's attention kernels in the order that is fastest on long sequences on this GPU: cuDNN's on Hopper."""
    if device.type != "cuda":
        yield
        return
    order = [kernel for kernel in backends(architecture(device), 4096, 0) if kernel != TRITON]
    with sdpa_kernel([*order, SDPBackend.MATH], set_priority=True):
        yield
