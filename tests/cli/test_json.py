"""With --json stdout is one document, which says what the text says; errors leave it empty."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vggt_int8.bench import cost
from vggt_int8.cli import app, console

ROOT = Path(__file__).parent.parent.parent
CONFIG = ROOT / "tests" / "data" / "parity" / "tiny_vggt_config.json"


def document(*args: object) -> dict[str, Any]:
    """What the command printed on stdout, which must be JSON as a whole and strict."""
    result = CliRunner().invoke(app, [*map(str, args), "--json"])
    assert result.exit_code == 0, result.output

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    found = json.loads(result.stdout, parse_constant=refuse)
    assert (found["format_version"], found["command"]) == (1, args[0])
    return found


def test_run(tiny_int8: Path, photos: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = document("run", tiny_int8, *photos, "-o", out)
    assert found["out"] == str(out)
    assert found["report"] == json.loads((out / "report.json").read_text())


def test_quantize(tiny: Path, tmp_path: Path) -> None:
    found = document("quantize", tiny, "-o", tmp_path / "out", "-r", "int8_weight_only")
    assert {file.name for file in (tmp_path / "out").iterdir()} == set(found["files"])
    assert found["weight_bytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert {"W8A16"} <= {layer["scheme"] for layer in found["layers"]}


@pytest.mark.slow
def test_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "SECONDS", 0.01)
    monkeypatch.setattr(cost, "LOADS", {"cpu": (256, 256, 1 << 24)})
    small = ("--device", "cpu", "--size", "42x56", "--seconds", "0", "--frames", "1", "--variants", "fp32")
    found = document("bench", f"random:{CONFIG}", *small, "-o", tmp_path / "rows.jsonl")
    assert found["rows"] == [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(found["rows"]) == 1
    readme = tmp_path / "README.md"
    readme.write_text("<!-- bench:begin -->\n<!-- bench:end -->\n")
    report = document("bench-report", tmp_path / "rows.jsonl", "--readme", readme)
    assert report["rows"] == found["rows"]
    assert report["table"] in readme.read_text()
    assert (report["readme"], report["readme_changed"], report["plot"]) == (str(readme), True, None)


@pytest.mark.parametrize("command", ["run", "compare", "inspect", "quantize", "eval"])
def test_errors_leave_stdout_empty(command: str, tmp_path: Path) -> None:
    absent = str(tmp_path / "absent")
    more = {"run": [absent, "-o", absent], "compare": [absent, absent], "inspect": []}
    more |= {"quantize": ["-o", absent], "eval": ["-o", absent]}
    result = CliRunner().invoke(app, [command, absent, *more[command], "--json"])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "absent" in result.stderr


def test_what_libraries_print_is_kept_off_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with console.documents_only():
        print("a library talks")
        console.document("x", {})
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"format_version": 1, "command": "x"}
    assert printed.err == "a library talks\n"


CHATTER = """
import ctypes, os, subprocess, sys
from vggt_int8.cli import main
recipes = sys.modules["vggt_int8.cli.recipes"]

real = recipes.load_recipe

def talking(name):
    os.write(1, b"by number\\n")
    ctypes.CDLL(None).puts(b"buffered in C")
    subprocess.run(["echo", "by a child"])
    print("in Python")
    return real(name)

recipes.load_recipe = talking
sys.argv = ["vggt-int8", "recipes", "--json"]
main()
"""


def test_what_compiled_libraries_print_is_kept_off_stdout() -> None:
    run = subprocess.run([sys.executable, "-c", CHATTER], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["command"] == "recipes"
    said = {"by number", "buffered in C", "by a child", "in Python"}
    assert said <= set(run.stderr.splitlines())


def test_a_document_without_stderr() -> None:
    command = f"exec {sys.executable} -m vggt_int8 recipes --json 2>&-"
    run = subprocess.run(["sh", "-c", command], stdout=subprocess.PIPE, text=True, cwd=ROOT, timeout=120)
    assert json.loads(run.stdout)["command"] == "recipes"


def test_a_document_that_cannot_be_written_is_an_error() -> None:
    process = [sys.executable, "-m", "vggt_int8", "recipes", "--json"]
    with open("/dev/full", "w") as full:
        run = subprocess.run(process, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=120)
    assert run.returncode == 1
    assert "No space left on device" in run.stderr.splitlines()[0]
