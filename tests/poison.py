"""Memory that nothing has written holds values that no kernel writes, so that what a kernel leaves out is seen."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

WAYS = [
    *((torch, name) for name in ("empty", "empty_like", "empty_strided", "empty_permuted")),
    *((Tensor, name) for name in ("new_empty", "new_empty_strided")),
]


def poison(x: Tensor) -> Tensor:
    """Fill with NaN; integers with the smallest, which in int8 is -128 and never a code, or without a sign the largest.

    `torch.utils.deterministic` fills integers with the largest, which is the code of every row's largest value.
    """
    if x.dtype == torch.bool or x.device.type == "meta":
        return x
    if x.is_floating_point() or x.is_complex():
        return x.fill_(float("nan"))
    bounds = torch.iinfo(x.dtype)
    return x.fill_(bounds.min or bounds.max)


def poison_new_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here to the end of the test, in this process."""

    def poisoned(way: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def make(*args: object, **kwargs: object) -> Tensor:
            with torch.no_grad():
                return poison(way(*args, **kwargs))

        return make

    with torch.device("meta"):
        torch.empty(0)  # such a block finds the functions that it diverts once, and must not find these
    for owner, name in WAYS:
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))
