"""However the page ends, what visitors brought does not stay: deleted at its end, or by the next one after a kill."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the page needs the extra app (constraints-app.txt)")


def start(temporary: Path, model: Path) -> tuple[subprocess.Popen[str], str]:
    """The command's process, and the address that it printed."""
    command = [sys.executable, "-m", "vggt_int8", "app", "--model", str(model), "--port", "0", "--device", "cpu", "-q"]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@pytest.mark.slow
def test_a_kill_is_cleaned_up_by_the_next_and_sigterm_at_once(tmp_path: Path, bare_int8: Path) -> None:
    killed, url = start(tmp_path, bare_int8)
    assert url.startswith("http://127.0.0.1:")
    (left,) = tmp_path.glob(".vggt-int8-app*")
    killed.kill()
    killed.wait(timeout=60)
    assert left.is_dir()

    ended, url = start(tmp_path, bare_int8)
    assert url.startswith("http://127.0.0.1:")
    (folder,) = tmp_path.glob(".vggt-int8-app*")
    assert folder != left
    ended.send_signal(signal.SIGTERM)
    assert ended.wait(timeout=60) == 128 + signal.SIGTERM
    assert not list(tmp_path.glob(".vggt-int8-app*"))
