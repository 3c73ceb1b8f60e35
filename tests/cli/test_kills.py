"""Runs `kill_cases.py` in a process of its own: its cases fork, which a process with threads of libraries may not."""

from pathlib import Path

import pytest

from tests.warm import python

CASES = Path(__file__).with_name("kill_cases.py")


@pytest.mark.parametrize(
    "marked",
    [
        pytest.param("not exhaustive", id="a sample", marks=pytest.mark.slow),
        pytest.param("exhaustive", id="all", marks=[pytest.mark.exhaustive, pytest.mark.timeout(3600)]),
    ],
)
def test_commands_that_are_killed(marked: str) -> None:
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marked, CASES)
    run = python(*command, cwd=CASES.parents[2])
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
