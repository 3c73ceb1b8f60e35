"""Whether two models have the same tensors."""

from torch import equal, nn


def assert_same_state(a: nn.Module, b: nn.Module) -> None:
    """Same names in the state dicts, and for each the same dtype and values, bit by bit."""
    want, got = a.state_dict(), b.state_dict()
    assert want.keys() == got.keys()
    for name, tensor in want.items():
        assert tensor.dtype == got[name].dtype, name
        assert equal(tensor, got[name]), name
