"""`vggt-int8 compare` tables what `compare_model_outputs` measures."""

import json
import math
import re
from pathlib import Path

import pytest

from vggt_int8 import VGGTInt8, compare_model_outputs, load_images


def rows(text: str) -> dict[str, list[float]]:
    table, _, _ = text.partition("\ngeometry")
    lines = [line.split() for line in table.splitlines() if line.strip()]
    return {cells[0]: [float(cell) for cell in cells[1:]] for cells in lines[2:]}  # after title and head


def test_a_model_equals_itself(cli, tiny: Path, photos: list[Path]) -> None:
    table = rows(cli("compare", tiny, tiny, *photos))
    assert {"depth", "pose_enc", "world_points", "overall"} <= set(table)
    assert all(row[:3] == [0, 0, 0] for row in table.values())


@pytest.mark.slow
def test_recipe_applies_to_the_second_model(cli, tiny: Path, tiny_int8: Path, photos: list[Path]) -> None:
    on_the_fly = rows(cli("compare", tiny, tiny, *photos, "--recipe", "int8_dynamic"))
    saved = rows(cli("compare", tiny, tiny_int8, *photos))
    assert on_the_fly == saved
    reference, quantized = VGGTInt8.from_pretrained(tiny).eval(), VGGTInt8.from_pretrained(tiny_int8).eval()
    config = reference.config
    images = load_images(photos, size=config.img_size, patch_size=config.patch_size)
    expected = compare_model_outputs(reference, quantized, images)["depth"]
    assert saved["depth"][0] == pytest.approx(expected["relative"], rel=1e-2)
    assert saved["depth"][0] > 0


def test_degrees_and_per_cent(cli, tiny: Path, tiny_int8: Path, photos: list[Path]) -> None:
    text = cli("compare", tiny, tiny_int8, *photos).partition("\ngeometry")[2]
    for title, unit in [
        ("rotation", "°"),
        ("centres", " %"),
        ("field of view", "°"),
        ("depth", " %"),
        ("points", " %"),
    ]:
        assert re.search(rf"^{title}.* [\d.e-]+{unit} +[\d.e-]+{unit} ", text, re.M), text


@pytest.mark.slow
def test_as_json(cli, tiny: Path, tiny_int8: Path, photos: list[Path]) -> None:
    found = json.loads(cli("compare", tiny, tiny_int8, *photos, "--json"))
    assert found["images"] == [str(path) for path in photos]
    assert (
        set(found["overall"]) == {"mae", "max_diff", "cosine", "sqnr_db", "relative"} == set(found["outputs"]["depth"])
    )
    assert 0 < found["geometry"]["depth_percent"]["median"] < found["geometry"]["depth_percent"]["p90"]
    same = json.loads(cli("compare", tiny, tiny, *photos, "--json"))
    assert same["overall"]["sqnr_db"] == "Infinity"
    assert float(same["overall"]["sqnr_db"]) == math.inf


def test_missing_images(cli, tiny: Path, tmp_path: Path) -> None:
    assert "nothing" in cli("compare", tiny, tiny, tmp_path / "nothing", code=2)
