"""`run` in windows: of pictures, a video and a folder that grows; stopped and gone on; all said in report.json."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.video.clips import write_clip
from vggt_int8.cli.frames import Growing, Pictures
from vggt_int8.interrupts import WORDS, heeded
from vggt_int8.scene import load_scene
from vggt_int8.stream import StreamReport
from vggt_int8.stream.stream import Stream

WINDOWS = ("--window", "4", "--overlap", "2", "--device", "cpu", "-f", "ply")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine small pictures, no two alike."""
    folder = tmp_path_factory.mktemp("frames")
    noise = np.random.default_rng(0).integers(0, 255, (12, 30, 3), dtype=np.uint8)
    wide = Image.fromarray(noise).resize((150, 42), Image.Resampling.BICUBIC)
    for number in range(9):
        wide.crop((8 * number, 0, 8 * number + 56, 42)).save(folder / f"{number}.png")
    return folder


def document(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    return found


def test_pictures_in_windows_that_are_gone_when_all_is_written(
    cli: Any, tiny: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    cli("run", tiny, folder, "-o", out, *WINDOWS)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    scene, report = load_scene(out), document(out)
    assert [Path(name).name for name in scene.names] == [f"{number}.png" for number in range(9)]
    cameras = json.loads((out / "cameras.json").read_text())["images"]
    assert scene.extrinsic is not None
    np.testing.assert_allclose([camera["extrinsic"] for camera in cameras], scene.extrinsic.numpy(), rtol=1e-6)
    assert (out / "points.ply").is_file()
    digests = [hashlib.sha256((folder / f"{number}.png").read_bytes()).hexdigest() for number in range(9)]
    assert [entry["sha256"] for entry in report["inputs"]] == digests
    stream = report["stream"]
    assert (stream["frames"], stream["windows"], stream["window"], stream["overlap"]) == (9, 4, 4, 2)
    assert [seam["first_frame"] for seam in stream["seams"]] == [4, 6, 8]
    assert {"rotation_degrees", "translation", "depth", "scale", "inliers"} <= stream["seams"][0].keys()
    assert stream["latency_seconds"]["p95"] > 0
    assert stream["frames_per_second"] > 0
    assert report["settings"]["window"] == 4


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_behind_the_last_window(
    cli: Any, tiny: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('format = 2\ndescription = "mine"\nweights = "int8"\nactivations = "dynamic"\n')
    cli("run", tiny, folder, "-o", tmp_path / "whole", *WINDOWS, "--no-loops", "-r", recipe)
    reconstruct, windows = Stream._reconstruct, list[int]()

    def stopped_at_the_third(self: Stream, pixels: Any, *rest: Any) -> Any:
        windows.append(len(pixels))
        if len(windows) == 3:
            raise KeyboardInterrupt
        return reconstruct(self, pixels, *rest)

    command = ("run", tiny, folder, "-o", tmp_path / "cut", "-r", recipe, *WINDOWS, "--no-loops")
    monkeypatch.setattr(Stream, "_reconstruct", stopped_at_the_third)
    cli(*command, code=130)
    assert not (tmp_path / "cut").exists()
    assert len(list((tmp_path / "cut.windows" / "windows").iterdir())) == 2
    cli(*command[:-1], "--overlap", "1", "--no-loops", code=2)  # other settings: said, and nothing lost
    text = recipe.read_text()
    recipe.write_text(text.replace('"dynamic"', '"none"'))
    assert "recipe.activations was 'dynamic' and is 'none'" in cli(*command, code=2)
    recipe.write_text(text)
    monkeypatch.setattr(Stream, "_reconstruct", reconstruct)
    cli(*command)
    assert document(tmp_path / "cut")["stream"]["resumed_at"] == 6
    assert not (tmp_path / "cut.windows").exists()
    whole, cut = (load_scene(tmp_path / name) for name in ("whole", "cut"))
    assert whole.names == cut.names
    assert document(tmp_path / "cut")["stream"]["windows"] == 4
    assert whole.depth is not None
    assert cut.depth is not None
    np.testing.assert_allclose(cut.depth.numpy(), whole.depth.numpy(), rtol=1e-4)


def test_pictures_that_were_replaced_are_others(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "frames")
    pictures = Pictures(sorted((tmp_path / "frames").iterdir()))
    before = pictures.settings()
    shutil.copy(folder / "3.png", tmp_path / "frames" / "4.png")
    assert pictures.settings() != before


@pytest.mark.slow
def test_a_video_whole_and_in_windows(cli: Any, tiny: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", [i / 10 for i in range(20)], noise=[20.0] * 20)
    cli("run", tiny, clip, "-o", tmp_path / "whole", "--fps", "5", "--device", "cpu", "-f", "ply")
    cli("run", tiny, clip, "-o", tmp_path / "windows", "--fps", "5", *WINDOWS, "--no-loops")
    for out in (tmp_path / "whole", tmp_path / "windows"):
        assert load_scene(out).names == [f"clip_{second:09.3f}.png" for second in np.arange(10) / 5]
        assert document(out)["video"]["fps"] == 5
        assert len(document(out)["video"]["sha256"]) == 64
        assert document(out)["inputs"][3]["seconds"] == pytest.approx(0.6)
    cli("run", tiny, clip, "-o", tmp_path / "default", "--end", "1", "--device", "cpu", "-f", "ply")
    assert len(load_scene(tmp_path / "default").names) == 2  # two a second


@pytest.mark.slow
def test_a_folder_that_grows(cli: Any, tiny: Path, folder: Path, tmp_path: Path) -> None:
    grows = tmp_path / "grows"
    grows.mkdir()
    for number in range(2):
        shutil.copy(folder / f"{number}.png", grows)

    def come() -> None:
        for number in range(2, 6):
            time.sleep(0.5)
            shutil.copy(folder / f"{number}.png", grows)

    thread = threading.Thread(target=come)
    thread.start()
    cli("run", tiny, grows, "-o", tmp_path / "out", *WINDOWS, "--follow", "3")
    thread.join()
    assert [Path(name).name for name in load_scene(tmp_path / "out").names] == [f"{number}.png" for number in range(6)]
    assert document(tmp_path / "out")["follows"] == str(grows)


@pytest.fixture
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vggt_int8.cli.frames.POLL_SECONDS", 0.02)


@pytest.mark.usefixtures("looks_often")
def test_pictures_that_come_while_the_network_is_busy_are_waited_for(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "0.png", tmp_path)
    frames = Growing(tmp_path, patience=0.2).frames(0)
    assert next(frames).name == "0.png"
    shutil.copy(folder / "1.png", tmp_path)
    time.sleep(0.3)
    assert [path.name for path in frames] == ["1.png"]


@pytest.mark.usefixtures("looks_often")
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_a_picture_whose_writer_stops_for_a_while_is_waited_for(
    tmp_path: Path, folder: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vggt_int8.cli.frames.QUIET_SECONDS", 1)
    whole, grows = tmp_path / f"whole.{suffix}", tmp_path / "grows"
    Image.open(folder / "0.png").save(whole)
    grows.mkdir()
    content = whole.read_bytes()
    place = grows / whole.name
    place.write_bytes(content[:-20])
    frames = Growing(grows, patience=0.1).frames(0)

    def goes_on() -> None:
        time.sleep(0.3)  # several looks, at all of which the size is the same; longer than the patience, too
        place.write_bytes(content)

    thread = threading.Thread(target=goes_on)
    thread.start()
    assert [path.read_bytes() for path in frames] == [content]
    thread.join()


@pytest.mark.usefixtures("looks_often")
def test_a_picture_with_data_behind_its_end_is_taken_when_it_is_quiet(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vggt_int8.cli.frames.QUIET_SECONDS", 0.2)
    (tmp_path / "0.png").write_bytes((folder / "0.png").read_bytes() + b"a camera's own")
    (tmp_path / "1.png").touch()  # never written: not waited for
    (tmp_path / "2.png").mkdir()
    os.mkfifo(tmp_path / "3.png")
    assert [path.name for path in Growing(tmp_path, patience=0.1).frames(0)] == ["0.png"]


@pytest.mark.slow
def test_a_video_that_is_cut_off_gives_windows_and_says_where_it_ended(
    cli: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = write_clip(tmp_path / "clip.mkv", [i / 10 for i in range(40)], noise=[20.0] * 40)
    content = clip.read_bytes()
    clip.write_bytes(content[: len(content) // 2])
    command = ("run", tiny, clip, "-o", tmp_path / "out", "--fps", "5", *WINDOWS, "--no-loops")

    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:  # while results are written, when nothing is left to be read
        patched.setattr("vggt_int8.export.write_scene", stopped)
        cli(*command, code=130)
    cli(*command)
    report = document(tmp_path / "out")
    assert 4 <= report["stream"]["frames"] == report["stream"]["resumed_at"] < 20
    assert "ends at" in report["video"]["ending"]
    assert report["video"]["ending_seconds"] < 3.9


@pytest.mark.slow
def test_a_folder_that_is_followed_until_a_signal_comes_is_finished_by_the_same_command(
    cli: Any, tiny: Path, folder: Path, tmp_path: Path
) -> None:
    grows, out = tmp_path / "grows", tmp_path / "out"
    shutil.copytree(folder, grows)
    command = ("run", tiny, grows, "-o", out, *WINDOWS, "--no-loops", "--follow")
    windows, threads = tmp_path / "out.windows" / "windows", waited_for()
    with terminated_when(lambda: len(list(windows.glob("*/window.json"))) == 3):
        cli(*command, "30", code=143)
    assert waited_for() == threads
    assert not out.exists()
    cli(*command, "0.5")
    assert document(out)["stream"]["resumed_at"] == 8
    assert len(load_scene(out).names) == 9  # the last one had waited for a whole window


def waited_for() -> set[threading.Thread]:
    """Threads without whose end a process does not end."""
    return {thread for thread in threading.enumerate() if not thread.daemon}


@contextmanager
def terminated_when(condition: Callable[[], bool]) -> Iterator[None]:
    """The block gets SIGTERM, as the program hears it."""
    ended, before = threading.Event(), {number: signal.getsignal(number) for number in WORDS}

    def watch() -> None:
        while not ended.wait(0.05):
            if condition():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=watch)
    try:
        with heeded():
            thread.start()
            yield
            ended.set()
    finally:
        ended.set()
        thread.join()
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--overlap", "2"], "--overlap needs --window"),
        (["--no-loops"], "--no-loops needs --window"),
        (["--window", "4", "--overlap", "4"], "--overlap 4 must be less than --window 4"),
        (["--fps", "2"], "--fps is for a video"),
        (["--follow", "3"], "give --window, too"),
        (["--window", "4", "--points", "world_points"], "point head"),
        (["--window", "4", "--tracks", "8"], "leave one out"),
    ],
)
def test_what_does_not_go_together_is_said(
    cli: Any, tiny: Path, folder: Path, tmp_path: Path, arguments: list[str], word: str
) -> None:
    text = cli("run", tiny, folder, "-o", tmp_path / "out", "--device", "cpu", *arguments, code=2)
    assert word in " ".join(text.split())
    assert not (tmp_path / "out").exists()


def test_a_video_beside_pictures_is_refused(cli: Any, tiny: Path, folder: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", [0, 0.1])
    text = cli("run", tiny, folder, clip, "-o", tmp_path / "out", code=2)
    assert "give one video alone" in " ".join(text.split())
    text = cli("run", tiny, clip, "-o", tmp_path / "out", "--fps", "2", "--every", "3", code=2)
    assert "both say which frames" in " ".join(text.split())


def test_the_report_of_nothing_is_json() -> None:
    report = StreamReport(4, 1).to_document()
    json.dumps(report, allow_nan=False)
    assert report["latency_seconds"] == {"median": None, "p95": None, "largest": None}
    assert report["frames_per_second"] is None
