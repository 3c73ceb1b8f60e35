"""The console shows our own lines alone; errors are one line and an exit code; nothing is left half-written."""

import os
import re
import signal
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import pytest
import typer

from tests.warm import python
from vggt_int8.cli import console, libraries
from vggt_int8.cli.guard import guarded
from vggt_int8.interrupts import Stopped

ROOT = Path(__file__).parent.parent.parent
STEP = r"(Loading|Reading|Reconstructing|Writing|Saving|Rendering|Comparing|Measuring) .* \d+\.\d s(, [\d.]+ images/s)?"


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VGGT_INT8")}
    return kept | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "HF_HUB_OFFLINE": "1"}


def start(*args: object, **options: object) -> subprocess.Popen[str]:
    """The real command in its own process."""
    command = [sys.executable, "-m", "vggt_int8", *map(str, args)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment(), text=True, **pipes, **options)


def run(*args: object) -> tuple[int, list[str], list[str]]:
    """Exit code, lines of stdout, lines of stderr of a command that has PyTorch already."""
    done = python("-m", "vggt_int8", *args, env=environment())
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


def finish(process: subprocess.Popen[str]) -> tuple[int, list[str], list[str]]:
    """Exit code, lines of stdout, lines of stderr."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out.splitlines(), err.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torchao", "bitsandbytes"])
def test_only_our_lines_are_shown(tiny_int8: Path, photos: list[Path], tmp_path: Path, backend: str) -> None:
    command = ("run", tiny_int8, *photos, "-o", tmp_path / "out", "--backend", backend, "--device", "cpu")
    code, out, err = run(*command)
    assert code == 0, err
    assert [line for line in err if not re.fullmatch(STEP, line)] == []
    assert out[0] == f"2 images -> {tmp_path / 'out'}"
    assert {line.split("  ")[0].strip() for line in out[1:]} <= {
        "load model",
        "load images",
        "reconstruct",
        "write",
        "median depth",
        "points",
    }


@pytest.mark.slow
def test_library_messages_are_shown_on_request(tiny_int8: Path, tmp_path: Path) -> None:
    code, _, err = run("--debug", "run", tiny_int8, tmp_path / "absent.jpg", "-o", tmp_path / "out")
    assert code == 1
    assert "Traceback (most recent call last):" in err


def test_errors_are_one_line(tiny: Path, tmp_path: Path) -> None:
    code, out, err = finish(start("run", tiny, tmp_path / "absent.jpg", "-o", tmp_path / "out"))
    assert (code, out) == (2, [])
    assert len(err) == 1
    assert err[0].startswith("Error: ")
    assert "absent.jpg" in err[0]


@pytest.mark.parametrize("args", [["run", "--frobnicate"], ["run"], ["quantise"]])
def test_usage_errors(cli, args: list[str]) -> None:
    assert "Usage:" in cli(*args, code=2)


def test_version_and_help_need_no_network_and_load_no_model_code() -> None:
    code, out, err = finish(start("--version"))
    assert (code, err) == (0, [])
    assert re.fullmatch(r"vggt-int8 \d+\.\d+\.\d+", out[0])
    program = "import sys, vggt_int8.cli; print([m for m in ('torchao', 'triton', 'bitsandbytes') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("number", "after", "code", "word"),
    [
        # Somewhere inside rendering or loading.
        pytest.param(signal.SIGINT, 0.5, 130, "Interrupted.", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 1.0, 143, "Terminated.", marks=pytest.mark.slow),
        (signal.SIGINT, None, 130, "Interrupted."),  # while it imports
    ],
)
def test_interrupt_leaves_nothing(tmp_path: Path, number: int, after: float | None, code: int, word: str) -> None:
    # Whoever runs the tests may ignore the signal (a shell's background jobs do), and children inherit that.
    listen = partial(signal.signal, number, signal.SIG_DFL)
    process = start("demo", "-o", tmp_path / "out", start_new_session=True, preexec_fn=listen)
    deadline = time.monotonic() + 120
    if after is None:
        # The first file that the command's own imports open, which take long.
        while time.monotonic() < deadline and "torch" not in Path(f"/proc/{process.pid}/maps").read_text():
            time.sleep(0.01)
    else:
        while not list(tmp_path.iterdir()) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(after)
    for _ in range(3):
        process.send_signal(number)
    ended, out, err = finish(process)
    assert ended == code, err
    assert err[-1] == word
    assert not any("Traceback" in line for line in err)
    assert out == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ValueError("size is 3"), 2, "Error: size is 3"),
        (FileNotFoundError(2, "No such file or directory", "a.jpg"), 2, "Error: a.jpg: No such file or directory"),
        (RuntimeError("out of memory"), 1, "Error: out of memory"),
        (OSError(28, "No space left on device", "out.npy"), 1, "Error: out.npy: No space left on device"),
        (FloatingPointError("NaN in depth"), 1, "Error: NaN in depth"),
        (KeyError("depth"), 1, "--debug"),
        (ValueError("two\n  lines"), 2, "Error: two lines"),
        (KeyboardInterrupt(), 130, "Interrupted."),
        (Stopped(signal.SIGHUP), 129, "Hung up."),
        (ValueError("[bold]x[/bold]"), 2, "Error: [bold]x[/bold]"),
    ],
)
def test_exceptions_become_exit_codes(
    error: BaseException, code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise error

    with pytest.raises(typer.Exit) as stopped:
        guarded(command)()
    assert stopped.value.exit_code == code
    assert text in capsys.readouterr().err


def test_our_warnings_are_lines_and_others_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    ours = str(Path(libraries.PACKAGE) / "images.py")

    def command() -> None:
        warnings.warn_explicit("sizes differ", UserWarning, ours, 1)
        warnings.warn_explicit("old function", DeprecationWarning, ours, 1)
        warnings.warn_explicit("library talk", UserWarning, "/somewhere/torchao/x.py", 1)

    guarded(command)()
    assert capsys.readouterr().err.splitlines() == ["Warning: sizes differ"]


def test_steps_tell_how_long_they_took(capsys: pytest.CaptureFixture[str]) -> None:
    with console.step("Reading [x]") as progress:
        progress(1, 2)
    assert re.fullmatch(r"Reading \[x\] \d+\.\d s", capsys.readouterr().err.strip())
    with console.step("Reading", images=3):
        time.sleep(0.01)
    rate = re.fullmatch(r"Reading \d+\.\d s, ([\d.]+) images/s", capsys.readouterr().err.strip())
    assert rate is not None
    assert 0 < float(rate[1]) <= 300
    with console.step("Reading", images=10**9):  # more than three digits: no exponent
        pass
    assert re.fullmatch(r"Reading \d+\.\d s, \d{7,} images/s", capsys.readouterr().err.strip())


def test_debug_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def command() -> None:
        raise ValueError("as it is")

    monkeypatch.setattr(console.settings, "debug", True)
    with pytest.raises(ValueError, match="as it is"):
        guarded(command)()


def test_progress_bars_of_libraries_are_restored() -> None:
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging as transformers_logging

    before = (are_progress_bars_disabled(), transformers_logging.is_progress_bar_enabled())
    with libraries.quiet_libraries():
        seen = [are_progress_bars_disabled(), transformers_logging.is_progress_bar_enabled()]
    assert seen == [True, False]
    assert (are_progress_bars_disabled(), transformers_logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize("command", ["quantize", "run", "compare"])
def test_help_states_the_defaults_of_device_and_dtype(cli, command: str) -> None:
    text = " ".join(cli(command, "--help").replace("│", " ").split())
    assert "by default cuda if available" in text
    assert command == "quantize" or "by default fp16 on cuda and fp32 on cpu" in text
