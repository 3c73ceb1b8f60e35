"""What README and docs show is true: Python runs offline, command lines are taken, and the cheap ones run.

Three photographs of a bundled scene are in `photos/`, and a video is `clip.mp4`. In the place of the public model and
of CUDA stand the embedded model and the CPU. `PARSED_ALONE` are parsed alone, and so is what is not of this package.
"""

import ast
import functools
import re
import shlex
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tests.video.clips import write_clip
from vggt_int8.cli import app

ROOT = Path(__file__).parent.parent
DOCS = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
PAGES = ["README.md", "README.zh-CN.md", "CONTRIBUTING.md", *DOCS]
STAND_INS = {"facebook/VGGT-1B": "embedded", '"cuda"': '"cpu"'}
PARSED_ALONE = ("demo", "batch", "bench", "bench-report", "eval", "sensitivity", "qat")
OF_OTHERS = ("cd", "docker", "git", "runpodctl", "source")  # programs of others, whose lines nothing here can check
TYPERS = {"--help", "--install-completion", "--show-completion"}


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def python_of(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text_of(page), flags=re.DOTALL)


def command_lines(page: str) -> list[str]:
    """Of the blocks without a language, each part of `a && b` by itself, without comments."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text_of(page), flags=re.DOTALL | re.MULTILINE)
    lines = [
        line
        for language, block in blocks
        if language in ("", "sh", "bash")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    return [part.strip() for line in lines for part in re.sub(r"(^|\s)#.*", "", line).split("&&") if part.strip()]


def commands_in_prose(page: str) -> list[list[str]]:
    """Words after `vggt-int8` between backticks. They may leave arguments out, so that they are no whole lines."""
    prose = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    return [shlex.split(words) for words in re.findall(r"`vggt-int8 ([^`…]+)`", prose)]


with_python = [page for page in PAGES if python_of(page)]
with_commands = [page for page in PAGES if command_lines(page) or commands_in_prose(page)]


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, which has photographs, and no network."""

    def no_network(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network is asked")

    (tmp_path / "photos").mkdir()
    for number in range(3):
        shutil.copy(ROOT / "vggt_int8" / "assets" / "scenes" / "room" / f"image_{number}.png", tmp_path / "photos")
    write_clip(tmp_path / "clip.mp4", [i / 2 for i in range(30)])
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
    assert names["model"].config.quantization_config.recipe["name"] == "int8_rotated"
    assert (offline / "vggt-1b-int8" / "model.safetensors").is_file()


def test_the_ten_lines_are_the_same_in_both_languages() -> None:
    english, chinese = (python_of(page) for page in ("README.md", "README.zh-CN.md"))
    assert [ast.dump(ast.parse(block)) for block in english] == [ast.dump(ast.parse(block)) for block in chinese]
    assert command_lines("README.md") == command_lines("README.zh-CN.md")


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("page", [page for page in with_python if page.startswith("docs/")])
def test_the_blocks_of_a_page_run(page: str) -> None:
    names = run_python(page)
    if page == "docs/recipes.md":
        assert names["model"].config.quantization_config.parsed().include == (r".*\.mlp\.fc[12]",)


@pytest.mark.parametrize("page", with_commands)
def test_command_lines_are_taken(page: str) -> None:
    for line in command_lines(page):
        program, *arguments = shlex.split(line)
        if program == "vggt-int8":
            parse(arguments)
        elif program == "pip":
            assert (ROOT / arguments[arguments.index("-c") + 1]).is_file()
        elif "/" in program:
            assert (ROOT / program).is_file(), line
        else:
            assert program in ("pytest", "accelerate", "python", ".", *OF_OTHERS), line
    for words in commands_in_prose(page):
        command, arguments = command_of(words)[1:]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in arguments if word.startswith("-")} <= options | TYPERS, words


def parse(arguments: list[str]) -> None:
    """As the program does, without running it. Raises what typer raises, which says what is wrong."""
    name, command, arguments = command_of(arguments)
    assert not hasattr(command, "commands"), f"there is no command {arguments[0]}"
    command.make_context(name, arguments)


@functools.cache
def the_program() -> Any:
    """Built once: all commands with all their options take longer than a line."""
    return typer.main.get_command(app)


def command_of(words: list[str]) -> tuple[str, Any, list[str]]:
    """The command that words name, or the whole program, and the words after it."""
    name, command = "vggt-int8", the_program()
    while words and words[0] in getattr(command, "commands", {}):
        name, *words = words
        command = command.commands[name]
    return name, command, words


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("run embedded photos/ -o scene --recipee int8_dynamic", "recipee"),
        ("run embedded photos/", "out"),
        ("quantise a", "quantise"),
    ],
)
def test_a_line_that_is_not_taken_is_noticed(line: str, wrong: str) -> None:
    with pytest.raises(Exception, match=wrong):
        parse(line.split())


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("page", ["README.md", "docs/commands.md"])
def test_command_lines_run(page: str) -> None:
    for line in map(with_stand_ins, command_lines(page)):
        program, *arguments = shlex.split(line)
        if program == "vggt-int8" and arguments[0] not in PARSED_ALONE:
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, f"{line}\n{result.output}"
