"""`vggt-int8 recipes` names every shipped recipe, its size on VGGT-1B and its backends."""

import pytest

from vggt_int8 import available_recipes
from vggt_int8.cli import recipes
from vggt_int8.cli.recipes import FACTS, measure


def test_every_recipe_has_a_row(cli) -> None:
    assert list(FACTS) == available_recipes()
    lines = {line.split()[0]: line for line in cli("recipes").splitlines() if line.strip()}
    assert set(FACTS) <= set(lines)
    assert "2,513" in lines["fp16"]
    assert "1,277" in lines["int8_dynamic"]
    assert "reference" in lines["int8_dynamic"]
    assert "bitsandbytes" not in lines["int8_weight_only"].split("MB")[1]
    assert "native" not in lines["llm_int8"].split("MB")[1]


@pytest.mark.slow
def test_the_facts_are_what_is_measured_and_what_runs_here_is_tried_on_request(
    cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, tuple[int, list[str]]] = {}

    def kept(name: str) -> tuple[int, list[str]]:
        found[name] = measure(name)
        return found[name]

    monkeypatch.setattr(recipes, "measure", kept)
    lines = {line.split()[0]: line for line in cli("recipes", "--check").splitlines()}
    assert "on this machine" in lines["recipe"]
    assert lines["llm_int8"].count("reference") == 2
    assert list(FACTS) == list(found)
    for name, (size, backends) in FACTS.items():
        measured, usable = found[name]
        assert measured == size
        assert set(usable) <= set(backends)  # what a library lacks on this machine is no fact of the recipe
        assert "reference" in usable or not backends
