"""What these tests rest on: an element that a kernel leaves out is not taken for a result."""

import pytest
import torch
from torch import Tensor

from tests.poison import WAYS
from vggt_int8.kernels import reference


def new(name: str, like: Tensor) -> Tensor:
    arguments = {
        "empty_like": (like,),
        "empty_strided": (like.shape, like.stride()),
        "new_empty_strided": (like.shape, like.stride()),
        "empty_permuted": (like.shape, (0, 1)),
    }.get(name, (like.shape,))
    if name.startswith("new"):
        return getattr(like, name)(*arguments)
    return getattr(torch, name)(*arguments, dtype=like.dtype)


@pytest.mark.parametrize("name", [name for _, name in WAYS])
def test_new_memory_holds_no_result(name: str) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert new(name, torch.zeros(3, 5, dtype=dtype)).isnan().all()
    for dtype, value in ((torch.int8, -128), (torch.uint8, 255), (torch.int32, -(2**31))):
        assert (new(name, torch.zeros(3, 5, dtype=dtype)) == value).all()


def test_a_device_still_is_that_of_its_block() -> None:
    """Of this process, too, once nothing is poisoned any more: a model on the meta device would have real weights."""
    with torch.device("meta"):
        assert torch.empty(3).is_meta


def test_what_is_left_unwritten_differs_from_every_result() -> None:
    x = torch.randn(7, 64, generator=torch.Generator().manual_seed(0))
    codes, scale = reference.quantize_rows(x)
    for want in (codes, scale):
        got = torch.empty_like(want)
        got.view(-1)[:-1] = want.view(-1)[:-1]
        assert not torch.equal(got, want)
        with pytest.raises(AssertionError):
            torch.testing.assert_close(got.float(), want.float(), rtol=0, atol=0.9)
