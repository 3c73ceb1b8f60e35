"""Which attention kernel runs: chosen by GPU and length, as data, not by PyTorch's general order.

Queries, keys and values come as strided views of the qkv linear's output [T, 3, H, D], or of the outputs of its parts
where keys are of other tokens; every kernel listed here reads such views without a copy, and writes tokens next to one
another with their heads inside, so that the output is [T, C] without a copy either.
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
# Our own kernel, for 16-bit values, head dims up to 64 and compute capability 8.0 and up; it counts in 64 bits.
TRITON: Literal["triton"] = "triton"
Kernel = SDPBackend | Literal["triton"]


@dataclass(frozen=True)
class Rule:
    """`order` is tried first to last, for GPUs of compute capability `arch` / 10 and up and at least `tokens`
    queries or keys.
    """

    arch: int
    tokens: int
    order: tuple[Kernel, ...]


# The first rule that fits decides. On Hopper, TFLOP/s at head dim 64 (H100, `benchmarks/attention.py`): ours 514 to 533
# over 10 to 100 frames and 327 to 348 inside frames of 1041 tokens, cuDNN 419 to 432 and 321 to 333, FlashAttention-2
# 309 to 325 and 219 to 234. cuDNN builds a plan for every new length, too, which a few tokens (the camera head's, one
# per frame) do not pay back. PyTorch's own formula comes last and only where its matrix of scores is small. fp32 runs
# on "efficient" alone. Newer GPUs have other matrix instructions, for which our kernel was not written.
RULES = (
    Rule(arch=100, tokens=4096, order=(CUDNN, FLASH, EFFICIENT)),
    Rule(arch=100, tokens=256, order=(CUDNN, FLASH, EFFICIENT, MATH)),
    Rule(arch=90, tokens=4096, order=(TRITON, CUDNN, FLASH, EFFICIENT)),
    Rule(arch=90, tokens=256, order=(TRITON, CUDNN, FLASH, EFFICIENT, MATH)),
    Rule(arch=0, tokens=4096, order=(FLASH, EFFICIENT)),
    Rule(arch=0, tokens=0, order=(FLASH, EFFICIENT, MATH)),
)
# Above so many elements in the tensor that q, k and v are views of, offsets leave 31 bits, in which cuDNN counts.
LARGE = 2**31 - 1
LONG = 24_000  # tokens: where only kernels are to be compiled, longer attention would take longer than that


def attention(q: Tensor, k: Tensor, v: Tensor, integers: bool = False) -> Tensor:
    """q [B, H, N, D], k and v [B, H, L, D], strided views of [B, N, 3, H, D] or the like -> [B, N, H * D], contiguous.

    integers: on a CPU the products may round to 16 bits, as all of a GPU's do; for layers whose input is INT8 anyway.
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
    """`attention` as codes [B * N, H * D] int8 under static scales, with those of each row, [B * N, 1] fp32; None where
    the kernel that attends writes floats.
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
    """The kernels to try, best first. tokens: queries or keys, of which there are more; elements: of the qkv tensor."""
    order = next(rule.order for rule in RULES if arch >= rule.arch and tokens >= rule.tokens)
    return tuple(kernel for kernel in order if kernel != CUDNN) if elements > LARGE else order
