"""`vggt-int8 recipes` names every shipped recipe, its size on VGGT-1B and its backends."""

from vggt_int8 import available_recipes


def test_every_recipe_has_a_row(cli) -> None:
    lines = {line.split()[0]: line for line in cli("recipes").splitlines() if line.strip()}
    assert set(available_recipes()) <= set(lines)
    assert "2,513" in lines["fp16"]
    assert "1,277" in lines["int8_dynamic"]
    assert "reference" in lines["int8_dynamic"]
    assert "bitsandbytes" not in lines["int8_weight_only"].split("MB")[1]
    assert "native" not in lines["llm_int8"].split("MB")[1]
