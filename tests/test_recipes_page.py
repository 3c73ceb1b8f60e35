"""docs/recipes.md: its recipe is one, and its table of groups is the map's. `test_docs.py` runs its Python.

It and the READMEs list every recipe.
"""

import re
from pathlib import Path

import torch

from vggt_int8 import VGGTConfig, VGGTInt8, available_recipes, load_recipe
from vggt_int8.quant import make_plan
from vggt_int8.recipe import find_family

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
VGGT_MAP = find_family("vggt", ())


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_file_quantizes_a_vggt_1b(tmp_path: Path) -> None:
    (text,) = blocks("toml")
    (tmp_path / "my.toml").write_text(text, encoding="utf-8")
    with torch.device("meta"):
        plan = make_plan(VGGTInt8(VGGTConfig()), load_recipe(tmp_path / "my.toml"))
    shipped = {name for name, layer in plan.items() if layer.reason != "excluded"}
    assert len(plan) - len(shipped) == 8, "four linears of each of two blocks"
    assert plan["aggregator.frame_blocks.2.attn.qkv"].scheme.label == "W8A8 dynamic"
    assert plan["camera_head.pose_branch.fc1"].scheme.label == "W8A16"


def test_the_table_of_groups_is_the_map() -> None:
    sets = {member: name for name, members in VGGT_MAP.sets.items() for member in members}
    rows = re.findall(r"\| `(\w+)` \| (\d+) \| (?:`(\w+)` )?\|", PAGE)
    assert rows == [(name, str(group.layers), sets.get(name, "")) for name, group in VGGT_MAP.groups.items()]


def test_every_shipped_recipe_is_listed() -> None:
    listed = {"docs/recipes.md": set(re.findall(r"\(\.\./recipes/(\w+)\.toml\)", PAGE))}
    for page in ("README.md", "README.zh-CN.md"):
        cells = re.findall(
            r"^\| (`[^|]+) \|.+ \| \d\.\d\d GB \|", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE
        )
        listed[page] = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert listed == {page: set(available_recipes()) for page in listed}
