"""A process with Triton's interpreter that runs the tests of this folder by name, one after the other.

The interpreter must be chosen before anything imports Triton, and then serves nothing else, `torch.compile` least of
all. The process collects once; it reads a test's name from its stdin and answers with a line of JSON.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TextIO

import pytest
from _pytest.runner import runtestprotocol

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[2]
OTHERS_SETTINGS = ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER")


class Interpreter:
    def __init__(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in OTHERS_SETTINGS}
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed by `close`)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.kernels.cuda.interpreter"],
            env=environment | {"TRITON_INTERPRET": "1"},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def run(self, name: str) -> tuple[str, str]:
        """Outcome of the test (passed, failed or skipped), and what there is to say about it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # the answer, which does not come, says so
            print(name, file=self.process.stdin, flush=True)
        if line := self.process.stdout.readline():
            outcome, text = json.loads(line)
            return outcome, text
        self.log.seek(0)
        return "failed", f"the process ended with exit code {self.process.wait()}\n{self.log.read()[-5000:]}"

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.process.wait()
        self.log.close()


class Answers:
    """Plugin: instead of all tests, run those that are asked for."""

    def __init__(self, questions: TextIO, answers: TextIO) -> None:
        self.questions, self.answers = questions, answers

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        for question in self.questions:
            reports = runtestprotocol(items[question.strip()], log=False, nextitem=None)
            worst = next((report for report in reports if not report.passed), reports[-1])
            if worst.skipped:
                text = str(worst.longrepr[2])
            else:
                text = "\n".join([worst.longreprtext, *(f"-- {title}\n{body}" for title, body in worst.sections)])
            print(json.dumps([worst.outcome, text]), file=self.answers, flush=True)
        return True


def main() -> None:
    questions, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a test prints is no answer
    arguments = [str(FOLDER), "-p", "no:cacheprovider", "-m", "slow or not slow"]
    sys.exit(pytest.main(arguments, plugins=[Answers(questions, answers)]))


if __name__ == "__main__":
    main()
