"""Help, version, recipes, completion and mistakes in options answer at once: nothing heavy is imported for them."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
HEAVY = ("torch", "transformers", "numpy", "PIL", "safetensors", "huggingface_hub")
CHEAP: list[tuple[list[str], int]] = [
    (["--help"], 0),
    (["--version"], 0),
    (["run", "--help"], 0),
    (["bench", "--help"], 0),
    (["tune", "--help"], 0),
    (["doctor", "--help"], 0),
    (["estimate", "--size", "3"], 2),
    (["eval", "--help"], 0),
    (["eval", "embedded", "-o", "out", "-r", "int8"], 2),
    (["sensitivity", "--help"], 0),
    (["sensitivity", "embedded", "synthetic", "-o", "out", "--by", "blocks"], 2),
    (["scenes", "render", "--help"], 0),
    (["train", "--help"], 0),
    (["train", "run", "--help"], 0),
    (["train", "run", "--config", "no-such.toml", "--out", "run"], 2),
    (["scenes", "render", "--split", "held-out", "--to", "scene"], 2),
    (["quantise"], 2),
    (["run", "model", "--frobnicate"], 2),
    (["run", "model"], 2),
    (["run", "model", "photos", "-o", "out", "--backend", "natve"], 2),
    (["run", "model", "photos", "-o", "out", "--recipe", "int8"], 2),
    (["bench", "--variants", "fp23"], 2),
    (["bench", "--size", "3x"], 2),
    (["quantize", "model", "-o", "out", "--max-shard-size", "5XB"], 2),
    (["recipes"], 0),
    (["recipes", "--json"], 0),
]

# Images are looked for with Pillow, and without what loads a model; so are a run's options and its folder.
IMAGES: list[tuple[list[str], int]] = [
    (["run", "embedded", "no-such.jpg", "-o", "out"], 2),
    (["run", "embedded", __file__, "-o", "out"], 2),
    (["compare", "embedded", "embedded", "no-such-folder"], 2),
    (["sensitivity", "embedded", "no-such-folder", "-o", "out"], 2),
    (["train", "run", "--config", __file__, "--out", "run", "--first-step", "1"], 2),
    (["train", "run", "--config", __file__, "--out", f"{__file__}/run"], 2),
]

# Each call's exit code, and which of the modules have been imported by then: in one process that list only grows.
PROGRAM = """
import json, sys
from typer.testing import CliRunner
from vggt_int8.cli import app
seen = []
for arguments in json.loads(sys.argv[1]):
    result = CliRunner().invoke(app, arguments)
    seen.append([arguments, result.exit_code, [m for m in json.loads(sys.argv[2]) if m in sys.modules]])
print(json.dumps(seen))
"""


def imported(calls: list[tuple[list[str], int]], modules: tuple[str, ...]) -> list[list[object]]:
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([arguments for arguments, _ in calls]), json.dumps(modules)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def test_what_needs_no_model_imports_nothing_heavy() -> None:
    assert imported(CHEAP, HEAVY) == [[arguments, code, []] for arguments, code in CHEAP]


def test_images_that_are_not_there_do_not_wait_for_what_loads_a_model() -> None:
    assert imported(IMAGES, ("torch", "transformers")) == [[arguments, code, []] for arguments, code in IMAGES]
