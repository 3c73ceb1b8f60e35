"""Triton kernels: compiled where there is a GPU (then these are `gpu` tests), interpreted elsewhere.

`TRITON_INTERPRET=1 pytest tests/kernels/cuda` interprets them in pytest's own process, on any machine and under a
debugger. Otherwise pytest's process has imported Triton for the compiler, so that another one interprets, test by test.
"""

import pytest
import torch

from tests.kernels.cuda.interpreter import Interpreter

INTERPRETER = pytest.StashKey[Interpreter]()


def pytest_itemcollected(item: pytest.Item) -> None:
    from tests.kernels.cuda.cases import INTERPRETED  # which needs Triton; without it, the tests' files are skipped

    if not INTERPRETED:
        item.add_marker(pytest.mark.gpu)


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run the test over there, and let it pass, fail or be skipped here."""
    from tests.kernels.cuda.cases import IN_THIS_PROCESS, INTERPRETED

    if not INTERPRETED or IN_THIS_PROCESS:
        return None
    stash = pyfuncitem.config.stash
    if INTERPRETER not in stash:
        stash[INTERPRETER] = Interpreter()
        pyfuncitem.config.add_cleanup(stash[INTERPRETER].close)
    outcome, text = stash[INTERPRETER].run(pyfuncitem.nodeid)
    if outcome == "skipped":
        pytest.skip(text)
    if outcome != "passed":
        pytest.fail(f"in Triton's interpreter:\n{text}", pytrace=False)
    return True


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
