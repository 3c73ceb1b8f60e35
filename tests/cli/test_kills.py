"""Runs cases in processes of their own: they fork, which a process with threads of libraries may not."""

from pathlib import Path

import pytest

from tests.warm import python

HERE = Path(__file__).parent


ALL = [pytest.mark.exhaustive, pytest.mark.timeout(3600)]


@pytest.mark.parametrize(
    ("cases", "marked"),
    [
        pytest.param("kill_cases.py", "not exhaustive", id="a sample", marks=pytest.mark.slow),
        pytest.param("kill_cases.py", "exhaustive", id="all", marks=ALL),
        pytest.param("kill_training_cases.py", "exhaustive", id="training", marks=ALL),
    ],
)
def test_commands_that_are_killed(cases: str, marked: str) -> None:
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marked, HERE / cases)
    run = python(*command, cwd=HERE.parents[1])
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
