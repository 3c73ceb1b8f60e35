"""Commands that are killed at their renames, removals and new folders, one after the other.

A kill leaves the old results or the new ones whole, or a folder that lacks its last file (report.json, config.json).
What others have put there stays, and the same command afterwards does what it does without a kill, leaving nothing
hidden. The slow tests try some moments of one command, the exhaustive ones all of all. `test_kills.py` runs this file
in a process of its own.
"""

import itertools
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from vggt_int8 import VGGTInt8, VGGTOutput, recipe, scenes
from vggt_int8.batch import Board, supervise
from vggt_int8.cli import app, batch_worker, demo

CHANGES = ("rename", "replace", "unlink", "rmdir", "mkdir", "link", "symlink")


def killed(moment: int, arguments: list[object], below: Path, begin: str = "") -> bool:
    """Run a command in a child that ends by SIGKILL right before its change of that number in `below`.

    begin: count from the first change of a path that holds this. Returns whether it came so far. The child is a fork:
    it has imported everything already, and must not run the network (see `computed_once`).
    """
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # the parent's threads are not here
        left, begun = moment, False

        def ends(real: Callable[..., None]) -> Callable[..., None]:
            def counted(path: object, *args: object, **kwargs: object) -> None:
                nonlocal left, begun
                begun = begun or begin in str(path)
                # Names relative to a descriptor are those of `rmtree`, which has begun with a whole one.
                if begun and (kwargs.get("dir_fd") is not None or str(below) in str(path)):
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    left -= 1
                real(path, *args, **kwargs)

            return counted

        try:
            for name in CHANGES:
                setattr(os, name, ends(getattr(os, name)))
            CliRunner().invoke(app, [str(argument) for argument in arguments])
        finally:
            os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    return code == -signal.SIGKILL


def contents(folder: Path) -> dict[str, bytes]:
    """Files below that are not hidden; of a report and a checkpoint's header, that they are there."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            found[name] = b"" if path.name in ("report.json", "config.json", "model.safetensors") else path.read_bytes()
    return found


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


def check(
    arguments: list[object],
    numbers: Iterable[int],
    prepare: Callable[[Path], None],
    out: Path,
    last: str,
    begin: str = "",
    whole: dict[str, bytes] | None = None,
) -> set[str]:
    """Kill at each moment; the states seen. whole: what there is after a run that nobody kills."""
    seen = set()
    for number in numbers:
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir()
        prepare(out)
        before = contents(out.parent)
        came = killed(number, arguments, out.parent, begin)
        state = contents(out.parent)
        assert state.get("out/mine.txt") == before.get("out/mine.txt")
        changed = {name: content for name, content in state.items() if before.get(name) != content}
        complete = f"out/{last}" in state
        kind = "old" if state == before else "new" if complete else "incomplete"
        if came:
            seen.add(kind)
        again = CliRunner().invoke(app, [str(argument) for argument in arguments])
        # Where the new results were complete, a command that does not overwrite says that they are there.
        assert again.exit_code == 0 or "not empty" in again.output, (number, kind, again.output)
        after = contents(out.parent)
        assert all(name.startswith("out/") for name in after), (number, kind)
        if kind == "new":  # it was whole: what came again is the same, to the byte
            written = {name: content for name, content in changed.items() if name.startswith("out/")}
            assert {name: after[name] for name in written} == written, number
            assert after.keys() == {name for name in state if name.startswith("out/")}, number
        elif whole is not None:
            assert after == whole, number
        assert hidden(out.parent) == [], number
        assert after.get("out/mine.txt") == before.get("out/mine.txt")
        if not came:
            break
    return seen


@pytest.fixture
def computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network runs once for images of one shape, in this process: its threads and those of its libraries are not
    in a fork, which may crash without them.
    """
    given: dict[torch.Size, VGGTOutput] = {}
    forward = VGGTInt8.forward

    def once(self: VGGTInt8, images: torch.Tensor, *args: Any, **kwargs: Any) -> VGGTOutput:
        if images.shape not in given:
            given[images.shape] = forward(self, images, *args, **kwargs)
        return given[images.shape]

    monkeypatch.setattr(VGGTInt8, "forward", once)


@pytest.fixture(params=["a sample", pytest.param("all", marks=pytest.mark.exhaustive)])
def every(request: pytest.FixtureRequest) -> bool:
    return request.param == "all"


@pytest.mark.usefixtures("computed_once")
def test_run_over_the_results_of_another(every: bool, tiny: Path, photos: list[Path], tmp_path: Path) -> None:
    out, earlier = tmp_path / "place" / "out", tmp_path / "earlier"
    for images, folder in ((photos, tmp_path / "computed"), (photos[:1], earlier)):
        assert CliRunner().invoke(app, ["run", str(tiny), *map(str, images), "-o", str(folder)]).exit_code == 0

    def prepare(out: Path) -> None:
        shutil.copytree(earlier, out)
        (out / "mine.txt").write_text("mine")

    arguments = ["run", tiny, *photos, "-o", out, "--overwrite", "--max-points", 50]
    seen = check(arguments, itertools.count(step=1 if every else 21), prepare, out, "report.json")
    assert seen == {"old", "incomplete", "new"} if every else "old" in seen


@pytest.mark.usefixtures("computed_once")
def test_an_export_into_a_run(every: bool, tiny: Path, photos: list[Path], tmp_path: Path) -> None:
    out, earlier = tmp_path / "place" / "out", tmp_path / "earlier"
    arguments = ["run", tiny, *photos, "-o", earlier, "-f", "ply,colmap", "--max-points", 99]
    assert CliRunner().invoke(app, [str(argument) for argument in arguments]).exit_code == 0

    def prepare(out: Path) -> None:
        shutil.copytree(earlier, out)
        (out / "mine.txt").write_text("mine")

    again = ["export", out, "-f", "colmap,glb,npz", "--max-points", 50, "--overwrite"]
    seen = check(again, itertools.count(step=1 if every else 21), prepare, out, "report.json")
    assert seen == {"old", "incomplete", "new"} if every else "old" in seen


@pytest.mark.exhaustive
@pytest.mark.usefixtures("computed_once")
@pytest.mark.parametrize("exists", [False, True])
def test_a_new_run(exists: bool, tiny: Path, photos: list[Path], tmp_path: Path) -> None:
    out, computed = tmp_path / "place" / "out", tmp_path / "computed"
    assert CliRunner().invoke(app, ["run", str(tiny), str(photos[0]), "-o", str(computed)]).exit_code == 0
    seen = check(
        ["run", tiny, photos[0], "-o", out],
        itertools.count(),
        lambda out: out.mkdir() if exists else None,
        out,
        "report.json",
    )
    assert "old" in seen
    assert exists or "incomplete" not in seen


@pytest.mark.exhaustive
@pytest.mark.usefixtures("computed_once")
def test_a_run_in_windows_goes_on_from_the_last_whole_one(tiny: Path, photos: list[Path], tmp_path: Path) -> None:
    """Three windows and a loop; what comes out in the end is the same to the byte, wherever it was killed."""
    out, frames = tmp_path / "place" / "out", tmp_path / "frames"
    frames.mkdir()
    for number in range(7):
        Image.open(photos[number % 2]).rotate(number, Image.Resampling.BICUBIC).save(frames / f"{number}.png")
    command = ["run", tiny, frames, "-o", out, "--window", 3, "--overlap", 1, "--device", "cpu", "-f", "ply,colmap"]
    out.parent.mkdir()
    assert CliRunner().invoke(app, [str(argument) for argument in command]).exit_code == 0
    whole = contents(out.parent)
    assert json.loads((out / "report.json").read_text())["stream"]["windows"] == 3
    assert "incomplete" in check(command, itertools.count(), lambda out: None, out, "report.json", whole=whole)


@pytest.mark.usefixtures("computed_once")
def test_a_batch(every: bool, tiny: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its worker runs in the process of the command. A scene is there whole or not at all; the same command does the
    rest, and what comes out is the same to the byte.
    """

    def run(board: Board, commands: Sequence[Callable[[str], Sequence[str]]], note: Callable[[str], None]) -> None:
        for command in commands:
            batch_worker.work(batch_worker.from_argument(command("token")[-1]))

    monkeypatch.setattr(supervise, "supervise", run)
    out = tmp_path / "place" / "out"
    for name, photo in zip("ab", photos, strict=False):
        (tmp_path / "scenes" / name).mkdir(parents=True)
        shutil.copy(photo, tmp_path / "scenes" / name)
    command = ["batch", tiny, tmp_path / "scenes", "-o", out, "--device", "cpu", "-f", "ply", "-q"]
    arguments = [str(argument) for argument in command]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    whole = {name: content for name, content in contents(out).items() if name != "summary.json"}
    for number in itertools.count(step=1 if every else 17):
        shutil.rmtree(out)
        came = killed(number, command, out.parent)
        found = contents(out) if out.exists() else {}
        for name in "ab":
            here = {file for file in found if file.startswith(f"{name}/")}
            assert here in (set(), {file for file in whole if file.startswith(f"{name}/")}), number
        assert CliRunner().invoke(app, arguments).exit_code == 0, number
        after = contents(out)
        assert json.loads(after.pop("summary.json"))["done"] == 2
        assert after == whole, number
        assert [path.name for path in out.iterdir() if path.name.startswith(".")] == [".batch"], number
        assert list((out / ".batch").rglob("*.partial-*")) == [], number
        if not came:
            break


@pytest.mark.exhaustive
@pytest.mark.parametrize("exists", [False, True])
def test_quantize(exists: bool, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "place" / "out"
    arguments = ["quantize", tiny, "-o", out]
    seen = check(arguments, itertools.count(), lambda out: out.mkdir() if exists else None, out, "config.json")
    assert "old" in seen
    assert exists or "incomplete" not in seen
    VGGTInt8.from_pretrained(out)


@pytest.fixture
def demos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A demo of one scene and one recipe; those that follow, in forks as well, have its models and what they gave."""
    folder = tmp_path_factory.mktemp("demos") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "available_recipes", lambda: [demo.PICTURED])
        scene = scenes.available_scenes()[:1]
        patch.setattr(scenes, "available_scenes", lambda: scene)
        prepared, given = {}, {}
        prepare, reconstruct = demo.prepare, demo.reconstruct

        def prepare_once(source: Path, name: str, scratch: Path) -> object:
            if name not in prepared:
                prepared[name] = prepare(source, name, scratch)
            return prepared[name]

        def reconstruct_once(model: VGGTInt8, scenes: dict[str, Any]) -> object:
            if id(model) not in given:
                given[id(model)] = reconstruct(model, scenes)
            return given[id(model)]

        patch.setattr(demo, "prepare", prepare_once)
        patch.setattr(demo, "reconstruct", reconstruct_once)
        patch.setattr(demo, "time_in_turns", lambda models, images: dict.fromkeys(models, 0.1))
        result = CliRunner().invoke(app, ["demo", "-o", str(folder)])
        assert result.exit_code == 0, result.output
        yield folder


def over(earlier: Path) -> Callable[[Path], None]:
    def prepare(out: Path) -> None:
        shutil.copytree(earlier, out)
        (out / "mine.txt").write_text("mine")
        for picture in out.glob("*/depth.png"):  # else old and new were the same
            picture.write_bytes(b"earlier")

    return prepare


def test_a_demo_over_an_earlier_one_in_its_exchange(every: bool, demos: Path, tmp_path: Path) -> None:
    out = tmp_path / "place" / "out"
    numbers = range(0, 8, 1 if every else 3)  # one scene and report.json; then the old files are removed, one by one
    seen = check(["demo", "-o", out], numbers, over(demos), out, "report.json", begin="exchange.json")
    assert {"old", "new"} <= seen
    assert "incomplete" in seen or not every


@pytest.mark.exhaustive
def test_a_demo_that_is_killed_while_its_models_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One kill, when the second model is about to be saved in the staging folder."""
    monkeypatch.setattr(recipe, "available_recipes", lambda: [demo.PICTURED])
    monkeypatch.setattr(demo, "TIMED_RUNS", 1)
    out = tmp_path / "place" / "out"
    out.mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(demo, "reconstruct", lambda *_: {})  # the first model's: nothing is computed in a fork
        assert killed(0, ["demo", "-o", out], out.parent, begin=f".{demo.PICTURED}.partial-")
    assert hidden(out) != []
    assert contents(out) == {}
    result = CliRunner().invoke(app, ["demo", "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert hidden(out) == []
    assert (out / "report.json").is_file()
