"""What attended is noted where a global block runs and somebody reads it, and nowhere else."""

import pytest
import torch

from vggt_int8.kernels.attended import attend_by_pytorch, global_block, note, note_again, noting
from vggt_int8.kernels.cpu import compiled
from vggt_int8.kernels.cpu.attention import attention_cpu


def test_notes_are_of_global_blocks_in_the_order_of_their_first_launch() -> None:
    note("nobody reads this")
    with noting() as kernels:
        note("inside frames")
        with global_block():
            for kernel in ("b", "a", "b"):
                note(kernel)
            with noting() as inner:
                note("c")
        note("inside frames")
    assert list(kernels) == ["b", "a"]
    assert list(inner) == ["c"]


def test_what_was_captured_is_noted_again_when_it_is_replayed() -> None:
    with noting() as kernels:
        note_again(["a", "b"])
    assert list(kernels) == ["a", "b"]
    note_again(["nobody reads this"])


@pytest.mark.parametrize("integers", [False, True])
def test_attention_on_a_cpu_is_noted_by_what_it_takes(integers: bool) -> None:
    q = torch.rand(1, 2, 5, 8)
    with noting() as kernels, global_block():
        attention_cpu(q, q, q, integers)
    library = compiled.library() if integers else None
    assert list(kernels) == [library.name if library else "PyTorch flash_attention"]


def test_pytorch_is_noted_by_the_kernel_that_it_may_take() -> None:
    q = torch.rand(1, 2, 5, 8)
    with noting() as kernels, global_block(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        attend_by_pytorch(q, q, q)
    assert list(kernels) == ["PyTorch math"]
