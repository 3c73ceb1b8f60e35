"""Recipes: the shipped files, their checks, and recipes written in Python."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from vggt_int8 import Recipe, RecipeError, available_recipes, load_recipe
from vggt_int8.recipe import Rule, Scheme

SHIPPED = ["fp16", "int8_dynamic", "int8_weight_only", "llm_int8"]


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
    assert all(rule.line for rule in recipe.rules)
    assert all(rule.layers is not None for rule in recipe.rules), "a shipped rule states how many layers it decides"


def test_schemes_of_the_shipped_recipes() -> None:
    assert load_recipe("fp16").weights == "keep"
    assert load_recipe("int8_dynamic").scheme == Scheme("dynamic")
    assert load_recipe("int8_weight_only").scheme == Scheme("none")
    assert load_recipe("llm_int8").scheme == Scheme("dynamic", 6.0)
    assert [
        Scheme("none").label,
        Scheme("dynamic").label,
        Scheme("static").label,
        Scheme("dynamic", 6.0).label,
    ] == ["W8A16", "W8A8 dynamic", "W8A8 static", "LLM.int8()"]


def test_one_shipped_rule_set_for_every_int8_recipe() -> None:
    """The recipes differ in how layers compute, not in which layers are INT8."""
    rules = [
        [(r.match, r.part, r.weights, r.layers) for r in load_recipe(name).rules]
        for name in ("int8_dynamic", "int8_weight_only", "llm_int8")
    ]
    assert rules[0] == rules[1] == rules[2]


def test_the_camera_head_is_weight_only() -> None:
    for name in ("int8_dynamic", "llm_int8"):
        recipe = load_recipe(name)
        (rule,) = [r for r in recipe.rules if "trunk" in r.match]
        assert recipe.rule_scheme(rule) == Scheme("none")


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
    ("observer = 'mse'", ["observer is 'mse'", "minmax"]),
    ("outlier_threshold = -1", ["outlier_threshold is -1"]),
    ("outlier_threshold = inf", ["outlier_threshold is inf"]),
    ("outlier_threshold = '6'", ["outlier_threshold is '6'", "number"]),
    ("outlier_threshold = true", ["outlier_threshold is True", "number"]),
    ("description = 3", ["description is 3; it must be text"]),
    ("vggt_1b = [1]", [r"vggt_1b is \[1\]; it must be a table"]),
    ("[vggt_1b]\nblocks = '24'", ["line 1: vggt_1b is .*must be a table of module = number"]),
    ("activations = 'none'\noutlier_threshold = 6", ["outlier_threshold 6", "dynamic"]),
    ("keep = 'fp16'\nattention = 'fp8'", ["line 2: attention is 'fp8'", "'float', 'int8'"]),
    ("attention_layers = ['(']", [r"line 1: attention_layers: '\(' is no regular expression"]),
    ("attention_layers = 3", ["line 1: attention_layers is 3; it must be a list"]),
    ("calibration_samples = 0", ["calibration_samples is 0"]),
    ("calibration_samples = 1.5", ["calibration_samples is 1.5"]),
    ("[[rules]]\nmatch = 'a'\nweights = 'fp8'", ["line 3: weights is 'fp8'", "match = 'a'"]),
    ("[[rules]]\nmatch = 'a'\n[[rules]]\nmatch = 'b'\nactivations = 'on'", ["line 5: activations is 'on'"]),
    ("[[rules]]\nmatch = 'a'\nlayers = '18'", ["line 3: layers is '18'; it must be an integer"]),
    ("[[rules]]\nmatch = 'a'\npart = 3", ["line 3: part is 3; it must be text"]),
    ("rules = 3", ["rules must be a list"]),
    ("rules = ['a']", ["a rule must be a table, not 'a'"]),
    ("weights = 'keep'\ninclude = 'a'", ["include has no effect"]),
    ("format = 2", ["recipe format 2", "Update vggt-int8"]),
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


def test_attention_is_float_unless_a_recipe_says_otherwise() -> None:
    assert Recipe().attention == "float"
    for name in available_recipes():
        shipped = load_recipe(name)
        assert (shipped.attention, shipped.attention_layers) == ("float", (r"aggregator\..*",))
    mine = Recipe(attention="int8", attention_layers="a")
    assert mine.attention_layers == ("a",)
    assert Recipe.from_dict(json.loads(json.dumps(mine.to_dict()))) == mine
    older = {key: value for key, value in Recipe().to_dict().items() if not key.startswith("attention")}
    assert Recipe.from_dict(older) == Recipe(), "checkpoints written before there was a choice"


def test_replace_keeps_the_rules_of_a_shipped_recipe() -> None:
    shipped = load_recipe("int8_dynamic")
    mine = replace(shipped, exclude=(r"camera_head\..*",))
    assert mine.rules == shipped.rules
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
