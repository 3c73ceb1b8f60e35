"""Recipes: the shipped files, their checks, and recipes written in Python."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vggt_int8 import VGGT, Recipe, RecipeError, VGGTConfig, VGGTOmega, VGGTOmegaConfig, available_recipes, load_recipe
from vggt_int8.quant import make_plan
from vggt_int8.recipe import Family, Rule, Scheme, expand, find_family, known_words
from vggt_int8.recipe.family import FAMILY_FOLDER

VGGT_MAP = find_family("vggt", ())
STATIC = ["int8_static", "int8_static_rotated"]
SMOOTH = ["int8_smooth", "int8_smooth_rotated"]
SHIPPED = ["fp16", "int8_dynamic", "int8_mixed", "int8_rotated", *SMOOTH, *STATIC, "int8_weight_only", "llm_int8"]


def test_the_promised_recipes_are_shipped() -> None:
    assert set(SHIPPED) <= set(available_recipes())


@pytest.mark.parametrize("name", available_recipes())
def test_a_shipped_recipe_survives_dict_and_json(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    data = recipe.to_dict()
    assert Recipe.from_dict(data) == recipe
    again = Recipe.from_dict(json.loads(json.dumps(data)))
    assert again == recipe
    assert again.to_dict() == data
    written_out = expand(recipe, VGGT_MAP)
    assert Recipe.from_dict(json.loads(json.dumps(written_out.to_dict()))) == written_out
    counted = recipe.rules or written_out.rules  # rules of its own take layers away from groups
    assert all(rule.line for rule in written_out.rules)
    assert all(rule.layers for rule in counted), "a shipped rule states how many it decides"


def test_schemes_of_the_shipped_recipes() -> None:
    assert load_recipe("fp16").weights == "keep"
    assert load_recipe("int8_dynamic").scheme == Scheme("dynamic")
    assert load_recipe("int8_weight_only").scheme == Scheme("none")
    assert load_recipe("int8_rotated").scheme == Scheme("dynamic", rotation=256)
    assert load_recipe("llm_int8").scheme == Scheme("dynamic", 6.0)
    assert load_recipe("int8_static").scheme == Scheme("static")
    assert load_recipe("int8_static_rotated").scheme == Scheme("static", rotation=256)
    assert [name for name in SHIPPED if load_recipe(name).needs_calibration] == SMOOTH + STATIC
    assert load_recipe("int8_smooth").scheme == Scheme("dynamic")
    assert load_recipe("int8_smooth_rotated").scheme == Scheme("dynamic", rotation=256)
    smoothing = {name: load_recipe(name).smoothing for name in SHIPPED if load_recipe(name).smoothing}
    assert smoothing == dict.fromkeys(SMOOTH, "search") | dict.fromkeys(
        ["int8_mixed", "int8_rotated", *STATIC, "int8_weight_only"], "weights"
    )
    assert [load_recipe(name).special_tokens for name in STATIC] == ["own", "own"]
    assert [
        Scheme("none").label,
        Scheme("dynamic").label,
        Scheme("static").label,
        Scheme("dynamic", 6.0).label,
    ] == ["W8A16", "W8A8 dynamic", "W8A8 static", "LLM.int8()"]


def test_one_set_of_layers_for_every_uniform_int8_recipe() -> None:
    """They differ in how layers compute, not in which layers are INT8. `int8_mixed` and `int8_static` are below."""
    rules = [
        [(r.match, r.part, r.weights == "keep", r.layers) for r in expand(load_recipe(name), VGGT_MAP).rules]
        for name in ("int8_dynamic", "int8_rotated", *SMOOTH, "int8_static_rotated", "int8_weight_only", "llm_int8")
    ]
    assert all(others == rules[0] for others in rules)


def test_the_mixed_recipe_is_the_rotated_one_but_for_the_point_head() -> None:
    with torch.device("meta"):
        model = VGGT(VGGTConfig())
    rotated, mixed = (make_plan(model, load_recipe(name)) for name in ("int8_rotated", "int8_mixed"))
    other = {name for name in rotated if rotated[name].scheme != mixed[name].scheme}
    assert len(other) == 31
    assert all(name.startswith("point_head.") and mixed[name].scheme is None for name in other)


@pytest.mark.parametrize(
    ("network", "config", "blocks"), [(VGGT, VGGTConfig, "global"), (VGGTOmega, VGGTOmegaConfig, "inter_frame")]
)
def test_the_static_recipe_has_dynamic_scales_at_one_layer(network: type[Any], config: type[Any], blocks: str) -> None:
    with torch.device("meta"):
        model = network(config())
    recipe = load_recipe("int8_static")
    all_static, shipped = (make_plan(model, found) for found in (replace(recipe, rules=()), recipe))
    other = {name: entry.scheme for name, entry in shipped.items() if entry.scheme != all_static[name].scheme}
    assert other == {f"aggregator.{blocks}_blocks.{i}.mlp.fc2": Scheme("dynamic") for i in range(24)}


def test_the_camera_head_is_weight_only() -> None:
    for name in ("int8_dynamic", "llm_int8"):
        recipe = expand(load_recipe(name), VGGT_MAP)
        (rule,) = [r for r in recipe.rules if "trunk" in r.match]
        assert recipe.rule_scheme(rule) == Scheme("none")


def test_a_shipped_recipe_is_short() -> None:
    for name in SHIPPED:
        text = (Path(__file__).parent.parent / "recipes" / f"{name}.toml").read_text()
        lines = text.partition("[[rules]]")[0].splitlines()  # rules are for what is less than a group
        assert len([line for line in lines if line.strip()]) <= 17
        assert not any("aggregator\\." in line for line in lines), "names of layers belong into the map"


# Each row: what a user's file says -> what the message must say. The file is called mine.toml.
BAD_FILES = [
    ("keep = 'fp16'\nwieghts = 'int8'", [r"mine\.toml, line 2", "unknown key 'wieghts'", "weights"]),
    ("[vggt_1b]\nkeep = 3\n[wieghts]\nkeep = 4", [r"mine\.toml, line 3", "unknown key 'wieghts'"]),
    ("[[rules]]\nmatch = 'a'\n\n[[rules]]\nmatch = 'b'\nlayer = 3", [r"mine\.toml, line 6", "unknown key 'layer'"]),
    ("[[rules]]\nmatch = 'a'\n[[rules]]\nmatch = 'b(c'", [r"line 4: .*'b\(c' is no regular expression"]),
    ("include = ['*']", [r"line 1: .*'\*' is no regular expression"]),
    ("include = 3", ["line 1: include is 3; it must be a list"]),
    ("[[rules]]\npart = 'a'", ["line 1", "needs match"]),
    ("[[rules]]\nmatch = 3", ["line 1", "needs match"]),
    ("weights = 'int4'", ["weights is 'int4'", "'int8', 'keep'"]),
    ("keep = 'fp16'\nactivations = 'dynamik'", ["line 2: activations is 'dynamik'", "'none', 'dynamic', 'static'"]),
    ("keep = 'fp8'", ["keep is 'fp8'"]),
    ("observer = 'mean'", ["observer is 'mean'", "minmax"]),
    ("outlier_threshold = -1", ["outlier_threshold is -1"]),
    ("outlier_threshold = inf", ["outlier_threshold is inf"]),
    ("outlier_threshold = '6'", ["outlier_threshold is '6'", "number"]),
    ("outlier_threshold = true", ["outlier_threshold is True", "number"]),
    ("description = 3", ["description is 3; it must be text"]),
    ("vggt_1b = [1]", [r"vggt_1b is \[1\]; it must be a table"]),
    ("[vggt_1b]\nblocks = '24'", ["line 1: vggt_1b is .*must be a table of module = number"]),
    ("activations = 'none'\noutlier_threshold = 6", ["outlier_threshold 6", "dynamic"]),
    (
        "keep = 'fp16'\nattention = 'int8'",
        ["line 2: attention is 'int8'", "floating point alone", "Take .* out"],
    ),
    ("calibration_samples = 0", ["calibration_samples is 0"]),
    ("calibration_samples = 1.5", ["calibration_samples is 1.5"]),
    ("[[rules]]\nmatch = 'a'\nweights = 'fp8'", ["line 3: weights is 'fp8'", "match = 'a'"]),
    ("[[rules]]\nmatch = 'a'\n[[rules]]\nmatch = 'b'\nactivations = 'on'", ["line 5: activations is 'on'"]),
    ("[[rules]]\nmatch = 'a'\nlayers = '18'", ["line 3: layers is '18'; it must be an integer"]),
    ("[[rules]]\nmatch = 'a'\npart = 3", ["line 3: part is 3; it must be text"]),
    ("rules = 3", ["rules must be a list"]),
    ("rules = ['a']", ["a rule must be a table, not 'a'"]),
    ("weights = 'keep'\ninclude = 'a'", ["include has no effect"]),
    ("format = 3", ["recipe format 3", "reads 1 and 2", "Update vggt-int8"]),
    ("format = 1\ngroups = {outputs = 'keep'}", ["line 2: groups needs format = 2"]),
    ("weights = 'int8'\ngroups = 3", ["line 2: groups is 3; it must be a table"]),
    ("[groups]\nencoder = 'keep'\ncamera_haed = 'keep'", ["line 3: groups names 'camera_haed'", "camera_head"]),
    (
        "[groups]\nencoder = 'int4'",
        [r"line 2: groups\.encoder is 'int4'", "'keep', 'weight_only', 'weight_only_rotated', 'dynamic', 'static'"],
    ),
    ("groups.encoder = ['keep']", [r"line 1: groups\.encoder is \['keep'\]"]),
    ("groups = {encoder = 'x'}", [r"line 1: groups\.encoder is 'x'"]),
    ("weights = 'int8'\nencoder = 'keep'", ["line 2: encoder is a group: write it under"]),
    ("[groups]\nencoder = 'keep'\nactivations = 'none'", ["line 3: activations is no group: write it above"]),
    ("weights = ", [r"mine\.toml is not valid TOML"]),
    ("include = [3]", ["3 is no regular expression"]),
]


@pytest.mark.parametrize(("text", "messages"), BAD_FILES, ids=[text.replace("\n", "; ") for text, _ in BAD_FILES])
def test_a_bad_file_is_refused(tmp_path: Path, text: str, messages: list[str]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    for message in messages:
        with pytest.raises(RecipeError, match=message):
            load_recipe(path)


def test_a_file_of_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xff\xfe\x00weights")
    with pytest.raises(RecipeError, match=r"mine\.toml is not valid TOML"):
        load_recipe(path)


def test_an_own_file_works_like_a_shipped_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("description = '''\n[[rules]]\n'''\nactivations = 'none'\n\n[[rules]]\nmatch = 'mlp.*'\n")
    for given in (path, str(path)):
        recipe = load_recipe(given)
        assert recipe.name == "mine"
        assert recipe.rules == (Rule("mlp.*"),)
        assert recipe.rule_scheme(recipe.rules[0]) == Scheme("none")


def test_a_missing_file_and_an_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cannot read the recipe .*none\.toml: No such file"):
        load_recipe(tmp_path / "none.toml")
    with pytest.raises(RecipeError, match="there is no recipe 'int8'") as error:
        load_recipe("int8")
    for name in SHIPPED:
        assert name in str(error.value)
    with pytest.raises(RecipeError, match="pass a name, a path or a Recipe"):
        load_recipe(8)  # type: ignore[arg-type]


def test_recipes_in_python() -> None:
    assert Recipe().include == (".*",)
    assert Recipe(include="a", exclude="b").include == ("a",)
    assert Recipe(exclude="b").include == (".*",)
    assert Recipe(exclude="b").exclude == ("b",)
    assert Recipe(weights="keep").include == ()
    assert load_recipe(Recipe(name="x")) == Recipe(name="x")
    with pytest.raises(RecipeError, match="is no regular expression"):
        Recipe(exclude=["("])
    with pytest.raises(RecipeError, match="rules holds 'a', which is no Rule"):
        Recipe(rules=["a"])  # type: ignore[arg-type]


def test_what_older_recipes_say_of_float_attention_is_passed_over() -> None:
    older = {**Recipe().to_dict(), "attention": "float", "attention_layers": ["encoder", "("]}
    assert Recipe.from_dict(older) == Recipe()
    assert not [key for key in Recipe().to_dict() if key.startswith("attention")]


def test_replace_keeps_the_choices_of_a_shipped_recipe() -> None:
    shipped = load_recipe("int8_dynamic")
    mine = replace(shipped, exclude=(r"camera_head\..*",))
    assert mine.groups == shipped.groups
    assert mine.include == ()
    assert Recipe.from_dict(mine.to_dict()) == mine


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no recipe: it says nothing of layers"),
        (b"# weights = 'int8'\n\n", "holds no recipe"),
        (b"name = 'mine'\ndescription = 'later'\nformat = 1\n", "holds no recipe"),
        (b"\x89PNG\r\n\x1a\n\0\0", "is not valid TOML"),
        (b"rules = " + b"[" * 100_000, "nested too deep"),
        (b"outlier_threshold = 1" + b"0" * 5000, "is not valid TOML"),
        (b"# " + b"x" * 1_000_001, "more than 1000000 characters"),
        (b"format = true\nweights = 'int8'", "recipe format True"),
        (b"include = ['(a+)+(?=b)']", "look-around"),
        (b"include = [" + b"'(.?){300}'," * 20 + b"]", "too large together"),
        (b"include = [['a']]", "is no regular expression here"),
    ],
    ids=["empty", "comments", "a name", "binary", "deep", "digits", "huge", "format", "look-around", "states", "list"],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path)
    assert "mine.toml" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_recipe_that_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(RecipeError, match=r"cannot read the recipe .*folder\.toml: Is a directory"):
        load_recipe(tmp_path / "folder.toml")
    with pytest.raises(RecipeError, match=r"pipe\.toml: it is no file"):
        load_recipe(tmp_path / "pipe.toml")


def choices(**options: object) -> dict[str, str]:
    """Group of the VGGT map -> what a recipe says of it, written out: a scheme's label or "keep"."""
    recipe = expand(Recipe(**options), VGGT_MAP)  # type: ignore[arg-type]
    names = {group.match: name for name, group in VGGT_MAP.groups.items()}
    found: dict[str, str] = {}
    for rule in recipe.rules:
        scheme = recipe.rule_scheme(rule)
        found.setdefault(names[rule.match], scheme.label if scheme else "keep")
    return found


def test_groups_take_the_choice_of_the_recipe_of_a_set_or_of_their_own() -> None:
    found = choices(groups={"outputs": "keep", "track_outputs": "weight_only", "encoder": "static"})
    assert set(found) == set(VGGT_MAP.groups)
    assert {name for name, choice in found.items() if choice == "keep"} == {
        "camera_pose_output",
        "depth_output",
        "point_output",
    }
    assert (found["track_outputs"], found["encoder"]) == ("W8A16", "W8A8 static")
    assert found["global_blocks"] == "W8A8 dynamic"


def test_weights_that_are_kept_leave_the_named_groups_alone_quantized() -> None:
    assert choices(weights="keep", groups={"aggregator": "dynamic", "camera_head": "weight_only"}) == {
        "frame_blocks": "W8A8 dynamic",
        "global_blocks": "W8A8 dynamic",
        "camera_head": "W8A16",
    }


def test_include_and_exclude_by_group() -> None:
    assert choices(include="encoder") == {"encoder": "W8A8 dynamic"}
    found = choices(include=["aggregator"], groups={"camera_head": "weight_only"})
    assert found == {"frame_blocks": "W8A8 dynamic", "global_blocks": "W8A8 dynamic", "camera_head": "W8A16"}
    found = choices(exclude=["encoder"], groups={"camera_head": "weight_only", "encoder": "dynamic"})
    assert found["encoder"] == "keep"
    assert expand(Recipe(exclude="encoder"), VGGT_MAP).include == (".*",)
    mixed = expand(Recipe(include=["encoder", r"camera_head\.trunk\..*"], exclude=["outputs", "x"]), VGGT_MAP)
    assert (mixed.include, mixed.exclude) == ((r"camera_head\.trunk\..*",), ("x",))


def test_two_sets_that_contradict_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    other = other_family()
    monkeypatch.setattr("vggt_int8.recipe.family.families", lambda: (other,))
    with pytest.raises(RecipeError, match=r"camera_pose_output is in .* choose for camera_pose_output itself"):
        expand(Recipe(groups={"outputs": "keep", "pose": "dynamic"}), other)
    whole = {"outputs": "keep", "pose": "dynamic", "camera_pose_output": "keep"}
    assert expand(Recipe(groups=whole), other).rules


def other_family(**changes: str) -> Family:
    """VGGT's map as another family's, with a set and a module more."""
    text = (FAMILY_FOLDER / "vggt.toml").read_text()
    for old, new in {
        'name = "vggt"': 'name = "other"',
        'model_types = ["vggt"]': 'model_types = ["other"]',
        '"aggregator.global_blocks"]': '"aggregator.global_blocks", "more"]',
        "[sets]": '[sets]\npose = ["camera_pose_input", "camera_pose_output"]',
        **changes,
    }.items():
        assert old in text
        text = text.replace(old, new, 1)
    return Family.from_toml(text, "other.toml")


def test_a_second_family_has_the_same_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    other = other_family()
    monkeypatch.setattr("vggt_int8.recipe.family.families", lambda: (VGGT_MAP, other))
    assert "pose" in known_words()
    for name in SHIPPED:
        shipped = load_recipe(name)
        assert expand(shipped, other).rules == expand(shipped, VGGT_MAP).rules
    mine = Recipe(groups={"pose": "keep", "encoder": "dynamic"})
    assert len(expand(mine, VGGT_MAP).rules) == len(VGGT_MAP.groups), "a group of another family has no effect here"
    with pytest.raises(RecipeError, match="include names 'pose', a group that the family vggt does not have"):
        expand(Recipe(include="pose"), VGGT_MAP)


def test_a_family_is_recognised_by_its_config_or_its_modules() -> None:
    other = other_family()
    both, modules = (VGGT_MAP, other), set(VGGT_MAP.modules)
    assert find_family("vggt", set(), both) is VGGT_MAP
    assert find_family("other", modules, both) is other
    assert find_family(None, modules, both) is VGGT_MAP
    assert find_family("somebody's", {*modules, "more"}, both) is other
    assert find_family(None, modules - {"aggregator.frame_blocks"}, both) is None
    assert find_family(None, modules) is VGGT_MAP


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers = 96": "layers = 'x'"}, r"other\.toml, line \d+: layers is 'x'"),
        ({"match = 'camera_head\\.embed_pose'": "match = '('"}, r"other\.toml, line \d+: match: '\(' is no regular"),
        ({'reason = "pose output"': 'raeson = "pose output"'}, r"other\.toml, line \d+: unknown key 'raeson'"),
        ({'"depth_output", ': '"deep_output", '}, r"other\.toml, line \d+: 'deep_output' is no group"),
        ({'aggregator = ["frame_blocks"': 'encoder = ["frame_blocks"'}, r"line \d+: 'encoder' is a group already"),
    ],
)
def test_a_wrong_map_names_the_line(changes: dict[str, str], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as error:
        other_family(**changes)
    number = int(str(error.value).split("line ")[1].split(":")[0])
    text = (FAMILY_FOLDER / "vggt.toml").read_text().splitlines()
    (old,) = changes
    lines = [i for i, line in enumerate(text, 1) if old in line]
    assert number in (lines[0], lines[0] + 1), "the set that is added comes after all but the sets"
