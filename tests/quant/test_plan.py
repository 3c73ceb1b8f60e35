"""Plans: what the shipped recipes decide on VGGT-1B, and the errors of recipes that do not fit."""

import functools
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from vggt_int8 import Recipe, RecipeError, VGGTConfig, VGGTInt8, load_recipe
from vggt_int8.quant import make_plan
from vggt_int8.recipe import Rule, Scheme

FORMAT_1 = Path(__file__).parent.parent / "data" / "recipes_format_1"  # the shipped recipes as files of rules
STATIC = ["int8_static", "int8_static_rotated"]
SMOOTH = ["int8_smooth", "int8_smooth_rotated"]
INT8_RECIPES = ["int8_dynamic", "int8_rotated", *SMOOTH, *STATIC, "int8_weight_only", "llm_int8"]


@pytest.fixture(scope="module")
def vggt_1b() -> VGGTInt8:
    with torch.device("meta"):
        return VGGTInt8(VGGTConfig())


@pytest.mark.parametrize("name", INT8_RECIPES)
def test_vggt_1b_layer_by_layer(vggt_1b: VGGTInt8, name: str) -> None:
    plan = make_plan(vggt_1b, load_recipe(name))
    int8 = {layer: entry.scheme for layer, entry in plan.items() if entry.scheme is not None}
    kinds = Counter((layer.split(".")[0], type(vggt_1b.get_submodule(layer)).__name__) for layer in int8)
    # 4 projections, 1 strided and 2 transposed resizes, 4 x 3x3, 18 in the fusion blocks, 1 + 1 before the output
    # (kept), of which the track head's features have the first alone.
    convolutions = {"depth_head": 29, "point_head": 29, "track_head": 28}
    assert kinds == {
        ("aggregator", "Linear"): 288,
        ("camera_head", "Linear"): 18,
        ("track_head", "Linear"): 52,
        **{(head, "Conv2d"): number for head, number in convolutions.items()},
        **{(head, "ConvTranspose2d"): 2 for head in convolutions},
    }
    camera_head = Scheme("none", rotation=256 if "rotated" in name or name == "int8_weight_only" else 0)
    for layer, scheme in int8.items():
        want = load_recipe(name).scheme
        if not isinstance(vggt_1b.get_submodule(layer), nn.Linear):
            want = Scheme("none")
        elif layer.startswith("camera_head."):
            want = camera_head
        elif name in STATIC:  # five special tokens of a frame are apart; the track head cannot be calibrated
            apart = layer.startswith("aggregator.")
            if name == "int8_static" and layer.startswith("aggregator.global_blocks") and layer.endswith("fc2"):
                apart = False
            want = replace(want, **({"special_tokens": 5} if apart else {"activations": "dynamic"}))
        assert scheme == want, layer
    kept = [layer for layer in plan if layer not in int8]
    assert all(plan[layer].reason for layer in kept)
    assert {layer for layer in kept if "out_proj" not in layer} == {
        "aggregator.patch_embed.patch_embed.proj",
        "camera_head.embed_pose",
        "camera_head.pose_branch.fc2",
        "depth_head.scratch.output_conv2.2",
        "point_head.scratch.output_conv2.2",
        "track_head.tracker.conf_predictor.0",
        "track_head.tracker.updateformer.flow_head",
        "track_head.tracker.vis_predictor.0",
    }
    assert sum("out_proj" in layer for layer in kept) == 24


def test_a_whole_int8_checkpoint_takes_1_3_gb(vggt_1b: VGGTInt8) -> None:
    plan = make_plan(vggt_1b, load_recipe("int8_dynamic"))
    size = 0
    for name, module in vggt_1b.named_modules():
        int8 = name in plan and plan[name].scheme is not None
        for key, parameter in module.named_parameters(recurse=False):
            size += parameter.numel() * (1 if int8 and key == "weight" else 2)
        if int8:
            axis = 1 if isinstance(module, nn.ConvTranspose2d) else 0
            size += 4 * module.weight.shape[axis]  # type: ignore[union-attr, operator]
    assert size <= 1.30e9


@functools.cache
def with_heads(heads: tuple[str, ...]) -> VGGTInt8:
    with torch.device("meta"):
        return VGGTInt8(
            VGGTConfig(**{f"enable_{head}": head in heads for head in ("camera", "depth", "point", "track")})
        )


@pytest.mark.parametrize("name", INT8_RECIPES)
@pytest.mark.parametrize("heads", [(), ("camera",), ("depth",), ("point",), ("track",), ("camera", "depth", "point")])
def test_recipes_fit_vggt_1b_without_some_heads(name: str, heads: tuple[str, ...]) -> None:
    plan = make_plan(with_heads(heads), load_recipe(name))
    parts = {layer.split(".")[0] for layer, entry in plan.items() if entry.scheme is not None}
    assert parts == {"aggregator", *(f"{head}_head" for head in heads)}


def test_fp16_quantizes_nothing(vggt_1b: VGGTInt8) -> None:
    assert all(entry.scheme is None for entry in make_plan(vggt_1b, load_recipe("fp16")).values())


def changed_rule(name: str, index: int, **changes: object) -> Recipe:
    recipe = load_recipe(FORMAT_1 / f"{name}.toml")
    rules = list(recipe.rules)
    rules[index] = replace(rules[index], **changes)
    return replace(recipe, rules=tuple(rules))


def test_a_wrong_count_names_the_line(vggt_1b: VGGTInt8) -> None:
    recipe = changed_rule("int8_dynamic", 0, layers=95)
    line = recipe.rules[0].line
    with pytest.raises(RecipeError, match=rf"'int8_dynamic', line {line}: .* decides 96 layers, but states 95"):
        make_plan(vggt_1b, recipe)


def test_counts_are_not_asked_of_another_size() -> None:
    with torch.device("meta"):
        model = VGGTInt8(VGGTConfig(embed_dim=64, depth=4, dpt_layers=[0, 1, 2, 3]))
    make_plan(model, changed_rule("int8_dynamic", 0, layers=95))


def test_a_rule_that_matches_nothing_names_the_line(vggt_1b: VGGTInt8) -> None:
    recipe = changed_rule("int8_dynamic", 0, match=r"aggregator\.patch_embed\.block\.\d+\.attn")
    with pytest.raises(RecipeError, match=rf"line {recipe.rules[0].line}: .* decides no layer"):
        make_plan(vggt_1b, recipe)


def test_a_rule_behind_one_that_takes_all_is_found(vggt_1b: VGGTInt8) -> None:
    recipe = load_recipe(FORMAT_1 / "int8_dynamic.toml")
    shadowing = replace(recipe, rules=(Rule(".*", weights="keep"), *recipe.rules))
    with pytest.raises(RecipeError, match=r"line \d+: .* decides no layer .* move the rule above"):
        make_plan(vggt_1b, shadowing)


def test_exclude_takes_layers_away_from_rules(vggt_1b: VGGTInt8) -> None:
    whole = make_plan(vggt_1b, load_recipe("int8_dynamic"))
    recipe = replace(load_recipe("int8_dynamic"), exclude=(r"camera_head\..*", r".*\.attn\..*"))
    plan = make_plan(vggt_1b, recipe)
    for name, entry in plan.items():
        if name.startswith("camera_head.") or ".attn." in name:
            assert (entry.scheme, entry.reason) == (None, "excluded")
        else:
            assert entry == whole[name]


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(11))
        self.attention = nn.MultiheadAttention(8, 2)
        self.up = nn.ConvTranspose2d(8, 4, 2)
        self.norm = nn.LayerNorm(8)


def int8_names(recipe: Recipe) -> set[str]:
    return {name for name, entry in make_plan(Small(), recipe).items() if entry.scheme is not None}


def test_without_rules_every_layer_is_int8_but_those_read_by_others() -> None:
    plan = make_plan(Small(), Recipe())
    assert plan["stem"].scheme == plan["up"].scheme == Scheme("none"), "convolutions are weight-only"
    assert plan["blocks.10.2"].scheme == Scheme("dynamic")
    assert plan["attention.out_proj"].scheme is None
    assert "NonDynamicallyQuantizableLinear" in plan["attention.out_proj"].reason
    assert len(plan) == 25


def test_patterns_match_whole_names() -> None:
    assert int8_names(Recipe(include=r"blocks\.1\..*")) == {"blocks.1.0", "blocks.1.2"}
    assert int8_names(Recipe(include=[r"blocks\.\d\.0"], exclude=r"blocks\.[2-9]\.0")) == {"blocks.0.0", "blocks.1.0"}


def test_rules_then_include() -> None:
    recipe = Recipe(rules=(Rule(r"blocks\.0\..*", weights="keep"),), include=(r"blocks\.[01]\.0",))
    assert int8_names(recipe) == {"blocks.1.0"}
    recipe = Recipe(weights="keep", rules=(Rule("stem", weights="int8"),))
    assert int8_names(recipe) == {"stem"}


def test_a_rule_changes_the_scheme() -> None:
    recipe = Recipe(outlier_threshold=6.0, rules=(Rule(r"blocks\.0\.0", activations="none"), Rule(r"blocks\.0\.2")))
    plan = make_plan(Small(), recipe)
    assert plan["blocks.0.0"].scheme == Scheme("none")
    assert plan["blocks.0.2"].scheme == Scheme("dynamic", 6.0)


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_an_option_that_matches_nothing(option: str) -> None:
    pattern_in_message = re.escape(repr(r"block\..*"))
    with pytest.raises(RecipeError, match=f"{option} {pattern_in_message} matches no layer"):
        make_plan(Small(), Recipe(**{option: r"block\..*"}))


def test_a_rule_in_python_that_matches_nothing() -> None:
    with pytest.raises(RecipeError, match=r"recipe 'custom', match = 'blokcs.*: decides no layer"):
        make_plan(Small(), Recipe(rules=(Rule(r"blokcs\..*"),)))


def test_a_rule_for_a_part_that_is_missing_is_no_error() -> None:
    recipe = Recipe(rules=(Rule(r"head\..*", part="head"), Rule("stem")))
    assert int8_names(recipe) == {"stem"}


def test_a_rule_whose_part_is_misspelt(vggt_1b: VGGTInt8) -> None:
    recipe = changed_rule("int8_dynamic", 2, part="camera_haed")
    with pytest.raises(RecipeError, match=rf"line {recipe.rules[2].line}: .* part 'camera_haed' is no module of it"):
        make_plan(vggt_1b, recipe)


@pytest.mark.parametrize(
    ("model", "recipe", "message"),
    [
        (
            Small(),
            "int8_dynamic",
            "'int8_dynamic' chooses for groups .* a Small has .* such as 'stem'.*: there are maps for vggt",
        ),
        (nn.ModuleDict({"module": Small()}), "llm_int8", "chooses for groups .* such as 'module.stem'"),
        (nn.Sequential(nn.ReLU()), Recipe(), "quantizes no layer of this model: it has no linear or convolution"),
        (Small(), Recipe(exclude=".*"), "quantizes no layer of this model"),
    ],
)
def test_a_recipe_that_would_do_nothing(model: nn.Module, recipe: str | Recipe, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_plan(model, load_recipe(recipe))
    assert not any(layer.scheme for layer in make_plan(model, load_recipe("fp16")).values())
