"""Selects the attention kernel by GPU architecture and sequence length, from a table instead of PyTorch's default
order.

Queries, keys and values are strided views of the output of the qkv linear, [T, 3, H, D], or of its separate parts where
the keys belong to other tokens. All kernels listed here read such views without a copy and write the heads of a token
next to each other, so the [T, C] output needs no copy either.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vggt_int8.kernels import ops
from vggt_int8.kernels.attended import attend_by_pytorch
from vggt_int8.kernels.cpu.attention import attention_cpu
from vggt_int8.kernels.cuda.launch import only_compiling
from vggt_int8.machine import architecture

CUDNN, FLASH, EFFICIENT, MATH = (
    *(SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION),
    *(SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH),
)
# Our own kernel: 16-bit values, head dims up to 64, compute capability 8.0 or higher, 64-bit offsets.
TRITON: Literal["triton"] = "triton"
Kernel = SDPBackend | Literal["triton"]


@dataclass(frozen=True)
class Rule:
    """The kernels to try, in `order`, on GPUs of compute capability `arch` / 10 or higher, for at least `tokens`
    queries or keys.
    """

    arch: int
    tokens: int
    order: tuple[Kernel, ...]


# The first matching rule applies. On Hopper, TFLOP/s at head dim 64 (H100, `benchmarks/attention.py`): ours 514 to 533
# over 10 to 100 frames and 327 to 348 inside frames of 1041 tokens, cuDNN 419 to 432 and 321 to 333, FlashAttention-2
# 309 to 325 and 219 to 234. cuDNN also builds a plan for every new length, which does not pay off for short sequences
# (the camera head has one token per frame). PyTorch's math kernel comes last, and only where its score matrix is small.
# fp32 runs only on "efficient". GPUs after Hopper have different matrix instructions, for which our kernel was not
# written.
RULES = (
    Rule(arch=100, tokens=4096, order=(CUDNN, FLASH, EFFICIENT)),
    Rule(arch=100, tokens=256, order=(CUDNN, FLASH, EFFICIENT, MATH)),
    Rule(arch=90, tokens=4096, order=(TRITON, CUDNN, FLASH, EFFICIENT)),
    Rule(arch=90, tokens=256, order=(TRITON, CUDNN, FLASH, EFFICIENT, MATH)),
    Rule(arch=0, tokens=4096, order=(FLASH, EFFICIENT)),
    Rule(arch=0, tokens=0, order=(FLASH, EFFICIENT, MATH)),
)
# cuDNN counts offsets in 31 bits, so it cannot take q, k and v that are views of a tensor with more elements.
LARGE = 2**31 - 1
LONG = 24_000  # tokens: attention above this takes longer than the compilation that a dry run is for


def attention(q: Tensor, k: Tensor, v: Tensor, integers: bool = False) -> Tensor:
    """q [B, H, N, D], k and v [B, H, L, D], strided views of [B, N, 3, H, D] or similar -> [B, N, H * D], contiguous.

    integers: on a CPU, the products may round to 16 bits, as they always do on a GPU. For layers whose inputs are INT8
        anyway.
    """
    if not q.is_cuda:
        return attention_cpu(q, k, v, integers).flatten(2)
    order = _order(q, k)
    if _by_our_kernel(q, order):
        y: Tensor = ops.float_attention(q, k, v)
        return y
    if only_compiling() and max(q.shape[2], k.shape[2]) > LONG:
        return q.new_empty(q.shape[0], q.shape[2], q.shape[1] * q.shape[3])
    with sdpa_kernel([kernel for kernel in order if kernel != TRITON], set_priority=True):
        return attend_by_pytorch(q, k, v).transpose(1, 2).flatten(2)


def attention_codes(q: Tensor, k: Tensor, v: Tensor, out_scale: Tensor) -> tuple[Tensor, Tensor] | None:
    """`attention` with its output quantized by static scales: codes [B * N, H * D] int8 and the scale of each row [B *
    N, 1] fp32. None if the selected kernel writes floats.
    """
    if not q.is_cuda or not _by_our_kernel(q, _order(q, k)):
        return None
    codes, scale = ops.float_attention_quantize(q, k, v, out_scale)
    return codes, scale


def _order(q: Tensor, k: Tensor) -> tuple[Kernel, ...]:
    return backends(architecture(q.device), max(q.shape[2], k.shape[2]), 3 * q.numel())


def _by_our_kernel(q: Tensor, order: tuple[Kernel, ...]) -> bool:
    return order[0] == TRITON and q.dtype != torch.float32 and q.shape[3] <= 64


def backends(arch: int, tokens: int, elements: int) -> tuple[Kernel, ...]:
    """The kernels to try, best first. tokens: the larger of the numbers of queries and keys; elements: size of the qkv
    tensor.
    """
    order = next(rule.order for rule in RULES if arch >= rule.arch and tokens >= rule.tokens)
    return tuple(kernel for kernel in order if kernel != CUDNN) if elements > LARGE else order
