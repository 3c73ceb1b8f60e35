"""Signals end a command once, with their exit code, and do not disturb what cleans up."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vggt_int8 import interrupts
from vggt_int8.interrupts import Stopped, heeded, uninterrupted

SOURCE = Path(interrupts.__file__).parent
LOOP = """import os, signal, sys, time
sys.path.insert(0, sys.argv[1])  # the module alone: this is what a command has before it imports anything
from interrupts import heeded, uninterrupted
with heeded():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.1)
        print("clean", flush=True)
"""


def start(code: str = LOOP, **options: object) -> "subprocess.Popen[str]":
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", code, str(SOURCE)], text=True, **pipes, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "Interrupted."), (signal.SIGTERM, 143, "Terminated."), (signal.SIGHUP, 129, "Hung up.")],
)
def test_a_signal_ends_it_once_with_its_code(number: int, code: int, word: str) -> None:
    """Though more of them come while it cleans up. Python and whoever runs the tests may ignore some: set anew."""

    def listen() -> None:
        for each in interrupts.WORDS:
            signal.signal(each, signal.SIG_DFL)

    process = start(preexec_fn=listen)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (code, "clean\n", word + "\n")


def test_what_is_ignored_stays_ignored() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1])\nfrom interrupts import heeded\nwith heeded():\n"
    code += "    import os, signal, time; os.kill(os.getpid(), signal.SIGHUP); time.sleep(0.1); print('alive')\n"
    process = start(code, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))  # as nohup does
    assert process.communicate(timeout=30) == ("alive\n", "")
    assert process.returncode == 0


def test_a_signal_that_a_library_swallows_is_heard_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "DEAF_SECONDS", 0.05)
    swallowed = []
    before = signal.getsignal(signal.SIGTERM)

    def deaf() -> None:
        with heeded():
            try:
                signal.raise_signal(signal.SIGTERM)
            except KeyboardInterrupt as error:
                swallowed.append(error)
            time.sleep(0.1)
            signal.raise_signal(signal.SIGTERM)

    try:
        with pytest.raises(SystemExit) as ended:
            deaf()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        for number, handler in ((signal.SIGTERM, before), (signal.SIGHUP, signal.SIG_DFL)):
            signal.signal(number, handler)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert len(swallowed) == 1
    assert ended.value.code == 143


def test_without_a_signal_nothing_changes() -> None:
    before = [signal.getsignal(number) for number in interrupts.WORDS]
    with pytest.raises(ValueError, match="mine"), heeded():
        raise ValueError("mine")
    with pytest.raises(SystemExit) as ended, heeded():
        sys.exit(2)
    assert ended.value.code == 2
    assert [signal.getsignal(number) for number in interrupts.WORDS] == before


def test_uninterrupted_steps_end_before_the_signal_counts() -> None:
    done = []

    def handler(number: int, _: object) -> None:
        raise Stopped(number)

    def steps() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGTERM)
            done.append("all")

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(Stopped):
            steps()
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert done == ["all"]


def test_other_threads_are_left_alone() -> None:
    seen = []

    def work() -> None:
        with heeded(), uninterrupted():
            seen.append(os.getpid())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [os.getpid()]
