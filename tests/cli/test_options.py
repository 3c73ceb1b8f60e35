"""Options that commands share: values checked early with what may have been meant, completion, -q, -v and --json."""

import json
import logging
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

from vggt_int8.bench.variants import BASELINES
from vggt_int8.cli import app, console, loading, options
from vggt_int8.cli.guard import guarded
from vggt_int8.cli.recipes import FACTS
from vggt_int8.export.selection import PointSource
from vggt_int8.images import Mode
from vggt_int8.quant.backends import BACKENDS
from vggt_int8.recipe import available_recipes
from vggt_int8.sensitivity.units import BY, UPGRADES
from vggt_int8.viewer.settings import COLORS


def test_the_names_written_out_are_those_of_the_package() -> None:
    assert ("auto", *BACKENDS) == options.BACKENDS
    assert set(options.DTYPES) == set(loading.DTYPES)
    assert set(options.MODES) == set(get_args(Mode))
    assert set(options.POINTS) == set(get_args(PointSource))
    assert set(options.BASELINES) == set(BASELINES)
    assert options.UNITS == BY
    assert options.VIEW_COLORS == COLORS
    assert options.UPGRADES == UPGRADES


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--backend", "Nativ", ["did you mean 'native'", ", ".join(options.BACKENDS)]),
        ("--backend", "bnb", ["did you mean 'bitsandbytes'"]),
        ("--dtype", "float16", ["did you mean 'fp16'", "fp32, fp16, bf16"]),
        ("--mode", "croped", ["did you mean 'crop'", "crop, pad"]),
        ("--device", "gpu", ["did you mean 'cuda'", "cuda:<number>"]),
        ("--device", "cpu:0", ["cpu, cuda"]),
        ("--recipe", "INT8-Dynamic", ["did you mean 'int8_dynamic'", *available_recipes(), ".toml"]),
        ("--recipe", "", [*available_recipes()]),
        ("-r", "absent.toml", ["absent.toml"]),
        ("--format", "colmap,gltf", ["there is no format 'gltf'", "depth, ply, glb"]),
        ("--points", "head", ["depth, world_points"]),
        ("--confidence-percentile", "120", ["120 is out of range", "from 0 to 100"]),
        ("--confidence-percentile", "nan", ["nan is out of range"]),
        ("--max-points", "0", ["0 is out of range", "at least 1"]),
        ("--frames-chunk", "-1", ["-1 is out of range", "at least 1"]),
        ("--global-attention", "key", ["global_attention has 'key'", "'keyframes'"]),
        ("--global-attention", "frames:0,exact", ["'frames:0' names no number of layers"]),
        ("--keyframes", "0", ["0 is out of range", "at least 1"]),
        ("--max-megapixels", "0", ["0 is out of range", "from 0.001 to 1e+06"]),
    ],
)
def test_values_are_checked_before_anything_is_read(cli, option: str, value: str, words: list[str]) -> None:
    error = cli("run", "no-model", "no-image", "-o", "no-folder", option, value, code=2)
    assert len(error.splitlines()) == 1
    assert error.startswith("Error: ")
    assert all(word in error for word in words)
    assert option == "-r" or option in error


@pytest.mark.parametrize(
    ("variants", "words"),
    [("fp32,bf61", ["'bf61'", "did you mean 'bf16'"]), ("int8_dynamic:natve", ["did you mean 'native'"])],
)
def test_variants_are_checked_early(cli, variants: str, words: list[str]) -> None:
    error = cli("bench", "--variants", variants, code=2)
    assert all(word in error for word in words)


def test_a_recipe_file_is_read_early(cli, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text("wieghts = 'int8'\n")
    error = cli("quantize", "no-model", "-o", tmp_path / "out", "--recipe", recipe, code=2)
    assert "line 1" in error
    assert "wieghts" in error


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("vggt-int8 run m -r int8_w", ["int8_weight_only"]),
        ("vggt-int8 run --backend torch", ["torchao"]),
        ("vggt-int8 compare --dtype b", ["bf16"]),
        ("vggt-int8 eval embedded -r int8_w", ["int8_weight_only"]),
        ("vggt-int8 run --mode ", ["crop", "pad", "balanced", "max_size"]),
        ("vggt-int8 run --device c", ["cpu", "cuda"]),
        ("vggt-int8 bench --variants fp32,llm_int8:ref", ["fp32,llm_int8:reference"]),
        ("vggt-int8 insp", ["inspect"]),
        ("vggt-int8 train me", ["measure"]),
        ("vggt-int8 train run --compile b", ["blocks"]),
        ("vggt-int8 scenes render --split h", ["held_out"]),
        ("vggt-int8 run emb", ["embedded", "embedded-omega"]),
        ("vggt-int8 demo --model embedded-", ["embedded-omega"]),
        ("vggt-int8 compare a ", []),
    ],
)
def test_the_shell_completes(typed: str, expected: list[str]) -> None:
    words = typed.split(" ")
    environment = {"_VGGT_INT8_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1)}
    result = CliRunner().invoke(app, [], env=environment, prog_name="vggt-int8")
    assert result.stdout.split() == expected


@pytest.mark.parametrize("arguments", [("-q", "recipes", "--check"), ("recipes", "--check", "--quiet")])
def test_quiet_shows_results_alone_at_either_place(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vggt_int8.cli.recipes.measure", lambda name: (0, ["native"]))  # which takes seconds
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert "int8_dynamic" in result.stdout
    assert result.stderr == ""
    assert "Trying the backends" in CliRunner().invoke(app, ("recipes", "--check")).stderr


def test_quiet_keeps_warnings_and_errors(cli, tmp_path: Path) -> None:
    assert cli("inspect", "-q", tmp_path, code=2).startswith("Error: ")
    console.settings.quiet = True
    try:
        with console.step("Reading") as progress:
            progress(1, 2)
    finally:
        console.settings.quiet = False


def test_verbose_lets_libraries_speak(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def command() -> None:
        logging.getLogger("library").info("downloading")

    guarded(command)()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(console.settings, "verbose", True)
    guarded(command)()
    assert "library: downloading" in capsys.readouterr().err


def test_quiet_and_verbose_contradict(cli) -> None:
    assert "contradict" in cli("-q", "recipes", "-v", code=2)


def test_a_document_is_strict_json_in_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    console.document("x", {"a": float("inf"), "b": [-float("inf"), float("nan"), 1.5], "c": Path("caf\udce9/:key:")})
    text = capsys.readouterr().out
    assert text.isascii()

    def refuse(name: str) -> None:
        raise AssertionError(name)

    read = json.loads(text, parse_constant=refuse)
    assert read == {
        "format_version": 1,
        "command": "x",
        "a": "Infinity",
        "b": ["-Infinity", "NaN", 1.5],
        "c": "caf\udce9/:key:",
    }
    assert float(read["a"]) == float("inf")


def test_names_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("photos/:key:[bold].jpg")
    assert capsys.readouterr().out == "photos/:key:[bold].jpg\n"


def test_recipes_as_json(cli) -> None:
    found = json.loads(cli("recipes", "--json"))
    assert [recipe["name"] for recipe in found["recipes"]] == available_recipes()
    dynamic = next(recipe for recipe in found["recipes"] if recipe["name"] == "int8_dynamic")
    assert dynamic["vggt_1b_bytes"] == 1_277_529_560
    assert dynamic["backends"] == list(FACTS["int8_dynamic"][1])
