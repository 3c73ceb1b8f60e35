"""Which backend runs which kind of INT8 linear, and what of it this machine's processor cannot run."""

import pytest

from vggt_int8.quant.backends import BackendError, resolve
from vggt_int8.recipe import Scheme

# Backend -> the kinds of INT8 linear that it runs. It refuses the others.
RUNS = {
    "native": {"none", "dynamic", "static"},
    "torchao": {"none", "dynamic", "static"},
    "bitsandbytes": {"dynamic", "llm_int8"},
    "reference": {"none", "dynamic", "static", "llm_int8"},
}


def running(kind: str) -> list[str]:
    """The backends that run this kind of linear."""
    return [backend for backend, kinds in RUNS.items() if kind in kinds]


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
