"""`vggt-int8 sensitivity`: from images to a ranking, a chart and a recipe that loads; resumed, refused, in words."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import torch

from vggt_int8 import VGGTInt8, compare_model_outputs, load_images, load_recipe
from vggt_int8.sensitivity import measure
from vggt_int8.sensitivity.units import stored_size

FILES = {"measured.jsonl", "sensitivity.json", "ranking.svg"}
CPU = ("-r", "int8_dynamic", "--device", "cpu", "--backend", "reference")  # which folds nothing into what it keeps


@pytest.fixture(scope="module")
def small(bare_checkpoint: Path) -> Path:
    return bare_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sensitivity")


@pytest.fixture
def ranked(cli, small: Path, photos: list[Path], folder: Path) -> dict[str, Any]:
    """The small model by groups on two photographs, measured once for all tests."""
    return json.loads(cli("sensitivity", small, *photos, "-o", folder / "ranked", *CPU, "--json"))


def test_groups_are_ranked_by_what_changes(ranked: dict[str, Any], folder: Path) -> None:
    assert ranked["command"] == "sensitivity"
    assert {path.name for path in (folder / "ranked").iterdir()} >= FILES
    names = [unit["name"] for unit in ranked["units"]]
    assert sorted(names) == ["camera_head", "depth_convolutions", "encoder", "frame_blocks", "global_blocks"]
    errors = [unit["options"][0]["error"] for unit in ranked["units"]]
    assert errors == sorted(errors, reverse=True)
    by_name = {unit["name"]: unit["options"][0]["errors"] for unit in ranked["units"]}
    assert by_name["encoder"].keys() == {"rotation", "direction", "focal", "depth"}
    assert by_name["depth_convolutions"]["depth"] > 0 == by_name["depth_convolutions"]["rotation"]
    assert by_name["camera_head"]["rotation"] > 0 == by_name["camera_head"]["depth"]
    picture = ET.parse(folder / "ranked" / "ranking.svg").getroot()
    words = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert set(names) <= set(words)


def test_all_at_once_is_the_quantized_model(ranked: dict[str, Any], small: Path, photos: list[Path]) -> None:
    models = [
        VGGTInt8.from_pretrained(small),
        VGGTInt8.from_pretrained(small, recipe="int8_dynamic", backend="reference"),
    ]
    for model in models:
        model.eval().set_runtime("off")
    geometry = compare_model_outputs(*models, load_images(photos, model=models[0]))["geometry"]
    found = ranked["together"]["measured"]
    assert found["depth"] == pytest.approx(geometry["depth_percent"]["median"], rel=1e-3)


def test_a_second_call_measures_nothing(
    cli, ranked: dict, small: Path, photos: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "outputs_of", lambda *_: pytest.fail("it was measured again"))
    again = json.loads(cli("sensitivity", small, *photos, "-o", folder / "ranked", *CPU, "--json"))
    assert again["units"] == ranked["units"]


def test_what_was_cut_off_goes_on(
    cli, ranked: dict, small: Path, photos: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real, calls = folder / "cut", measure.outputs_of, 0

    def cut_off(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(measure, "outputs_of", cut_off)
    cli("sensitivity", small, *photos, "-o", out, *CPU, code=130)
    kept = (out / "measured.jsonl").read_text()
    assert kept.count("\n") == 1 + 3, "what was measured, and three changes after the reference"
    found = json.loads(cli("sensitivity", small, *photos, "-o", out, *CPU, "--json"))
    changes = sum(option["choice"] != "keep" for unit in ranked["units"] for option in unit["options"]) + 2
    assert calls == 5 + 1 + changes - 3
    assert (out / "measured.jsonl").read_text().startswith(kept)
    assert found["units"] == ranked["units"]


@pytest.mark.slow
@pytest.mark.parametrize("budget", ["--error", "--size-mb"])
def test_a_budget_becomes_a_recipe(
    cli, ranked: dict, small: Path, photos: list[Path], folder: Path, budget: str
) -> None:
    whole = max(ranked["together"]["predicted"].values())
    sizes = [stored_size(VGGTInt8.from_pretrained(small, recipe=name)) for name in ("int8_dynamic", "fp16")]
    wish = 0.7 * whole if budget == "--error" else sum(sizes) / 2e6
    found = json.loads(cli("sensitivity", small, *photos, "-o", folder / "ranked", *CPU, budget, wish, "--json"))
    path = folder / "ranked" / "recipe.toml"
    loaded = VGGTInt8.from_pretrained(small, recipe=path, backend="reference")
    loaded.save_pretrained(folder / "loaded")
    on_disk = (folder / "loaded" / "model.safetensors").stat().st_size
    assert found["predicted"]["bytes"] == found["measured"]["bytes"]
    header = int.from_bytes((folder / "loaded" / "model.safetensors").read_bytes()[:8], "little") + 8
    assert on_disk - header == found["measured"]["bytes"]
    assert set(found["chosen"].values()) > {"base"}
    limited = found["predicted"]["error"] if budget == "--error" else found["predicted"]["bytes"] / 1e6
    assert limited <= wish
    assert found["predicted"]["error"] < whole
    text = path.read_text()
    assert f"error {found['predicted']['error']:.3g}" in text
    assert f"error {found['measured']['error']:.3g}" in text
    assert load_recipe(path).groups.items() >= {(u, c) for u, c in found["chosen"].items() if c != "base"}


def test_a_budget_beyond_reach_leaves_the_ranking(
    cli, ranked: dict, small: Path, photos: list[Path], folder: Path
) -> None:
    common = ("sensitivity", small, *photos, "-o", folder / "ranked", *CPU)
    assert "--size-mb 0.001 cannot be met: the least is" in cli(*common, "--size-mb", 0.001, code=2)
    assert "1000 MB leaves nothing to quantize: recipe fp16 is what fits" in cli(*common, "--size-mb", 1000, code=2)
    assert json.loads((folder / "ranked" / "sensitivity.json").read_text())["units"] == ranked["units"]


def test_people_read_a_table(cli, ranked: dict, small: Path, photos: list[Path], folder: Path) -> None:
    text = cli("sensitivity", small, *photos, "-o", folder / "ranked", *CPU)
    lines = text.splitlines()
    assert "rotation, °" in lines[0]
    assert lines[1].startswith(ranked["units"][0]["name"])
    assert "All of them at once: predicted" in text


def test_another_measurement_is_refused_or_begun_anew(
    cli, ranked: dict, small: Path, photos: list[Path], folder: Path
) -> None:
    common = ("sensitivity", small, "-o", folder / "ranked", *CPU)
    said = cli(*common, *photos, "-r", "int8_rotated", code=2)
    assert "recipe.name was 'int8_dynamic' and is 'int8_rotated'" in said
    assert "--overwrite" in said
    said = cli(*common, *reversed(photos), code=2)
    assert "images." in said
    assert "by was 'group' and is 'block'" in cli(*common, *photos, "--by", "block", code=2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere",), "no such image file or folder: nowhere"),
        (("{photo}",), "has one image: poses are compared between pairs of views"),
        (("synthetic", "{photo}"), "synthetic scenes and images of yours are two measurements"),
        (("{photo}", "{photo}", "--views", "3"), "--views makes synthetic scenes"),
        (("synthetic", "--error", "0.1", "--size-mb", "3"), "are two budgets: give one of them"),
        (("synthetic", "--error", "0"), "--error: 0 is out of range"),
        (("synthetic", "--views", "1"), "--views: 1 is out of range, it must be at least 2"),
        (("synthetic", "--by", "blocks"), "did you mean 'block'"),
        (("synthetic", "--upgrade", "fp16"), "choose one of weight_only, weight_only_rotated, keep"),
        (("synthetic", "--size", "30", "28"), "multiples of the model's patch size 14"),
    ],
)
def test_mistakes_are_named_before_a_model_is_loaded(
    cli, tiny: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Any, words: str
) -> None:
    monkeypatch.setattr("vggt_int8.cli.sensitivity.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    given = [argument.format(photo=photos[0]) for argument in arguments]
    assert words in cli("sensitivity", tiny, *given, "-o", tmp_path / "out", code=2)
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_model_is_refused(cli, tiny_int8: Path, photos: list[Path], tmp_path: Path) -> None:
    said = cli("sensitivity", tiny_int8, *photos, "-o", tmp_path / "out", code=2)
    assert f"{tiny_int8} is quantized already: give the floating-point model" in said


def test_weights_with_nan_are_named(cli, make_tiny, photos: list[Path], tmp_path: Path) -> None:
    model = make_tiny()
    with torch.no_grad():
        model.aggregator.frame_blocks[0].mlp.fc1.weight[0, 0] = torch.nan
    model.save_pretrained(tmp_path / "bad")
    said = cli("sensitivity", tmp_path / "bad", *photos, "-o", tmp_path / "out", *CPU, code=2)
    assert "NaN or inf in aggregator.frame_blocks.0.mlp.fc1.weight" in said


def test_other_peoples_folders_are_left_alone(cli, tiny: Path, photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert "'thesis.txt' is no file of this command" in cli("sensitivity", tiny, *photos, "-o", tmp_path, code=2)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "recipe.toml").write_text("mine")
    said = cli("sensitivity", tiny, *photos, "-o", tmp_path / "other", code=2)
    assert "no measured.jsonl, so it is not ours" in said


def test_attention_is_ranked_by_layer_and_becomes_a_recipe(cli, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "looks"
    common = (
        "sensitivity",
        small,
        "synthetic",
        "-o",
        out,
        "--views",
        4,
        "--scenes",
        1,
        "--device",
        "cpu",
        "--attention",
    )
    few = cli(*common, "--keyframes", 4, code=2)
    assert "has 4 images, so 4 key frames are all of them" in few
    found = json.loads(cli(*common, "--keyframes", 2, "--error", 99, "--json"))
    changes = {(change["unit"], change["choice"]): change["errors"] for change in found["changes"]}
    assert len(changes) == 2 + 2 + 1
    assert all(errors["depth"] > 0 for errors in changes.values())
    recipe = load_recipe(out / "recipe.toml")
    assert list(recipe.global_attention) == found["global_attention"]
    assert "frames" in recipe.global_attention
    assert found["measured"]["error"] > 0
    assert "cannot be met with 2 key frames" in cli(*common, "--keyframes", 2, "--error", 1e-6, code=2)
    kept = json.loads((out / "sensitivity.json").read_text(encoding="utf-8"))
    assert kept["changes"] == found["changes"]
    assert "budget" not in kept, "the ranking that cannot meet it, not the choice of another call"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--keyframes", 4), "--keyframes is measured with --attention"),
        (("--attention", "--size-mb", 3), "--size-mb is for layers in INT8"),
        (("--attention", "--upgrade", "keep"), "--upgrade is for layers in INT8"),
        (("--attention", "--by", "block"), "--by is for layers in INT8"),
        (("--attention", "--backend", "reference"), "--backend is for layers in INT8"),
    ],
)
def test_options_of_the_other_kind_are_refused(cli, tmp_path: Path, options: tuple[object, ...], words: str) -> None:
    assert words in cli("sensitivity", "no-model", "synthetic", "-o", tmp_path / "out", *options, code=2)
