"""Kernels start on memory that is poisoned, whatever they are tested for."""

import pytest

from tests.poison import poison_new_memory


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    poison_new_memory(monkeypatch)
