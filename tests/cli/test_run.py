"""`vggt-int8 run` writes every output, the whole of it or nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vggt_int8 import VGGTInt8, load_images


def test_writes_all_outputs(cli, tiny: Path, photos: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = cli("run", tiny, *photos, "-o", out, "--recipe", "int8_dynamic", "--device", "cpu")
    assert str(out) in text
    assert {path.name for path in out.iterdir()} == {"cameras.json", "depth", "confidence", "points.ply", "report.json"}
    model = VGGTInt8.from_pretrained(tiny, recipe="int8_dynamic").eval()
    images = load_images(photos, size=model.config.img_size, patch_size=model.config.patch_size)
    with torch.inference_mode():
        depth = model(images).depth[0, ..., 0].numpy()
    maps = sorted((out / "depth").glob("*.npy"))
    for index, path in enumerate(maps):
        np.testing.assert_array_equal(np.load(path), depth[index])
        assert Image.open(path.with_suffix(".png")).size == depth[index].shape[::-1]
    assert len(maps) == len(photos)
    report = json.loads((out / "report.json").read_text())
    assert [Path(entry["file"]) for entry in report["inputs"]] == photos
    assert report["recipe"] == "int8_dynamic"
    assert "native" in report["backend"]
    assert set(report["seconds"]) == {"load_model", "load_images", "reconstruct", "write"}
    assert report["peak_memory_bytes"]["rss"] > 0
    assert report["versions"]["torch"] == torch.__version__


def test_a_saved_model_needs_no_recipe(cli, tiny_int8: Path, photos: list[Path], tmp_path: Path) -> None:
    cli(
        "run",
        tiny_int8,
        photos[0],
        "-o",
        tmp_path / "out",
        "--backend",
        "reference",
        "--dtype",
        "bf16",
        "--mode",
        "pad",
    )
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["recipe"] == "int8_dynamic"
    assert report["backend"].startswith(("reference", "portable"))
    assert report["dtype"] == "bfloat16"


def test_overwrite_must_be_asked_for(cli, tiny: Path, photos: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert "not empty" in cli("run", tiny, *photos, "-o", out, code=2)
    cli("run", tiny, *photos, "-o", out, "--overwrite")
    cli("run", tiny, photos[0], "-o", out, "--overwrite")
    assert (out / "mine.txt").read_text() == "mine"
    written = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    report = json.loads((out / "report.json").read_text())
    assert report["files"] == [name for name in written if name != "mine.txt"]
    assert len(report["inputs"]) == len(list((out / "depth").glob("*.npy"))) == 1  # of two images before


@pytest.mark.parametrize("name", ["depth/0000_landscape.npy", "depth/thesis.txt", "points.ply", "report.json"])
def test_overwrite_leaves_what_no_run_has_written(cli, photos: list[Path], tmp_path: Path, name: str) -> None:
    """Said before a model is looked for."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    said = cli("run", "no-such-model", *photos, "-o", tmp_path, "--overwrite", code=2)
    assert name in said
    assert "Nothing was replaced" in said
    assert (tmp_path / name).read_text() == "mine"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--dtype", "int4"], "fp32, fp16, bf16"),
        (["--mode", "stretch"], "crop"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--backend", "native"], "recipe"),
        (["absent.jpg"], "absent.jpg"),
    ],
)
def test_bad_input_leaves_nothing(
    cli, tiny: Path, photos: list[Path], tmp_path: Path, extra: list[str], message: str
) -> None:
    error = cli("run", tiny, *photos, *extra, "-o", tmp_path / "out", code=2)
    assert message in error
    assert len(error.strip().splitlines()) <= 3  # steps that were done before, then one line
    assert list(tmp_path.iterdir()) == []


def test_a_broken_image_is_named(cli, tiny: Path, photos: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(photos[0].read_bytes()[:500])
    assert "broken.png" in cli("run", tiny, photos[0], broken, "-o", tmp_path / "out", code=2)
    assert list(tmp_path.iterdir()) == [broken]
