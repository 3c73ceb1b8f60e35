"""A chosen recipe decides what was chosen, reads back as it was written, and fits other sizes where it is of groups."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vggt_int8 import VGGT, Recipe, VGGTConfig, VGGTInt8, available_recipes, load_recipe
from vggt_int8.patterns import fits
from vggt_int8.quant.plan import make_plan
from vggt_int8.sensitivity.recipe_file import _patterns, chosen_recipe, recipe_text
from vggt_int8.sensitivity.units import Unit, find_units


@pytest.fixture(scope="module")
def tiny(request: pytest.FixtureRequest) -> VGGT:
    with torch.device("meta"):
        return VGGT(VGGTConfig(**request.getfixturevalue("tiny_sizes")))


def chosen(units: list[Unit], **other: str) -> dict[str, str]:
    found = {unit.name: "base" for unit in units}
    assert set(other) <= set(found)
    return found | other


def reread(recipe: Recipe, folder: Path) -> Recipe:
    path = folder / f"{recipe.name}.toml"
    path.write_text(recipe_text(recipe, ["a remark"]))
    return load_recipe(path)


def schemes(model: torch.nn.Module, recipe: Recipe) -> dict[str, object]:
    return {name: layer.scheme for name, layer in make_plan(model, recipe).items()}


@pytest.mark.parametrize("name", available_recipes())
def test_every_shipped_recipe_reads_back_as_it_was(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert reread(recipe, tmp_path) == recipe


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(name="a", weights="int8", activations="none"),
        Recipe(name="a", description='quotes " and \\ and 漢', include=["encoder", r".*\.mlp\..*"], exclude=[r".*'.*"]),
        Recipe(name="a", groups={"encoder": "dynamic"}, include=[".*"], weights="int8", rotation=64),
        Recipe(name="a", groups={"encoder": "weight_only"}, weights="keep"),
        Recipe(name="a", outlier_threshold=6.5, calibration_samples=4, vggt_1b={"blocks": 3}),
    ],
)
def test_recipes_of_all_kinds_read_back(recipe: Recipe, tmp_path: Path) -> None:
    assert reread(recipe, tmp_path) == recipe


def test_groups_fit_every_size(tiny: VGGTInt8, tmp_path: Path) -> None:
    base = load_recipe("int8_rotated")
    units = find_units(tiny, base, "group")
    choice = chosen(units, camera_head="keep", encoder="weight_only_rotated", depth_convolutions="keep")
    recipe = reread(chosen_recipe(tiny, base, units, choice, by="group", name="mine", about="a"), tmp_path)
    assert recipe.groups == {
        **base.groups,
        "camera_head": "keep",
        "encoder": "weight_only_rotated",
        "depth_convolutions": "keep",
    }
    with torch.device("meta"):
        large = VGGT(VGGTConfig())
    before, after = schemes(large, base), schemes(large, recipe)
    assert sum(scheme is None for scheme in after.values()) - sum(s is None for s in before.values()) == 18 + 31
    encoder = {scheme.label for name, scheme in after.items() if scheme and ".patch_embed.blocks." in name}
    assert encoder == {"W8A16 rotated"}


@pytest.mark.parametrize("by", ["block", "layer"])
def test_blocks_and_layers_are_decided_one_by_one(tiny: VGGTInt8, by: str, tmp_path: Path) -> None:
    base = load_recipe("int8_dynamic")
    units = find_units(tiny, base, by)
    end = ".mlp.fc1" if by == "layer" else ""
    words = {f"aggregator.global_blocks.1{end}": "keep", f"aggregator.frame_blocks.0{end}": "weight_only"}
    choice = chosen(units, **words)
    recipe = reread(chosen_recipe(tiny, base, units, choice, by=by, name="mine", about="a"), tmp_path)
    before, after = schemes(tiny, base), schemes(tiny, recipe)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {layer for unit in units if choice[unit.name] != "base" for layer in unit.layers}
    assert after["aggregator.global_blocks.1.mlp.fc1"] is None
    assert after["aggregator.frame_blocks.0.mlp.fc1"].activations == "none"


def test_a_base_with_rules_of_its_own_is_overruled(tiny: VGGTInt8) -> None:
    base = load_recipe("int8_dynamic")
    rules = [{"match": r"aggregator\.frame_blocks\.0\..*", "activations": "none"}]
    base = Recipe.from_dict({**base.to_dict(), "rules": rules})
    units = find_units(tiny, base, "group")
    recipe = chosen_recipe(tiny, base, units, chosen(units, frame_blocks="keep"), by="group", name="m", about="")
    assert all(s is None for name, s in schemes(tiny, recipe).items() if name.startswith("aggregator.frame_blocks."))


def test_patterns_are_few_and_match_these_names_alone() -> None:
    names = [
        f"{part}.{i}.{layer}"
        for part in ("a.frame", "a.global")
        for i in range(12)
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1")
    ]
    names += ["head.out_conv1", "head.out_conv2.0"]
    wanted = {name: "keep" for name in names if ".1." in name or ".11." in name}
    wanted |= {"a.frame.3.mlp.fc1": "weight_only", "head.out_conv1": "keep"}
    patterns = _patterns(wanted)
    assert len(patterns) == 4
    for name in names:
        found = {choice for pattern, choice in patterns if fits(pattern, name)}
        assert found == ({wanted[name]} if name in wanted else set()), name


def test_every_layer_of_the_full_size_fits_into_one_recipe() -> None:
    base = load_recipe("int8_rotated")
    with torch.device("meta"):
        large = VGGT(VGGTConfig())
    units = find_units(large, base, "layer")
    words = [unit.options[index % len(unit.options)].choice for index, unit in enumerate(units)]
    choice = dict(zip((unit.name for unit in units), words, strict=True))
    recipe = chosen_recipe(large, base, units, choice, by="layer", name="mine", about="")
    assert len(recipe.rules) < 40


@pytest.mark.slow
def test_a_checkpoint_loads_with_it(tiny_checkpoint: Path, make_tiny: Callable[[], VGGTInt8], tmp_path: Path) -> None:
    base, model = load_recipe("int8_dynamic"), make_tiny()
    units = find_units(model, base, "group")
    recipe = chosen_recipe(model, base, units, chosen(units, camera_head="keep"), by="group", name="mine", about="")
    (tmp_path / "mine.toml").write_text(recipe_text(recipe, []))
    loaded = VGGTInt8.from_pretrained(tiny_checkpoint, recipe=tmp_path / "mine.toml")
    assert loaded.camera_head.trunk[0].mlp.fc1.weight.is_floating_point()
    assert not loaded.aggregator.frame_blocks[0].mlp.fc1.weight.is_floating_point()
