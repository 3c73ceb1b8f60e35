"""Runs the cases of `triton_*cases.py`: everywhere in Triton's interpreter, and compiled where there is a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
CASES = sorted(path.name for path in FOLDER.glob("triton_*cases.py"))


@pytest.mark.parametrize("cases", CASES)
@pytest.mark.parametrize(
    "interpret", [pytest.param("1", id="interpreted"), pytest.param("0", id="compiled", marks=pytest.mark.gpu)]
)
def test_triton_kernels(interpret: str, cases: str) -> None:
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": interpret}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / cases)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=FOLDER.parents[1])
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
