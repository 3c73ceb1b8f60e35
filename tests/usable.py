"""Leaves out of a test what this machine's processor cannot run."""

import pytest

from vggt_int8.quant.backends import BackendError, resolve
from vggt_int8.recipe import Scheme


def skip_unless_usable(backend: str, scheme: Scheme, device: str = "cpu") -> None:
    """Skip if the backend says that it cannot run here, for the reasons that depend on the machine alone.

    They are a CPU whose integer product saturates, under a library that does not ask, and whatever a GPU lacks.
    """
    try:
        resolve(backend, scheme, device)
    except BackendError as error:
        if "saturates on this CPU" in str(error) or device == "cuda":
            pytest.skip(str(error))
        raise
