"""`vggt-int8 run` writes every output, the whole of it or nothing."""

import hashlib
import json
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.warm import python
from vggt_int8 import VGGTConfig, VGGTInt8, load_images, load_recipe
from vggt_int8.cli import app, loading
from vggt_int8.images import load
from vggt_int8.recipe import expand, find_family


def test_writes_all_outputs(cli, tiny: Path, photos: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = cli("run", tiny, *photos, "-o", out, "--recipe", "int8_dynamic", "--device", "cpu")
    assert str(out) in text
    assert {path.name for path in out.iterdir()} == {
        *("cameras.json", "depth", "confidence", "sheet.jpg", "points.ply", "scene", "report.json")
    }
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


IMPORTED_WHEN_A_PHASE_BEGINS = """
import sys
from vggt_int8.cli import app
from vggt_int8.export import PhaseClock
phase = PhaseClock.phase
def told(clock, name):
    print(name, "vggt_int8.pretrained" in sys.modules, file=sys.stderr)
    return phase(clock, name)
PhaseClock.phase = told
app()
"""


@pytest.mark.slow
def test_the_seconds_of_loading_are_not_those_of_imports(tiny: Path, photos: list[Path], tmp_path: Path) -> None:
    command = ("run", tiny, photos[0], "-o", tmp_path / "out", "--device", "cpu")
    done = python("-c", IMPORTED_WHEN_A_PHASE_BEGINS, *command)
    assert done.returncode == 0, done.stderr
    assert "load_model True" in done.stderr


def test_the_report_says_how_to_repeat_the_run(
    cli, tiny: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["/anywhere/vggt-int8", "run", "a model", "photo.jpg"])
    chosen = ("--mode", "pad", "--frames-chunk", "1", "--confidence-percentile", "40", "--max-points", "50")
    looks = ("--global-attention", "keyframes", "--keyframes", "1")
    cli("run", tiny, *photos, "-o", out, "--device", "cpu", *chosen, *looks, "-r", "int8_weight_only")
    report = json.loads((out / "report.json").read_text())
    assert report["format_version"] == 2
    assert report["settings"] == {
        "backend": "auto",
        "mode": "pad",
        "frames_chunk": 1,
        "global_attention": "keyframes",
        "keyframes": 1,
        "points": "depth",
        "confidence_percentile": 40,
        "max_points": 50,
        "seed": 0,
        "max_megapixels": None,
        "formats": ["ply", "depth"],
        **dict.fromkeys(("min_confidence", "edges", "voxel", "masks", "images", "tracks")),
        "refine": False,
        "fast_jpeg": False,
        "normals": False,
        "shared_camera": False,
        "image_scales": [],
    }
    family = find_family("vggt", ())
    assert report["quantization"] == expand(load_recipe("int8_weight_only"), family).to_dict()
    assert report["model_identity"]["value"]
    assert report["runtime"]["mode"] in ("fused", "plain")
    assert report["runtime"]["global_attention"] == "keyframes (K = 1)"
    assert len(report["runtime"]["attention_kernels"]) == 1
    assert report["inputs"][0]["sha256"] == hashlib.sha256(photos[0].read_bytes()).hexdigest()
    assert report["command_line"] == "vggt-int8 run 'a model' photo.jpg"
    assert report["folder"] == str(Path.cwd())
    plain = tmp_path / "plain"
    cli("run", tiny, photos[0], "-o", plain, "--device", "cpu")
    report = json.loads((plain / "report.json").read_text())
    assert report["quantization"] is None
    assert report["runtime"]["mode"] == "plain"
    assert report["runtime"]["reason"]
    assert report["runtime"]["attention_kernels"] == ["PyTorch scaled_dot_product_attention"]


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
    assert report["backend"].startswith("reference")
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
    ("report", "reason"),
    [
        ('{"format_version": 1, "inputs": []}', "does not list the files"),
        ('{"program": "vggt-int8", "comm', "is not a whole JSON file"),
    ],
)
def test_overwrite_says_why_results_are_not_replaced(
    cli, photos: list[Path], tmp_path: Path, report: str, reason: str
) -> None:
    (tmp_path / "depth").mkdir()
    (tmp_path / "depth" / "0000_a.npy").write_text("mine")
    (tmp_path / "report.json").write_text(report)
    said = cli("run", "no-such-model", *photos, "-o", tmp_path, "--overwrite", code=2)
    assert f"{tmp_path / 'report.json'} {reason}" in said
    assert "remove them by hand, or choose another folder" in said
    assert "depth/0000_a.npy, report.json. Nothing was replaced" in said
    assert (tmp_path / "depth" / "0000_a.npy").read_text() == "mine"


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


@pytest.mark.slow
def test_points_are_chosen_as_in_python(cli, tiny: Path, photos: list[Path], tmp_path: Path) -> None:
    def points(*options: object) -> dict[str, int]:
        cli("run", tiny, *photos, "-o", tmp_path / "out", "--overwrite", *options)
        return json.loads((tmp_path / "out" / "report.json").read_text())["outputs"]["points"]

    everything = points("--confidence-percentile", 0)
    assert everything["low_confidence"] == 0
    assert points("--confidence-percentile", 90)["low_confidence"] == pytest.approx(
        0.9 * everything["written"], rel=0.05
    )
    fewer = points("--max-points", 7, "--points", "depth")
    assert fewer["written"] == 7
    assert (tmp_path / "out" / "points.ply").read_bytes().partition(b"end_header\n")[2] != b""
    before = (tmp_path / "out" / "points.ply").read_bytes()
    assert points("--max-points", 7, "--points", "world_points")["written"] == 7
    assert (tmp_path / "out" / "points.ply").read_bytes() != before


def test_bad_point_options_and_images_stop_before_a_model_is_loaded(
    cli, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vggt_int8.cli.run.load_model", lambda *_, **__: pytest.fail("loaded"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    for extra, message in (
        (["--confidence-percentile", "101"], "--confidence-percentile: 101 is out of range"),
        (["--confidence-percentile", "nan"], "--confidence-percentile: nan is out of range"),
        (["--max-points", "0"], "--max-points: 0 is out of range"),
        (["--points", "head"], "head"),
        (["--max-megapixels", "0.001"], "too large"),
        ([broken], "broken.png is not an image"),
    ):
        assert message in cli("run", "model", *photos, *extra, "-o", tmp_path / "out", code=2)
    monkeypatch.setattr("vggt_int8.cli.compare.load_model", lambda *_, **__: pytest.fail("loaded"))
    assert "broken.png is not an image" in cli("compare", "a", "b", broken, code=2)


def test_pictures_are_read_while_the_model_is_loaded(
    cli, photos: list[Path], tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = threading.Event()
    real_read, real_load = load._read, loading.load_model

    def tells(*arguments: object) -> object:
        read.set()
        return real_read(*arguments)

    def waits(*arguments: object, **options: object) -> object:
        assert read.wait(timeout=30)
        return real_load(*arguments, **options)

    monkeypatch.setattr(load, "_read", tells)
    monkeypatch.setattr("vggt_int8.cli.run.load_model", waits)
    cli("run", tiny, *photos, "-o", tmp_path / "out", "-f", "ply")
    entries = json.loads((tmp_path / "out" / "report.json").read_text())["inputs"]
    assert [entry["sha256"] for entry in entries] == [hashlib.sha256(p.read_bytes()).hexdigest() for p in photos]


def test_points_that_a_model_has_no_head_for_are_refused_before_it_runs(
    cli, photos: list[Path], tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((tiny / "config.json").read_text())
    headless = tmp_path / "headless"
    VGGTInt8(VGGTConfig(**{**config, "enable_point": False})).save_pretrained(headless)
    monkeypatch.setattr(VGGTInt8, "forward", lambda *_, **__: pytest.fail("went on"))
    error = cli("run", headless, *photos, "-o", tmp_path / "out", "--points", "world_points", code=2)
    assert "--points world_points needs the point head" in error
    blind = tmp_path / "blind"
    VGGTInt8(VGGTConfig(**{**config, "enable_camera": False})).save_pretrained(blind)
    error = cli("run", blind, *photos, "-o", tmp_path / "out", "-f", "ply", "--refine", code=2)
    assert "--refine needs the camera head" in error
    error = cli("run", "embedded", *photos, "-o", tmp_path / "out", "--tracks", "9", code=2)
    assert "--tracks needs the track head" in error


def test_transparent_pixels_make_no_points_and_are_grey_and_counted(cli, tiny: Path, tmp_path: Path) -> None:
    image = Image.new("RGBA", (96, 72), (10, 100, 200, 0))
    image.paste((10, 100, 200, 255), (24, 18, 72, 54))
    image.save(tmp_path / "cut.png")
    out = tmp_path / "out"
    said = cli("run", tiny, tmp_path / "cut.png", "-o", out, "--confidence-percentile", 0)
    report = json.loads((out / "report.json").read_text())
    height, width = report["inputs"][0]["model_size"]
    transparent, points = report["inputs"][0]["transparent_pixels"], report["outputs"]["points"]
    assert transparent == pytest.approx(height * width * 3 / 4, rel=0.1)
    assert points["transparent"] == transparent
    assert points["padding"] == 0
    assert sum(points.values()) == height * width
    assert f"{transparent:,}" in said
    body = (out / "points.ply").read_bytes().partition(b"end_header\n")[2]
    colors = np.frombuffer(body, [("xyz", "<f4", 3), ("rgb", "u1", 3), ("confidence", "<f4")])["rgb"]
    assert len(colors) == points["written"] > 0
    assert colors.mean(axis=0) == pytest.approx([10, 100, 200], abs=20)
    assert not (colors == 255).all(axis=1).any()
    for kind in ("depth", "confidence"):
        with Image.open(out / kind / "0000_cut.png") as picture:
            grey = (np.asarray(picture.convert("RGB")) == 128).all(axis=-1)
        assert grey.sum() >= transparent
        assert not grey[height // 2, width // 2]


@pytest.mark.usefixtures("no_image_plugins")
def test_files_and_frames_that_are_not_used_are_told_once(cli, tiny: Path, photos: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    frames = [Image.new("RGB", (56, 42), (i * 90, 9, 9)) for i in range(3)]
    frames[0].save(folder / "a.gif", save_all=True, append_images=frames[1:])
    (folder / "b.HEIC").write_bytes(b"x")
    result = CliRunner().invoke(app, ["run", str(tiny), str(folder), "-o", str(tmp_path / "out")])
    assert result.exit_code == 0
    lines = [line for line in result.stderr.splitlines() if "Warning" in line]
    assert len(lines) == 2
    assert "1 of 2 entries are not used: 1 .HEIC (b.HEIC; HEIC/HEIF needs" in lines[0]
    assert "a.gif (GIF, 3 frames)" in lines[1]
    # What was written is not read again.
    assert "holds no images" in cli("run", tiny, tmp_path / "out" / "depth", "-o", tmp_path / "again", code=2)
