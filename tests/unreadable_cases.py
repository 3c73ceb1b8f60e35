"""What a user without permission gets, as one JSON object on stdout: run by `tests/test_unreadable.py`.

Arguments: a folder to work in; a checkpoint; a sharded one; an image.
"""

import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from vggt_int8 import VGGT, VGGTConfig, VGGTInt8, load_images, load_recipe
from vggt_int8.cli import app
from vggt_int8.kernels.cpu import compiled

outcomes: dict[str, str] = {}


@contextmanager
def mode(path: Path | str, bits: int) -> Iterator[None]:
    before = os.stat(path).st_mode & 0o7777
    os.chmod(path, bits)
    try:
        yield
    finally:
        os.chmod(path, before)


def note(name: str, action: Callable[[], Any]) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            said = str(action())
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
    outcomes[name] = " | ".join([said, *(str(warning.message) for warning in told)])


def command(*arguments: object) -> str:
    result = CliRunner().invoke(app, [*map(str, arguments)])
    return f"{result.exit_code} {result.stderr.strip().splitlines()[-1:]}"


def listed(*folders: str) -> list[str]:
    return sorted(str(path) for folder in folders for path in Path(folder).rglob("*"))


def checkpoints() -> None:
    for network in (VGGTInt8, VGGT, VGGTConfig):
        for bits in (0o000, 0o111, 0o444):
            with mode("checkpoint", bits):
                note(f"{network.__name__} {bits:o}", lambda network=network: network.from_pretrained("./checkpoint"))
    with mode("checkpoint", 0):
        note("file in 0", lambda: VGGTInt8.from_pretrained("./checkpoint/model.safetensors"))
    for network in (VGGTInt8, VGGT):
        for file in ("config.json", "model.safetensors"):
            with mode(f"checkpoint/{file}", 0):
                note(
                    f"{network.__name__} {file}", lambda network=network: network.from_pretrained("./checkpoint").dtype
                )
    for file in ("model.safetensors.index.json", min(path.name for path in Path("shards").glob("*-00002-*"))):
        with mode(f"shards/{file}", 0):
            note(f"shards {file}", lambda: VGGTInt8.from_pretrained("./shards"))


def inputs() -> None:
    with mode("photos/a.png", 0):
        note("image", lambda: load_images(["photos/a.png"]))
        note("run image", lambda: command("run", "nothing/there", "photos/a.png", "-o", "out"))
    for bits in (0o000, 0o111, 0o444):
        with mode("photos", bits):
            note(f"photos {bits:o}", lambda: load_images("photos"))
    Path("mine.toml").write_text('name = "mine"\n')
    with mode("mine.toml", 0):
        note("recipe", lambda: load_recipe("mine.toml"))


def outputs(model: VGGTInt8) -> None:
    Path("closed").mkdir()
    with mode("closed", 0o555), mode("checkpoint", 0o555):
        note("save", lambda: model.save_pretrained("closed"))
        note("save below", lambda: model.save_pretrained("closed/new"))
        note("save over", lambda: model.save_pretrained("checkpoint"))
        note("run out", lambda: command("run", "checkpoint", "photos/a.png", "-o", "closed/out"))
    note("results", lambda: command("run", "checkpoint", "photos/a.png", "-o", "out", "--device", "cpu"))
    before = listed("out", "checkpoint", "closed")
    again = ("run", "checkpoint", "photos/a.png", "-o", "out", "--overwrite", "--device", "cpu")
    for path in ("out/report.json", "out/depth", "out"):
        for bits in (0o000, 0o555) if path == "out" else (0o000,):
            with mode(path, bits):
                note(f"over {path} {bits:o}", lambda: command(*again))
    outcomes["left behind"] = str(sorted(set(listed("out", "checkpoint", "closed")) ^ set(before)))


def kernels() -> None:
    """Nothing raises, whether they can be compiled here or not; a closed folder is named, or done without."""
    Path("cache").mkdir()
    os.environ["XDG_CACHE_HOME"] = str(Path("cache").absolute())
    with mode("cache", 0):
        note("kernels", lambda: compiled.unavailable())


if __name__ == "__main__":
    folder, checkpoint, shards, image = map(Path, sys.argv[1:])
    os.chdir(folder)
    shutil.copytree(checkpoint, "checkpoint")
    shutil.copytree(shards, "shards")
    Path("photos").mkdir()
    shutil.copy(image, "photos/a.png")
    checkpoints()
    inputs()
    outputs(VGGTInt8.from_pretrained("./checkpoint"))
    kernels()
    print(json.dumps(outcomes))
