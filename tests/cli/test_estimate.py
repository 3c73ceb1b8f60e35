"""`vggt-int8 estimate`: what fits, by the runtime's own plan."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vggt_int8.cli.recipes import FACTS
from vggt_int8.model.config import VGGTConfig
from vggt_int8.model.omega.config import VGGTOmegaConfig
from vggt_int8.recipe import load_recipe
from vggt_int8.runtime.fits import CARDS, CONTEXT, Question, skeleton, stored_bytes
from vggt_int8.runtime.memory import SMALLEST
from vggt_int8.runtime.omega.memory import OmegaShape

ROOT = Path(__file__).parents[2]


def rows(cli, *arguments: object) -> list[dict]:
    return json.loads(cli("estimate", *arguments, "--json"))["rows"]


@pytest.mark.slow
def test_weights_are_those_of_a_checkpoint(cli) -> None:
    found = rows(cli, "--memory-gb", 12, "-r", "fp16", "-r", "int8_dynamic")
    assert {row["recipe"]: row["weight_bytes"] for row in found} == {
        name: FACTS[name][0] for name in ("fp16", "int8_dynamic")
    }


@pytest.mark.slow
def test_a_quantized_model_brings_its_recipe(cli, tiny_int8: Path) -> None:
    (row,) = rows(cli, tiny_int8, "--memory-gb", 8, "--size", "42x56")
    assert row["recipe"] == "int8_dynamic"
    assert "quantized already" in cli("estimate", tiny_int8, "-r", "fp16", code=2)


@pytest.mark.slow
def test_text_names_the_way_it_runs(cli) -> None:
    lines = cli("estimate", "-r", "int8_rotated", "--memory-gb", 80, "--memory-gb", 6, "--frames", 200).splitlines()
    assert "host memory" in lines[2]
    assert "all on the GPU" in lines[3]


@pytest.mark.slow
def test_frames_that_fit_nowhere_are_an_exit_code(cli) -> None:
    cli("estimate", "-r", "int8_rotated", "--memory-gb", 2, "--frames", 1000, code=1)


def test_sizes_are_checked(cli) -> None:
    assert "multiples of 14" in cli("estimate", "--size", "390x518", code=2)
    assert "height x width" in cli("estimate", "--size", "3", code=2)
    assert "at least 1" in cli("estimate", "--memory-gb", 0, code=2)


@pytest.mark.parametrize(("gigabytes", "keyframes"), [(3, None), (8, 40), (80, None)])
def test_the_largest_number_fits_and_one_more_does_not(gigabytes: int, keyframes: int | None) -> None:
    question, memory = Question(VGGTConfig(), FACTS["int8_rotated"][0], (392, 518), keyframes), gigabytes << 30
    most, on_gpu = question.most_frames(memory), question.frames_on_gpu(memory)
    assert question.need(most, memory).fits
    assert question.need(most, memory).total <= memory
    assert not question.need(most + 1, memory).fits
    assert not question.need(on_gpu, memory).plan.tokens_on_host
    assert question.need(on_gpu + 1, memory).plan.tokens_on_host


def test_key_frames_let_more_frames_fit() -> None:
    exact = Question(VGGTConfig(), FACTS["int8_rotated"][0], (392, 518))
    keyed, memory = replace(exact, keyframes=40), 24 << 30
    assert keyed.frames_on_gpu(memory) > exact.frames_on_gpu(memory)
    assert keyed.need(1000, memory).work < exact.need(1000, memory).work
    assert keyed.need(30, memory) == exact.need(30, memory)


def test_the_other_family_is_asked_by_its_own_memory(cli, tmp_path: Path) -> None:
    VGGTOmegaConfig().save_pretrained(tmp_path)
    (row,) = rows(cli, tmp_path, "--memory-gb", 8, "--size", "416x624", "-r", "int8_rotated")

    def taken(frames: int) -> int:
        shape = OmegaShape(1, frames, 416, 624, ("camera", "depth"), 2)
        work = shape.peak_bytes(VGGTOmegaConfig(), SMALLEST)
        return CONTEXT + row["weight_bytes"] + 4 * 3 * 416 * 624 * frames + work

    assert taken(row["frames"]) <= 8 << 30 < taken(row["frames"] + 1)
    assert "multiples of 16" in cli("estimate", tmp_path, "--size", "392x518", code=2)
    by_default = cli("estimate", tmp_path, "--memory-gb", 8, "-r", "fp16", "--json")
    assert json.loads(by_default)["size"] == [384, 512], "a photograph of 4:3"


@pytest.mark.parametrize(
    ("column", "kind", "size"),
    [(1, VGGTConfig, (392, 518)), (2, VGGTConfig, (518, 518)), (3, VGGTOmegaConfig, (384, 512))],
)
def test_the_page_says_what_the_plan_says(column: int, kind: Any, size: tuple[int, int]) -> None:
    weights = FACTS["int8_rotated"][0]
    if kind is not VGGTConfig:
        weights = stored_bytes(skeleton(kind(), load_recipe("int8_rotated"))[0])
    question, said, computed = Question(kind(), weights, size), {}, {}
    for line in (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[0].endswith(" GB"):
            memory = int(cells[0].removesuffix(" GB")) << 30
            said[cells[0]] = cells[column]
            computed[cells[0]] = f"{question.frames_on_gpu(memory):,} ({question.most_frames(memory):,})"
    assert list(said) == [f"{size} GB" for size in CARDS]
    assert computed == said


def test_none_fit_where_the_weights_do_not() -> None:
    question = Question(VGGTConfig(), FACTS["int8_rotated"][0], (392, 518))
    assert question.most_frames(1 << 30) == question.frames_on_gpu(1 << 30) == 0
