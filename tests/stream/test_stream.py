"""Windows of a model that knows the truth give the truth back: aligned, resumed, in bounded memory, loops closed."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.kills import killed_before
from tests.stream.oracle import Oracle
from vggt_int8.eval.metrics import trajectory_error
from vggt_int8.scenes import SceneBatch, render_scenes, scene_seeds
from vggt_int8.stream import Stream, StreamFrame
from vggt_int8.stream.frames import Source
from vggt_int8.stream.state import finished_names
from vggt_int8.video import VideoFrame

FRAMES, SIDE = 23, 56


@pytest.fixture(scope="module")
def batch() -> SceneBatch:
    """An ordered path; images of whole 8-bit values, as pictures have."""
    made = render_scenes(scene_seeds("held_out", [1000]), FRAMES, (SIDE, SIDE), supersample=1)
    made.images = (made.images * 255).round() / 255
    return made


def pictures(batch: SceneBatch) -> list[np.ndarray]:
    return [(image.permute(1, 2, 0) * 255).round().byte().numpy() for image in batch.images[0]]


def trajectory(frames: list[StreamFrame]) -> Tensor:
    return torch.stack([frame.extrinsic for frame in frames])


def rejoined(stream: Stream) -> Tensor:
    return torch.cat([scene.extrinsic for scene in stream.scenes() if scene.extrinsic is not None])


@pytest.mark.parametrize(("window", "overlap"), [(8, 3), (8, 7), (30, 4), (2, 1)])
def test_every_frame_comes_once_in_order_and_where_it_is(batch: SceneBatch, window: int, overlap: int) -> None:
    stream = Stream(Oracle(batch), pictures(batch), window=window, overlap=overlap)
    frames = list(stream)
    assert [frame.index for frame in frames] == list(range(FRAMES))
    size = frames[1].depth.median() / batch.depth[0, 1].median()
    path = batch.extrinsic[0, :, :, 3].abs().max().item()
    found = trajectory(frames)
    torch.testing.assert_close(found[..., :3], batch.extrinsic[0, ..., :3], atol=2e-4, rtol=0)
    torch.testing.assert_close(found[..., 3] / size, batch.extrinsic[0, ..., 3], atol=1e-3 * path, rtol=0)
    torch.testing.assert_close(torch.stack([f.depth for f in frames]) / size, batch.depth[0], atol=0, rtol=2e-3)
    report = stream.report.to_document()
    assert report["frames"] == FRAMES
    assert len(report["seams"]) == report["windows"] - 1 == max(-(-(FRAMES - window) // (window - overlap)), 0)
    assert all(seam["rotation_degrees"] < 0.05 and seam["inliers"] > 0.99 for seam in report["seams"])
    assert report["frames_per_second"] > 0
    assert report["latency_seconds"]["largest"] >= report["latency_seconds"]["median"] > 0


def test_a_third_of_wrong_pixels_moves_nothing(batch: SceneBatch) -> None:
    frames = list(Stream(Oracle(batch, wrong=0.33), pictures(batch), window=8, overlap=3))
    size = frames[1].extrinsic[:, 3].norm() / batch.extrinsic[0, 1, :, 3].norm()
    path = batch.extrinsic[0, :, :, 3].abs().max().item()
    torch.testing.assert_close(trajectory(frames)[..., 3] / size, batch.extrinsic[0, ..., 3], atol=5e-3 * path, rtol=0)


def test_frames_may_be_of_any_kind(batch: SceneBatch, tmp_path: Path) -> None:
    arrays = pictures(batch)
    paths = [tmp_path / f"{number:02d}.png" for number in range(FRAMES)]
    for path, array in zip(paths, arrays, strict=True):
        Image.fromarray(array).save(path)
    kinds: list[list[Any]] = [
        paths,
        [str(path) for path in paths],
        [Image.fromarray(array) for array in arrays],
        [VideoFrame(Image.fromarray(array), i / 10, i, f"clip_{i}.png") for i, array in enumerate(arrays)],
    ]
    wanted = trajectory(list(Stream(Oracle(batch), arrays, window=8, overlap=3)))
    for kind in kinds:
        frames = list(Stream(Oracle(batch), kind, window=8, overlap=3))
        assert torch.equal(trajectory(frames), wanted)
    assert [frame.seconds for frame in frames] == [i / 10 for i in range(FRAMES)]
    assert frames[3].name == "clip_3.png"


@pytest.mark.parametrize("stop", [1, 3])
def test_a_stream_that_was_stopped_goes_on_and_gives_the_same(batch: SceneBatch, tmp_path: Path, stop: int) -> None:
    whole = list(Stream(Oracle(batch), pictures(batch), window=8, overlap=3, folder=tmp_path / "whole"))
    model, cut = Oracle(batch), tmp_path / "cut"
    first = Stream(model, pictures(batch), window=8, overlap=3, folder=cut)
    for _ in first:
        if first.report.windows == stop:
            break
    del first
    done = model.calls[stop - 1][-1] + 1
    skipped: list[int] = []

    def rest(skip: int) -> Iterator[np.ndarray]:
        skipped.append(skip)
        yield from pictures(batch)[skip:]

    second = Stream(model, rest, window=8, overlap=3, folder=cut)
    frames = list(second)
    assert skipped == [done] == [second.report.resumed_at]
    assert [frame.index for frame in frames] == list(range(done, FRAMES))
    # The model's sizes depend on the number of calls; the stream's is that of its first window.
    torch.testing.assert_close(trajectory(frames), trajectory(whole[done:]), atol=1e-3, rtol=1e-3)
    assert len(second.report.seams) == second.report.windows - 1
    torch.testing.assert_close(rejoined(second), trajectory(whole), atol=1e-3, rtol=1e-3)
    calls = len(model.calls)
    assert list(Stream(model, rest, window=8, overlap=3, folder=cut)) == []  # it has come to its end
    assert len(model.calls) == calls


@pytest.mark.slow
def test_a_kill_before_any_change_of_the_folder_costs_a_window_at_most(batch: SceneBatch, tmp_path: Path) -> None:
    """Three windows and their loops, killed before each step; what was finished is kept, and the end is the same."""
    frames = pictures(batch)[:9]

    def stream(folder: Path, model: Oracle | None = None) -> Stream:
        return Stream(model or Oracle(batch, one_size=True), frames, window=4, overlap=2, folder=folder)

    list(whole := stream(tmp_path / "whole"))
    finished = set()
    for moment in count():
        folder, model = tmp_path / "cut", Oracle(batch, one_size=True)
        came = killed_before(moment, lambda: list(stream(folder)))  # noqa: B023
        done = len(list(folder.glob("windows/*/window.json")))
        list(again := stream(folder, model))
        assert torch.equal(rejoined(again), rejoined(whole)), moment
        assert again.report.seams == whole.report.seams
        assert again.report.loops == whole.report.loops
        assert len(model.calls) <= len(whole.report.loops) + whole.report.windows - done
        finished.add(done)
        shutil.rmtree(folder)
        if not came:
            break
    assert finished == set(range(whole.report.windows + 1))


def test_frames_that_fail_midway_cost_no_finished_window(batch: SceneBatch, tmp_path: Path) -> None:
    """Those of a window that is not whole wait: another cut would be another result."""
    options: dict[str, Any] = {"window": 4, "overlap": 2, "loops": False}

    def failing(skip: int) -> Iterator[np.ndarray]:
        yield from pictures(batch)[skip:11]
        raise OSError("the camera is gone")

    whole = Stream(Oracle(batch, one_size=True), pictures(batch), folder=tmp_path / "whole", **options)
    wanted, came = list(whole), list[int]()
    model, options["folder"] = Oracle(batch, one_size=True), tmp_path / "cut"
    for _ in range(2):
        with pytest.raises(OSError, match="the camera is gone"):
            came.extend(frame.index for frame in Stream(model, failing, **options))
        assert came == list(range(10))
    second = Stream(model, lambda skip: pictures(batch)[skip:], **options)
    assert [frame.index for frame in second] == list(range(10, FRAMES))
    assert torch.equal(rejoined(second), trajectory(wanted))


def test_a_stream_gives_its_frames_once(batch: SceneBatch) -> None:
    stream = Stream(Oracle(batch), pictures(batch), window=8, overlap=3)
    next(iter(stream))
    with pytest.raises(RuntimeError, match="once: make another one"):
        next(iter(stream))


def test_a_folder_of_another_stream_is_refused(batch: SceneBatch, tmp_path: Path) -> None:
    list(Stream(Oracle(batch), pictures(batch)[:9], window=8, overlap=3, folder=tmp_path / "s"))
    with pytest.raises(ValueError, match="overlap was 3 and is 4"):
        Stream(Oracle(batch), pictures(batch), window=8, overlap=4, folder=tmp_path / "s")
    with pytest.raises(ValueError, match=r"source was None and is 'b\.mp4'"):
        Stream(Oracle(batch), [], window=8, overlap=3, folder=tmp_path / "s", settings={"source": "b.mp4"})
    for overlap in (3, 4):  # nothing is lost by other settings before the first window is done
        with pytest.raises(ValueError, match="holds no frames"):
            list(Stream(Oracle(batch), [], window=8, overlap=overlap, folder=tmp_path / "empty"))
    list(Stream(Oracle(batch), pictures(batch)[:9], window=8, overlap=4, folder=tmp_path / "empty"))
    with pytest.raises(ValueError, match="overlap was 4 and is 3"):
        Stream(Oracle(batch), [], window=8, overlap=3, folder=tmp_path / "empty")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(FileExistsError, match=r"no folder of a stream"):
        Stream(Oracle(batch), [], window=8, overlap=3, folder=tmp_path / "photos")
    state = tmp_path / "s" / "stream.json"
    whole = state.read_text()
    state.write_text('{"format_version": 99}')
    with pytest.raises(ValueError, match=r"format version 99, this program reads 1: .*remove .*s to begin anew"):
        Stream(Oracle(batch), [], window=8, overlap=3, folder=tmp_path / "s")
    state.write_text(whole)
    window = tmp_path / "s" / "windows" / "00001"
    for damaged in (window / "loop.json", window / "window.json", state):
        damaged.write_text("{")
        with pytest.raises(ValueError, match=rf"{damaged.name} is damaged .*remove .*s$"):
            list(Stream(Oracle(batch), [], window=8, overlap=3, folder=tmp_path / "s"))
        if damaged.name == "window.json":
            with pytest.raises(ValueError, match=r"window\.json is damaged"):
                finished_names(tmp_path / "s")


def test_two_processes_on_one_folder_are_one_too_many(batch: SceneBatch, tmp_path: Path) -> None:
    one, other = (iter(Stream(Oracle(batch), pictures(batch), window=8, overlap=3, folder=tmp_path)) for _ in range(2))
    next(one)
    with pytest.raises(FileExistsError, match=r"00000 is there already: another process works on the same stream"):
        next(other)
    assert len(list(one)) == FRAMES - 1


def test_memory_is_that_of_a_window(batch: SceneBatch) -> None:
    """Of an endless stream, results that nobody keeps are gone after a window or two."""
    arrays = pictures(batch)

    def endless() -> Iterator[np.ndarray]:
        while True:
            yield from arrays
            yield from arrays[::-1]

    alive: list[weakref.ref[Tensor]] = []
    for frame in Stream(Oracle(batch), endless(), window=8, overlap=3):
        alive.append(weakref.ref(frame.depth))
        if frame.index == 100:
            break
    del frame
    gc.collect()
    assert sum(reference() is not None for reference in alive[:-16]) == 0


@pytest.mark.slow
def test_a_loop_takes_the_drift_away(batch: SceneBatch, tmp_path: Path) -> None:
    """There and back: every window is bent, and what was seen first is seen last."""
    arrays = pictures(batch)
    there_and_back = [*arrays, *arrays[-2::-1]]
    truth = torch.cat([batch.extrinsic[0], batch.extrinsic[0].flip(0)[1:]])
    stream = Stream(Oracle(batch, bend=0.01), there_and_back, window=8, overlap=4, folder=tmp_path / "loops")
    before = trajectory_error(trajectory(list(stream)), truth)
    after = trajectory_error(rejoined(stream), truth)
    closed = [loop for loop in stream.report.loops if loop.closed]
    assert closed
    assert all(abs(sum(loop.frames) - 2 * (FRAMES - 1)) <= 4 for loop in closed)  # the same place, there and back
    assert after < 0.5 * before
    assert stream.report.residual is not None
    assert stream.report.residual["after"] < stream.report.residual["before"]
    again = Stream(Oracle(batch), there_and_back, window=8, overlap=4, folder=tmp_path / "loops")
    assert list(again) == []
    assert again.report.loops == stream.report.loops


def test_without_a_loop_nothing_changes(batch: SceneBatch, tmp_path: Path) -> None:
    stream = Stream(Oracle(batch), pictures(batch), window=5, overlap=2, folder=tmp_path / "open", loops=False)
    frames = list(stream)
    torch.testing.assert_close(rejoined(stream), trajectory(frames))
    assert stream.report.loops == []


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"window": 1}, "window is 1"),
        ({"overlap": 0}, "overlap is 0"),
        ({"window": 4, "overlap": 4}, "less than the window of 4"),
        ({"loops": True}, "folder="),
    ],
)
def test_options_that_do_not_fit_are_named(batch: SceneBatch, options: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Stream(Oracle(batch), [], **{"window": 8, "overlap": 3, **options})


def test_pictures_that_come_out_nearly_black_are_named_once(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths:
        Image.fromarray(np.full((28, 28), 4095, np.uint16)).save(path)
    with pytest.warns(UserWarning, match=r"0\.png has 16 bits and uses 12") as said:
        assert len(list(Source(paths, mode="crop", size=28, patch_size=14))) == 3
    assert len(said) == 1


def test_frames_that_do_not_fit_are_named(batch: SceneBatch, tmp_path: Path) -> None:
    arrays = pictures(batch)
    cases: list[tuple[Any, type[Exception], str]] = [
        ("clip.mp4", TypeError, r"frames is 'clip\.mp4'; give an iterable .* or Video\(path\)\.frames"),
        (tmp_path, TypeError, "frames is .*Path"),
        (None, TypeError, "frames is None"),
        ([arrays[0][:0]], TypeError, r"frame 0 is uint8 \(0, 56, 3\)"),
        ([], ValueError, "no frames"),
        ([3], TypeError, "frame 0 is a int"),
        ([arrays[0].astype(np.float32)], TypeError, "float32"),
        ([arrays[0][:28], arrays[0]], ValueError, "frame_000001"),
        ([tmp_path / "none.png"], FileNotFoundError, r"none\.png"),
    ]
    for frames, error, word in cases:
        with pytest.raises(error, match=word):
            list(Stream(Oracle(batch), frames, window=8, overlap=3))
