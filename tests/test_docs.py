"""What README and docs show is true: Python runs offline, command lines are taken, and the cheap ones run.

Three photographs of a bundled scene are in `photos/`. In the place of the public model and of CUDA stand the embedded
model and the CPU. `demo`, `bench` and `bench-report` are parsed alone, and so is what is not of this package.
"""

import ast
import importlib
import re
import shlex
import shutil
import socket
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from typer.testing import CliRunner

from vggt_int8.cli import app

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "README.zh-CN.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
STAND_INS = {"facebook/VGGT-1B": "embedded", '"cuda"': '"cpu"'}
PARSED_ALONE = ("demo", "bench", "bench-report")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def python_of(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text_of(page), flags=re.DOTALL)


def command_lines(page: str) -> list[str]:
    """Of the blocks without a language, each part of `a && b` by itself, without comments."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text_of(page), flags=re.DOTALL | re.MULTILINE)
    lines = [line for language, block in blocks if language in ("", "sh", "bash") for line in block.splitlines()]
    return [part.strip() for line in lines for part in re.sub(r"(^|\s)#.*", "", line).split("&&") if part.strip()]


def inline_commands(page: str) -> list[str]:
    """Commands between backticks, without those that only name a command or leave something out."""
    prose = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"`((?:vggt-int8|python -m vggt_int8[.\w]*) [^`]+)`", prose)
    return [command for command in found if "…" not in command and len(command.split()) > 2]


with_python = [page for page in PAGES if python_of(page)]
with_commands = [page for page in PAGES if command_lines(page) or inline_commands(page)]


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, which has photographs, and no network."""

    def no_network(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network is asked")

    (tmp_path / "photos").mkdir()
    for number in range(3):
        shutil.copy(ROOT / "vggt_int8" / "assets" / "scenes" / "room" / f"image_{number}.png", tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    return tmp_path


def with_stand_ins(text: str) -> str:
    for public, here in STAND_INS.items():
        text = text.replace(public, here)
    return text


def run_python(page: str) -> dict[str, Any]:
    """Names after all blocks of a page, which follow one another."""
    names: dict[str, Any] = {}
    for block in python_of(page):
        exec(compile(with_stand_ins(block), page, "exec"), names)
    return names


def test_the_ten_lines_run(offline: Path) -> None:
    names = run_python("README.md")
    assert names["pred"].depth.shape[1] == 3
    assert names["model"].config.quantization_config.recipe["name"] == "int8_dynamic"
    assert (offline / "vggt-1b-int8" / "model.safetensors").is_file()


def test_the_ten_lines_are_the_same_in_both_languages() -> None:
    english, chinese = (python_of(page) for page in ("README.md", "README.zh-CN.md"))
    assert [ast.dump(ast.parse(block)) for block in english] == [ast.dump(ast.parse(block)) for block in chinese]
    assert command_lines("README.md") == command_lines("README.zh-CN.md")


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("page", [page for page in with_python if page.startswith("docs/")])
def test_the_blocks_of_a_page_run(page: str) -> None:
    run_python(page)


@pytest.mark.parametrize("page", with_commands)
def test_command_lines_are_taken(page: str) -> None:
    for line in [*command_lines(page), *inline_commands(page)]:
        program, *arguments = shlex.split(line)
        if program == "vggt-int8":
            parse(arguments)
        elif program == "python" and arguments[1].startswith("vggt_int8"):
            importlib.import_module(f"{arguments[1]}.__main__")._parser().parse_args(arguments[2:])
        elif program == "pip":
            assert (ROOT / arguments[arguments.index("-c") + 1]).is_file()
        else:
            assert program in ("pytest", "accelerate"), line


def parse(arguments: list[str]) -> None:
    """As the program does, without running it. Raises click.UsageError, which says what is wrong."""
    command: click.Command = typer.main.get_command(app)
    name = "vggt-int8"
    while isinstance(command, click.Group) and arguments and arguments[0] in command.commands:
        name, *arguments = arguments
        command = command.commands[name]
    if isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        raise click.UsageError(f"there is no command {arguments[0]}")
    command.make_context(name, arguments)


@pytest.mark.parametrize("line", ["run embedded photos/ -o scene --recip int8_dynamic", "run embedded", "quantise a"])
def test_a_line_that_is_not_taken_is_noticed(line: str) -> None:
    with pytest.raises(click.UsageError):
        parse(line.split())


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("page", [page for page in with_commands if command_lines(page)])
def test_command_lines_run(page: str) -> None:
    for line in map(with_stand_ins, command_lines(page)):
        program, *arguments = shlex.split(line)
        if program == "vggt-int8" and arguments[0] not in PARSED_ALONE:
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, f"{line}\n{result.output}"
