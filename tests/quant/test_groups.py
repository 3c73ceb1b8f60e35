"""Recipes by groups of layers decide what the files of rules did, layer by layer, and are stored as such rules."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vggt_int8 import Recipe, RecipeError, VGGTConfig, VGGTInt8, load_recipe, quantize
from vggt_int8.embedded import EMBEDDED_FOLDER
from vggt_int8.patterns import fits
from vggt_int8.quant import LayerPlan, make_plan
from vggt_int8.quant.layer_types import WITH_WEIGHTS
from vggt_int8.quant.plan import recipe_for
from vggt_int8.recipe import Rule, Scheme, find_family

FORMAT_1 = Path(__file__).parent.parent / "data" / "recipes_format_1"
VGGT_MAP = find_family("vggt", ())
POSE = {"pose embedding": "pose embedding and pose output", "pose output": "pose embedding and pose output"}


def on_meta(**sizes: object) -> VGGTInt8:
    with torch.device("meta"):
        return VGGTInt8(VGGTConfig(**sizes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def vggt_1b() -> VGGTInt8:
    return on_meta()


@pytest.fixture(scope="module")
def embedded() -> VGGTInt8:
    config = json.loads((EMBEDDED_FOLDER / "config.json").read_text())
    with torch.device("meta"):
        return VGGTInt8(VGGTConfig.from_dict(config))


@pytest.fixture(scope="module")
def networks(vggt_1b: VGGTInt8, embedded: VGGTInt8) -> list[VGGTInt8]:
    return [vggt_1b, embedded, on_meta(enable_track=False), on_meta(enable_camera=False, enable_depth=False)]


def as_before(plan: dict[str, LayerPlan]) -> dict[str, LayerPlan]:
    """With the reasons that the rules had for a group that are two now, and without rotation, which came later."""

    def unrotated(layer: LayerPlan) -> Any:
        return replace(layer.scheme, rotation=0) if isinstance(layer.scheme, Scheme) else layer.scheme

    return {
        name: replace(layer, reason=POSE.get(layer.reason, layer.reason), scheme=unrotated(layer))
        for name, layer in plan.items()
    }


@pytest.mark.parametrize("name", sorted(path.stem for path in FORMAT_1.glob("*.toml")))
def test_groups_decide_what_the_rules_did(networks: list[VGGTInt8], name: str) -> None:
    rules, groups = load_recipe(FORMAT_1 / f"{name}.toml"), load_recipe(name)
    for model in networks:
        before = make_plan(model, rules)
        assert len(before) > 100
        assert as_before(make_plan(model, groups)) == before
        stored = recipe_for(model, groups).to_dict()
        assert stored["format"] == 1
        assert as_before(make_plan(model, Recipe.from_dict(json.loads(json.dumps(stored))))) == before


def test_every_layer_belongs_to_exactly_one_group(vggt_1b: VGGTInt8, embedded: VGGTInt8) -> None:
    for model in (vggt_1b, embedded):
        layers = [name for name, module in model.named_modules() if isinstance(module, WITH_WEIGHTS)]
        owners = {name: [g.name for g in VGGT_MAP.groups.values() if fits(g.match, name)] for name in layers}
        assert {name: found for name, found in owners.items() if len(found) != 1} == {}
        if model is vggt_1b:
            counts = Counter(found[0] for found in owners.values())
            assert counts == {name: group.layers for name, group in VGGT_MAP.groups.items()}


def test_exclude_by_group_keeps_all_of_it(vggt_1b: VGGTInt8) -> None:
    whole = make_plan(vggt_1b, load_recipe("int8_dynamic"))
    plan = make_plan(vggt_1b, replace(load_recipe("int8_dynamic"), exclude=["camera_head", "dense_convolutions"]))
    for name, layer in plan.items():
        if whole[name].scheme == Scheme("none"):
            assert (layer.scheme, layer.reason) == (None, "excluded"), name
        else:
            assert layer == whole[name]


def test_rules_go_before_groups(vggt_1b: VGGTInt8) -> None:
    rules = (Rule(r"aggregator\.frame_blocks\.[01]\..*", activations="none"), Rule(r"camera_head\..*", weights="keep"))
    recipe = replace(load_recipe("int8_dynamic"), rules=rules)
    whole, plan = make_plan(vggt_1b, load_recipe("int8_dynamic")), make_plan(vggt_1b, recipe)
    for name, layer in plan.items():
        if name.startswith(("aggregator.frame_blocks.0.", "aggregator.frame_blocks.1.")):
            assert layer.scheme == Scheme("none")
        elif name.startswith("camera_head."):
            assert layer.scheme is None
        else:
            assert layer == whole[name]
    stored = Recipe.from_dict(recipe_for(vggt_1b, recipe).to_dict())
    assert make_plan(vggt_1b, stored) == plan
    with pytest.raises(RecipeError, match=r"'custom', match = 'camera_haed.*decides no layer"):
        make_plan(vggt_1b, Recipe(groups={"encoder": "keep"}, rules=(Rule(r"camera_haed\..*"),)))


def test_a_wrong_map_is_found_on_the_full_size(vggt_1b: VGGTInt8, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = VGGT_MAP.groups["encoder"]
    for change, message in (
        ({"layers": 95}, rf"vggt\.toml, line {encoder.line}: .* decides 96 layers, but states 95 for the full size"),
        ({"match": r"encoder\..*"}, rf"vggt\.toml, line {encoder.line}: match = 'encoder.*: decides no layer"),
    ):
        wrong = replace(VGGT_MAP, groups=VGGT_MAP.groups | {"encoder": replace(encoder, **change)})
        monkeypatch.setattr("vggt_int8.recipe.family.families", lambda wrong=wrong: (wrong,))
        with pytest.raises(RecipeError, match=message):
            make_plan(vggt_1b, load_recipe("int8_dynamic"))


def test_group_words_on_a_module_without_a_map() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(RecipeError, match=r"include 'encoder' matches no layer .*name of a group, but no map"):
        quantize(model, Recipe(include="encoder"))
    with pytest.raises(RecipeError, match=r"no map says which a Sequential has .*'0'.* maps for vggt.*\. Write"):
        quantize(model, Recipe(groups={"encoder": "keep"}))
    assert type(model[0]) is nn.Linear


@pytest.mark.slow
def test_both_ways_give_the_same_checkpoint(tmp_path: Path, tiny_checkpoint: Path) -> None:
    name = "int8_dynamic"
    by_groups = VGGTInt8.from_pretrained(tiny_checkpoint, recipe=name)
    by_rules = VGGTInt8.from_pretrained(tiny_checkpoint, recipe=FORMAT_1 / f"{name}.toml")
    for model, folder in ((by_groups, "groups"), (by_rules, "rules")):
        model.save_pretrained(tmp_path / folder)
    groups, rules = by_groups.state_dict(), by_rules.state_dict()
    assert groups.keys() == rules.keys()
    assert all(torch.equal(groups[key], rules[key]) for key in rules)
    stored = json.loads((tmp_path / "groups" / "config.json").read_text())["quantization_config"]["recipe"]
    assert (stored["format"], stored["name"], "groups" in stored) == (1, name, False)
    again = VGGTInt8.from_pretrained(tmp_path / "groups")
    assert again.config.quantization_config.recipe == stored
    loaded = again.state_dict()
    assert all(torch.equal(loaded[key], rules[key]) for key in rules)
    in_place = quantize(VGGTInt8.from_pretrained(tiny_checkpoint), name)
    assert in_place.config.quantization_config.recipe == stored


def test_a_stored_recipe_needs_no_map(tmp_path: Path, bare_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = VGGTInt8.from_pretrained(bare_checkpoint, recipe="int8_dynamic")
    model.save_pretrained(tmp_path)
    monkeypatch.setattr("vggt_int8.recipe.family.families", lambda: ())
    monkeypatch.setattr("vggt_int8.quant.plan.families", lambda: ())
    again = VGGTInt8.from_pretrained(tmp_path)
    assert as_before(again.quantization_plan) == as_before(model.quantization_plan)
