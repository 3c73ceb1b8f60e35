"""`vggt-int8 batch` with a real model; what its processes do when they die is tested in tests/batch."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from tests.video.clips import write_clip
from tests.warm import python
from vggt_int8.batch import Board, supervise
from vggt_int8.cli import app, batch, batch_worker
from vggt_int8.cli.guard import guarded

SCENES = Path(__file__).parents[2] / "vggt_int8" / "assets" / "scenes"


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Two good ones, of which one has its images a folder below; one without images, one with a damaged one."""
    for name, source in (("a", "room"), ("b/images", "table"), ("bad", "room")):
        (tmp_path / "scenes" / name).mkdir(parents=True)
        for i in range(2):
            shutil.copy(SCENES / source / f"image_{i}.png", tmp_path / "scenes" / name)
    (tmp_path / "scenes" / "bad" / "image_1.png").write_bytes(b"damaged")
    (tmp_path / "scenes" / "empty").mkdir()
    return tmp_path / "scenes"


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers run in this process, without what a process of their own costs."""

    def run(board: Board, commands: Sequence[Callable[[str], Sequence[str]]], note: Callable[[str], None]) -> None:
        for command in commands:
            try:
                guarded(batch_worker.work)(batch_worker.from_argument(command("token")[-1]))
            except typer.Exit as ended:
                if ended.exit_code == supervise.BAD_INPUT:
                    raise supervise.BadInput from ended
                raise

    monkeypatch.setattr(supervise, "supervise", run)


def statuses(summary: dict[str, Any]) -> dict[str, str]:
    return {row["scene"]: row["status"] for row in summary["rows"]}


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_a_video_is_a_scene(cli, bare_int8: Path, tmp_path: Path) -> None:
    (tmp_path / "scenes" / "a").mkdir(parents=True)
    shutil.copy(SCENES / "room" / "image_0.png", tmp_path / "scenes" / "a")
    assert "--fps is for videos" in cli(
        "batch", bare_int8, tmp_path / "scenes", "-o", tmp_path / "o", "--fps", 2, code=2
    )
    write_clip(tmp_path / "scenes" / "clip.mp4", [i / 10 for i in range(9)])
    out = tmp_path / "out"
    cli("batch", bare_int8, tmp_path / "scenes", "-o", out, "--device", "cpu", "--fps", 5, "-f", "ply")
    assert statuses(json.loads((out / "summary.json").read_text())) == {"a": "done", "clip.mp4": "done"}
    report = json.loads((out / "clip.mp4" / "report.json").read_text())
    assert [entry["seconds"] for entry in report["inputs"]] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert (report["video"]["fps"], len(report["video"]["sha256"])) == (5, 64)
    assert "video" not in json.loads((out / "a" / "report.json").read_text())


@pytest.mark.usefixtures("in_this_process")
def test_a_video_may_come_after_scenes_of_pictures(cli, bare_int8: Path, tmp_path: Path) -> None:
    (tmp_path / "scenes" / "a").mkdir(parents=True)
    shutil.copy(SCENES / "room" / "image_0.png", tmp_path / "scenes" / "a")
    command = ("batch", bare_int8, tmp_path / "scenes", "-o", tmp_path / "out", "--device", "cpu", "-f", "ply")
    cli(*command)
    write_clip(tmp_path / "scenes" / "clip.mp4", [i / 10 for i in range(9)])
    assert statuses(json.loads(cli(*command, "--json"))) == {"a": "done", "clip.mp4": "done"}


@pytest.mark.usefixtures("in_this_process")
def test_scenes_are_reconstructed_and_bad_ones_listed(cli, bare_int8: Path, scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (scenes / "loose.JPG").touch()
    (scenes / "link\n").symlink_to("nowhere")
    told = cli("batch", bare_int8, scenes, "-o", out, "--device", "cpu", code=1)
    assert "bad (cpu): ValueError" in told
    assert "link\\n (cpu): FileNotFoundError" in told
    assert "itself are in no scene, so they are not used: loose.JPG" in told
    (scenes / "link\n").unlink()
    summary = json.loads((out / "summary.json").read_text())
    failed = dict.fromkeys(("bad", "empty", "link\n"), "failed")
    assert statuses(summary) == {"a": "done", "b": "done", **failed}
    assert (summary["done"], summary["failed"], summary["images"]) == (2, 3, 4)
    assert "image_1.png" in next(row["error"] for row in summary["rows"] if row["scene"] == "bad")
    report = json.loads((out / "b" / "report.json").read_text())
    assert (report["command"], len(report["inputs"]), report["recipe"]) == ("batch", 2, "int8_dynamic")
    assert set(report["seconds"]) == {"load_images", "reconstruct", "to_host", "write"}
    assert (out / "a" / "cameras.json").is_file()

    before = (out / "a" / "report.json").stat()
    for name in ("bad", "empty"):
        shutil.copy(SCENES / "room" / "image_1.png", scenes / name)
    summary = json.loads(cli("batch", bare_int8, scenes, "-o", out, "--device", "cpu", "--json"))
    assert set(statuses(summary).values()) == {"done"}
    assert (out / "a" / "report.json").stat() == before

    shutil.copy(SCENES / "room" / "image_2.png", scenes / "a")
    (scenes / "b" / "images" / "notes.txt").touch()
    (out / "bad" / "report.json").write_text("{")
    again = ("batch", bare_int8, scenes, "-o", out, "--device", "cpu")
    assert "other images than those that were used are now in a: remove" in cli(*again, code=1)
    rows = {row["scene"]: row for row in json.loads((out / "summary.json").read_text())["rows"]}
    assert [rows[name].get("images_changed") for name in ("a", "b", "bad")] == [True, False, None]
    assert (rows["bad"]["status"], rows["bad"]["stage"]) == ("failed", "report")
    assert "bad/report.json is damaged" in rows["bad"]["error"]


@pytest.mark.usefixtures("in_this_process")
def test_a_scene_that_is_tried_twice_counts_once(
    cli, bare_int8: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(scenes / "bad")
    shutil.rmtree(scenes / "empty")

    def fail(*_: object) -> None:
        raise RuntimeError("no memory left")

    monkeypatch.setattr(batch_worker.Reconstruct, "compute", fail)
    told = cli("batch", bare_int8, scenes, "-o", tmp_path / "out", "--device", "cpu", "--retries", 2, code=1)
    assert told.count("no memory left") == 6
    assert "\n2 scenes in " in told


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_the_same_as_run_writes(cli, bare_int8: Path, scenes: Path, tmp_path: Path) -> None:
    shutil.rmtree(scenes / "bad")
    shutil.rmtree(scenes / "empty")
    attention = ("--device", "cpu", "--global-attention", "keyframes", "--keyframes", 1)
    cli("batch", bare_int8, scenes, "-o", tmp_path / "out", *attention)
    cli("run", bare_int8, scenes / "a", "-o", tmp_path / "run", *attention)
    report = json.loads((tmp_path / "out" / "a" / "report.json").read_text())
    assert (report["settings"]["global_attention"], report["settings"]["keyframes"]) == ("keyframes", 1)
    for name in ("cameras.json", "points.ply"):
        assert (tmp_path / "out" / "a" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()

    cli("export", tmp_path / "out" / "a", "-f", "glb")
    report = json.loads((tmp_path / "out" / "a" / "report.json").read_text())
    assert (report["command"], "scene.glb" in report["files"]) == ("batch", True)
    summary = json.loads(cli("batch", bare_int8, scenes, "-o", tmp_path / "out", *attention, "--json"))
    assert statuses(summary) == {"a": "done", "b": "done"}
    few = ("batch", bare_int8, scenes, "-o", tmp_path / "glb", "--device", "cpu", "-f", "glb", "--max-points", 7)
    assert [row["points"] for row in json.loads(cli(*few, "--json"))["rows"]] == [7, 7]


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_tracks_and_refined_cameras_as_run_has_them(cli, int8_checkpoint: Path, tmp_path: Path) -> None:
    for name in ("room", "transparent"):
        (tmp_path / "scenes" / name).mkdir(parents=True)
        Image.new("RGBA", (96, 72)).save(tmp_path / "scenes" / name / "0.png")
    for i in range(2):
        shutil.copy(SCENES / "room" / f"image_{i}.png", tmp_path / "scenes" / "room" / f"{i}.png")
    wanted = ("--format", "tracks", "--tracks", 16, "--refine", "--device", "cpu")
    cli("batch", int8_checkpoint, tmp_path / "scenes", "-o", tmp_path / "out", *wanted, code=1)
    cli("run", int8_checkpoint, tmp_path / "scenes" / "room", "-o", tmp_path / "run", *wanted)
    places = (tmp_path / "out" / "room", tmp_path / "run")
    tables = [(place / "tracks.csv").read_text() for place in places]
    assert tables[0] == tables[1]
    assert len(tables[0].splitlines()) == 1 + 16 * 2
    reports = [json.loads((place / "report.json").read_text()) for place in places]
    assert reports[0]["outputs"]["refine"] == reports[1]["outputs"]["refine"]
    assert (reports[0]["settings"]["tracks"], reports[0]["settings"]["refine"]) == (16, True)
    rows = json.loads((tmp_path / "out" / "summary.json").read_text())["rows"]
    assert "has no points to track" in next(row["error"] for row in rows if row["scene"] == "transparent")


@pytest.mark.usefixtures("in_this_process")
def test_what_no_scene_can_have_is_said_once(cli, bare_int8: Path, scenes: Path, tmp_path: Path) -> None:
    wanted = ("-o", tmp_path / "out", "--device", "cpu")
    assert "--tracks needs the track head" in cli("batch", bare_int8, scenes, *wanted, "--tracks", 9, code=2)
    attention = ("--global-attention", "frames:9")
    # Nothing was done as requested before, so that this is another request.
    assert "has 9 words, but the network has" in cli("batch", bare_int8, scenes, *wanted, *attention, code=2)
    assert "keyframes=2 has no effect" in cli("batch", bare_int8, scenes, *wanted, "--keyframes", 2, code=2)


def test_other_settings_and_places_are_refused_first(cli, bare_int8: Path, scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    assert "not one of `batch`" in cli("batch", bare_int8, scenes, "-o", tmp_path / "out", "--device", "cpu", code=2)
    assert "is not there" in cli("batch", bare_int8, tmp_path / "no", "-o", tmp_path / "new", code=2)
    assert "holds no folders" in cli("batch", bare_int8, scenes / "empty", "-o", tmp_path / "new", code=2)
    for inside in (scenes, scenes / "out", scenes / "a" / "out"):
        assert "whose folders are scenes" in cli("batch", bare_int8, scenes, "-o", inside, code=2)
    assert not (tmp_path / "new").exists()
    assert not (scenes / "out").exists()


def test_settings_are_compared_by_what_they_say(
    cli, tiny: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model may be at another path on another machine, and a file of a recipe may be edited."""
    monkeypatch.setattr(batch, "_work_off", lambda *_: None)
    recipe = tmp_path / "mine.toml"
    recipe.write_text('format = 2\ndescription = "mine"\nweights = "int8"\nactivations = "dynamic"\n')
    command = (scenes, "-o", tmp_path / "out", "--device", "cpu", "-r")
    shutil.copytree(tiny, tmp_path / "elsewhere")
    for model, path in ((tiny, recipe), (tmp_path / "elsewhere", tmp_path / "scenes" / ".." / "mine.toml")):
        assert "4 were not tried" in CliRunner().invoke(app, ["batch", str(model), *map(str, (*command, path))]).output
    recipe.write_text(recipe.read_text().replace('"dynamic"', '"none"'))
    told = cli("batch", tiny, *command, recipe, code=2)
    assert "other settings (recipe.activations was 'dynamic' and is 'none')" in told


@pytest.mark.slow
def test_processes_of_their_own(scenes: Path, bare_int8: Path, tmp_path: Path) -> None:
    done = python("-m", "vggt_int8", "batch", bare_int8, scenes, "-o", tmp_path / "out", "--device", "cpu")
    assert done.returncode == 1, done.stderr
    assert "2 of 4 scenes are in" in done.stdout
    assert "killed" not in done.stderr


@pytest.mark.exhaustive
def test_a_launcher_spreads_it(scenes: Path, tmp_path: Path) -> None:
    """Two processes of torchrun, as `accelerate launch` starts them on GPUs (on CPUs it starts a single one): all
    scenes are through, although one process has to end with an error.
    """
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "vggt_int8"]
    command = [*launch, "batch", "embedded", str(scenes), "-o", str(tmp_path / "out"), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("4 scenes, ") == 2
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert statuses(summary) == {"a": "done", "b": "done", "bad": "failed", "empty": "failed"}
