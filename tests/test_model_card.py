"""The model card: metadata that the Hub reads, and text that follows the checkpoint's own facts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from huggingface_hub import ModelCard

from vggt_int8.embedded import EMBEDDED_MODELS
from vggt_int8.evidence import SCORES, accuracy
from vggt_int8.model_card import model_card
from vggt_int8.recipe import Recipe, expand, find_family, load_recipe
from vggt_int8.scorecard.summary import RELATIVE
from vggt_int8.training.views import Rendered

RECIPE = {
    "name": "int8_dynamic",
    "description": "W8A8: dynamic activations.",
    "weights": "int8",
    "activations": "dynamic",
    "keep": "fp16",
    "rules": [{"match": r"camera_head\..*", "reason": "few rows"}],
}
CONFIG: dict[str, Any] = {
    "img_size": 518,
    "quantization_config": {"quant_method": "vggt_int8", "format_version": 1, "recipe": RECIPE},
}
SIZES = {"float16": 2_000_000, "int8": 10_500_000}


def test_quantized_card_names_recipe_sizes_and_licence() -> None:
    text = model_card(CONFIG, SIZES, name="me/tiny.w8a8", base_model="facebook/VGGT-1B")
    card = ModelCard(text)
    data = card.data.to_dict()
    assert data["license"] == "other"
    assert data["library_name"] == "vggt-int8"
    assert data["base_model"] == "facebook/VGGT-1B"
    assert data["base_model_relation"] == "quantized"
    assert {"int8", "vggt"} <= set(data["tags"])
    assert 'VGGTInt8.from_pretrained("me/tiny.w8a8"' in card.content
    assert "| int8 | 10.5 |" in card.content
    assert "| global attention | `exact` |" in card.content
    assert "| **total** | **12.5** |" in card.content
    assert r"| `camera_head\..*` | int8; inputs int8 by dynamic scales | few rows |" in card.content
    assert "recipe `int8_dynamic` (W8A8: dynamic activations)." in card.content
    assert "non-commercial" in card.content


def test_a_card_of_vggt_omega_loads_its_own_class() -> None:
    text = model_card({**CONFIG, "model_type": "vggt_omega"}, SIZES, name="me/omega.w8a8")
    assert 'model = VGGTOmegaInt8.from_pretrained("me/omega.w8a8"' in text
    assert "VGGTInt8" not in text  # which refuses this config.json
    assert "tracks" not in text
    assert "pred.depth, pred.extrinsic, pred.intrinsic" in text  # it has no points of its own


def test_a_card_promises_what_the_model_has() -> None:
    text = model_card({**CONFIG, "enable_track": False, "enable_point": False}, SIZES)
    assert "cameras, depth and 3D points in one pass" in text
    assert "pred.depth, pred.extrinsic, pred.intrinsic" in text
    assert "pred.depth, pred.world_points, pred.extrinsic" in model_card(CONFIG, SIZES)


@pytest.mark.parametrize(
    ("name", "more", "command"),
    [
        ("int8_dynamic", {}, "`vggt-int8 quantize facebook/VGGT-1B -o FOLDER --recipe int8_dynamic`."),
        (
            "int8_static",
            {"calibration": {"images": 8}},
            "--recipe int8_static --calibration IMAGES`, on images of your",
        ),
        ("mine", {}, "--recipe RECIPE.toml`. The recipe is written out in `config.json`."),
        ("int8_dynamic", {"training": {"steps": 1}}, "`vggt-int8 qat facebook/VGGT-1B IMAGES -o FOLDER --recipe int8_"),
        (
            "int8_dynamic",
            {"training": {"data": Rendered().facts()}},
            "VGGT-1B synthetic -o FOLDER --recipe int8_dynamic",
        ),
    ],
)
def test_a_card_says_how_its_model_is_made(name: str, more: dict[str, Any], command: str) -> None:
    quantization = {**CONFIG["quantization_config"], **more, "recipe": {**RECIPE, "name": name}}
    assert command in model_card({"quantization_config": quantization}, SIZES, base_model="facebook/VGGT-1B")


def test_a_card_says_which_options_changed_a_recipe() -> None:
    """Without them the command makes other weights, and the recipe's description speaks of others."""
    recipe = load_recipe("int8_static_rotated")
    told = {"images": 32, "observer": "minmax", "seed": 3, "ranges": {"a": [1.0]}}

    def card(recipe: Recipe, calibration: dict[str, Any]) -> str:
        quantization = {"recipe": recipe.to_dict(), "calibration": calibration}
        return model_card({"quantization_config": quantization}, SIZES, base_model="me/vggt")

    as_shipped = card(recipe, told | {"seed": 0})
    assert "--recipe int8_static_rotated --calibration IMAGES`, on" in as_shipped
    assert "GPTQ" in as_shipped
    changed = card(replace(recipe, rounding="nearest", observer="minmax", calibration_samples=32), told)
    assert "--calibration IMAGES --samples 32 --observer minmax --rounding nearest --seed 3`, on" in changed
    assert "GPTQ" not in changed
    assert "| calibration | `32 images, observer minmax, seed 3` |" in changed


def test_a_card_fetches_the_one_file_that_was_quantized() -> None:
    text = model_card(CONFIG, SIZES, base_model="facebook/VGGT-Omega", base_file="omega.pt")
    assert "`hf download facebook/VGGT-Omega omega.pt --local-dir .`, then `vggt-int8 quantize omega.pt -o F" in text
    assert "`vggt-int8 quantize mine.pt -o FOLDER" in model_card(CONFIG, SIZES, base_file="mine.pt")


def test_unknown_source_is_not_called_vggt_1b() -> None:
    text = model_card(CONFIG, SIZES)
    assert "facebook/VGGT-1B" not in text
    assert "base_model" not in ModelCard(text).data.to_dict()
    assert "Which licence that is, nothing says" in text


def test_plain_checkpoint_claims_no_quantization() -> None:
    text = model_card({"img_size": 518}, {"float32": 4})
    assert "without quantization" in text
    assert "int8" not in ModelCard(text).data.tags
    assert "## Recipe" not in text


@pytest.mark.parametrize("metrics", [{"mae": 0.25}, {"mae": 0.25, "sqnr_db": 41.0}])
def test_differences_are_tabled(metrics: dict[str, float]) -> None:
    text = model_card(CONFIG, SIZES, differences={"mae": 9.0, "depth": metrics})
    row = next(line for line in text.splitlines() if line.startswith("| depth"))
    assert [float(cell) for cell in row.split("|")[2:-1]] == list(metrics.values())


@pytest.mark.parametrize("base", EMBEDDED_MODELS)
def test_an_embedded_model_is_named_with_its_own_licence(base: str) -> None:
    text = model_card(CONFIG, SIZES, name="me/small.w8a8", base_model=base)
    data = ModelCard(text).data.to_dict()
    assert data["license"] == "apache-2.0"
    assert "base_model" not in data
    assert "the small model inside the package vggt-int8" in text
    assert "huggingface.co/embedded" not in text


def test_a_card_says_of_each_layer_how_it_is_stored_and_multiplied() -> None:
    family = find_family("vggt", ())
    assert family is not None
    recipe = expand(load_recipe("int8_rotated"), family)
    quantization = {**CONFIG["quantization_config"], "recipe": recipe.to_dict()}
    card = model_card({**CONFIG, "quantization_config": quantization}, SIZES)
    rows = [line for line in card.splitlines() if line.startswith("| `")]
    told = {why: how for _, how, why in (row.strip("| ").rsplit(" | ", 2) for row in rows)}
    assert told["patch embedding"] == "fp16, as it was"
    assert told["image encoder (DINOv2)"] == "int8; inputs int8 by dynamic scales, rotated"
    assert told["one token a frame, and the most fragile output"] == "int8; inputs floating point, rotated"
    assert told["dense head of depth"] == "int8; inputs floating point"
    assert len(told) == len(recipe.rules)


def test_differences_have_their_units() -> None:
    """Per cent for errors alone, as `eval` computes them; what is in per cent itself differs by points."""
    assert {name for name, (_, _, more_is_better) in SCORES.items() if not more_is_better} == SCORES.keys() & set(
        RELATIVE
    )
    change = {"value": -1.5, "low": -2.0, "high": 0.25}
    names = ("auc_5", "delta_125", "f_score", "scan_f_5", "abs_rel")
    rows = [{"label": label, "scores": dict.fromkeys(names, 50.0)} for label in ("first", "int8")]
    rows[1]["differences"] = dict.fromkeys(names, change)
    data = {"kind": "colmap", "scenes": {"kitchen": "", "garden": ""}}
    machine = {"machine": {"cpu": "Xeon"}, "versions": {}, "command_line": "", "created": "2026-01-01T00:00"}
    document = {"rows": rows, "scenes": 2, "data": data, **machine}
    text = accuracy(document, rows[1])
    assert text.count(" | -1.50 [-2.00, +0.25] |") == 4
    assert "| depth AbsRel | 50 | 50 | – | -1.50 % [-2.00, +0.25] |" in text
    assert "2 scenes of the kind colmap (kitchen, garden)" in text
