"""`vggt-int8 export`, and what `run` leaves for it: further formats without the model, there or elsewhere."""

import json
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from vggt_int8.cli import formats
from vggt_int8.export import FORMATS
from vggt_int8.export.originals import SCALES
from vggt_int8.export.write import _NEEDS_CAMERAS, DEFAULT_FORMATS
from vggt_int8.images import find_images


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A run, for reading alone."""
    from tests.cli.conftest import DATA, Cli

    out = tmp_path_factory.mktemp("runs") / "out"
    photos = [DATA / "images" / name for name in ("landscape.png", "landscape_b.png")]
    Cli()("run", tiny, *photos, "-o", out, "--device", "cpu", "-f", "colmap,npz", "--link-images")
    return out


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def test_the_lists_of_the_command_line_are_those_of_the_writers() -> None:
    assert formats.FORMATS == FORMATS
    assert tuple(formats.DEFAULT_FORMATS.split(",")) == DEFAULT_FORMATS
    assert tuple(map(str, SCALES)) == formats.SCALES
    assert formats.NEED_CAMERAS == _NEEDS_CAMERAS


def test_run_writes_what_is_asked_for_and_the_report_lists_it(done: Path) -> None:
    report = json.loads((done / "report.json").read_text())
    assert {path.name for path in done.iterdir()} == {
        *("cameras.json", "images", "predictions.npz", "report.json", "scene", "sparse")
    }
    written = {entry["file"]: entry for entry in report["written"]}
    assert written.keys() == files_below(done) - {"report.json"}
    assert {entry["format"] for entry in written.values()} == {"cameras", "colmap", "images", "npz", "scene"}
    assert all(entry["bytes"] == (done / file).lstat().st_size for file, entry in written.items())
    assert written["images/landscape.png"]["link"].endswith("landscape.png")
    assert "images/landscape.png" not in report["files"]
    model = pycolmap.Reconstruction(done / "sparse/0")
    cameras = json.loads((done / "cameras.json").read_text())["images"]
    assert model.is_valid()
    for index, camera in enumerate(cameras):
        pose = model.images[index + 1].cam_from_world().matrix()
        assert np.abs(pose - np.array(camera["extrinsic"])).max() < 1e-4


def test_export_adds_formats_to_a_run_which_then_owns_them(cli, tmp_path: Path, tiny: Path, photos: list[Path]) -> None:
    out = tmp_path / "out"
    cli("run", tiny, *photos, "-o", out, "--device", "cpu", "-f", "glb", "--link-images")
    before = json.loads((out / "report.json").read_text())
    said = cli("export", out, "-f", "ply,colmap", "--max-points", 99)
    assert "ply, colmap of 2 images" in said
    report = json.loads((out / "report.json").read_text())
    assert report["inputs"] == before["inputs"]
    assert set(report["files"]) | {"images/landscape.png", "images/landscape_b.png"} == files_below(out)
    assert report["outputs"]["points"]["written"] == 99
    assert report["outputs"]["glb"] == before["outputs"]["glb"]
    assert report["exports"][0]["max_points"] == 99
    assert b"element vertex 99\n" in (out / "points.ply").read_bytes()

    whole = (out / "points.ply").read_bytes()
    assert "points.ply is there already" in cli("export", out, "-f", "ply", code=2)
    assert (out / "points.ply").read_bytes() == whole
    cli("export", out, "-f", "ply", "--max-points", 7, "--overwrite")
    assert b"element vertex 7\n" in (out / "points.ply").read_bytes()

    (out / "scene.glb").unlink()
    (out / "scene.glb").write_bytes(b"mine")
    (out / "sparse/0/notes.txt").write_text("mine")
    assert "holds what the report of no earlier run lists" in cli("export", out, "-f", "colmap", "--overwrite", code=2)
    (out / "sparse/0/notes.txt").unlink()
    cli("run", tiny, *photos, "-o", out, "--device", "cpu", "--overwrite")
    assert not (out / "sparse").exists(), "cleaned whole"
    assert not (out / "images").exists()


def test_export_elsewhere(cli, done: Path, tmp_path: Path) -> None:
    out = tmp_path / "splat"
    document = json.loads(
        cli("export", done, "-o", out, "-f", "colmap", "--copy-images", "--image-scales", "2,4", "--json")
    )
    assert document["command"] == "export"
    assert {path.name for path in out.iterdir()} == {"images", "images_2", "images_4", "report.json", "sparse"}
    assert (out / "sparse/0/points3D.bin").read_bytes() == (done / "sparse/0/points3D.bin").read_bytes()
    assert "is not empty" in cli("export", done, "-o", out, "-f", "glb", code=2)
    cli("export", done, "-o", out, "-f", "glb", "--overwrite")
    assert {path.name for path in out.iterdir()} == {"scene.glb", "report.json"}


@pytest.mark.slow
def test_tracks_and_refined_cameras_of_a_run(cli, tmp_path: Path, photos: list[Path]) -> None:
    model = tmp_path / "model"
    model.mkdir()
    data = photos[0].parent.parent
    config = json.loads((data / "tiny_vggt_config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "vggt"}))
    (model / "model.safetensors").symlink_to(data / "tiny_vggt.safetensors")
    out = tmp_path / "out"
    said = cli("run", model, *photos, "-o", out, "--device", "cpu", "-f", "tracks", "--tracks", "20", "--refine")
    report = json.loads((out / "report.json").read_text())
    assert 12 <= report["outputs"]["tracks"]["points"] <= 20
    assert len((out / "tracks.csv").read_text().splitlines()) == 1 + 2 * report["outputs"]["tracks"]["points"]
    refined = report["outputs"]["refine"]
    assert "refined cameras" in said
    assert refined["kept"] or refined["reason"] in said
    assert "refine" in report["seconds"]
    assert "needs the track head" in cli("run", "embedded", *photos, "-o", tmp_path / "o", "-f", "tracks", code=2)


def test_copies_of_photographs_are_not_read_as_photographs(done: Path, tmp_path: Path, cli) -> None:
    cli("export", done, "-o", tmp_path / "splat", "-f", "colmap", "--copy-images", "--image-scales", "2")
    (tmp_path / "own.png").write_bytes((tmp_path / "splat/images/landscape.png").read_bytes())
    with pytest.warns(UserWarning, match="4 pictures that vggt-int8 wrote"):
        assert find_images(str(tmp_path / "**/*.png")) == [tmp_path / "own.png"]


def test_what_cannot_be_is_said_before_anything_is_loaded(cli, done: Path, tmp_path: Path, photos: list[Path]) -> None:
    for arguments, word in (
        (("export", done, "-f", "obj"), "there is no format 'obj'"),
        (("export", done, "-f", "npz", "--image-scales", "2"), "give --copy-images or --link-images"),
        (("export", done, "-f", "npz", "--copy-images", "--link-images"), "contradict each other"),
        (("export", done, "-f", "npz", "--image-scales", "3", "--copy-images"), "there is no scale '3'"),
        (("export", done, "-f", "ply", "-o", tmp_path / "o", "--masks", tmp_path / "no"), "is no folder"),
        (("export", tmp_path, "-f", "npz"), "holds no saved scene"),
        (("run", "nowhere", *photos, "-o", tmp_path / "o", "-f", "glbb"), "did you mean 'glb'"),
    ):
        assert word in cli(*arguments, code=2), arguments
    assert not (tmp_path / "o").exists()
