"""Which kernels attended in a network's global blocks: noted where they are launched, so that reports say what ran.

with noting() as kernels:        # whoever reports
    with global_block():         # whoever knows which block runs
        note("Triton ...")       # whoever launches
list(kernels)                    # in the order of their first launch
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

Notes = dict[str, None]  # a set that keeps its order

_notes: ContextVar[Notes | None] = ContextVar("vggt_int8_attention_notes", default=None)
_in_global_block: ContextVar[bool] = ContextVar("vggt_int8_in_global_block", default=False)


@contextmanager
def noting() -> Iterator[Notes]:
    """The names of what attends inside, in global blocks; an outer block of this kind does not get them."""
    notes: Notes = {}
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


@contextmanager
def global_block() -> Iterator[None]:
    """What attends inside does so in a global block."""
    token = _in_global_block.set(True)
    try:
        yield
    finally:
        _in_global_block.reset(token)


def note(kernel: str) -> None:
    """This kernel attends, in words: the library or language it is written in first."""
    if _in_global_block.get():
        note_again([kernel])


def note_again(kernels: Iterable[str]) -> None:
    """These were noted in global blocks before, and attend again, as a replay of a CUDA graph does."""
    if (notes := _notes.get()) is not None:
        notes.update(dict.fromkeys(kernels))


def attend_by_pytorch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's attention, noted as the kernel that it chooses for these tensors."""
    if _in_global_block.get() and _notes.get() is not None:
        note(f"PyTorch {SDPBackend(torch._fused_sdp_choice(q, k, v)).name.lower()}")
    return F.scaled_dot_product_attention(q, k, v)
