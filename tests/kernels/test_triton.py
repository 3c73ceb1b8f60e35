"""Runs the cases of `triton_cases.py`: everywhere in Triton's interpreter, and compiled where there is a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("triton_cases.py")


@pytest.mark.parametrize(
    "interpret", [pytest.param("1", id="interpreted"), pytest.param("0", id="compiled", marks=pytest.mark.gpu)]
)
def test_triton_kernels(interpret: str) -> None:
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": interpret}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=CASES.parents[2])
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
