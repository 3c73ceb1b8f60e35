"""Records which attention kernels ran in a network's global blocks, where they are launched, for reports.

with noting() as kernels:        # the reporting code
    with global_block():         # the code that runs the block
        note("Triton ...")       # the code that launches the kernel
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
    """Collects the names of attention kernels in global blocks inside; an outer `noting` does not get them."""
    notes: Notes = {}
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


@contextmanager
def global_block() -> Iterator[None]:
    """Marks attention inside as that of a global block."""
    token = _in_global_block.set(True)
    try:
        yield
    finally:
        _in_global_block.reset(token)


def note(kernel: str) -> None:
    """Record the kernel, named by its library or language first."""
    if _in_global_block.get():
        note_again([kernel])


def note_again(kernels: Iterable[str]) -> None:
    """Record kernels that were recorded before and run again, as in the replay of a CUDA graph."""
    if (notes := _notes.get()) is not None:
        notes.update(dict.fromkeys(kernels))


def attend_by_pytorch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's attention, recorded as the kernel that PyTorch selects for these tensors."""
    if _in_global_block.get() and _notes.get() is not None:
        note(f"PyTorch {SDPBackend(torch._fused_sdp_choice(q, k, v)).name.lower()}")
    return F.scaled_dot_product_attention(q, k, v)
