"""`Stream`: frames in, one after another; camera and depth of each out, in one world, in the memory of a window.

The network sees `window` frames at a time, `overlap` of which it has seen before. The world of a new window is aligned
with the stream's by a similarity over the frames that both contain (`align`). With a folder every window is stored: a
stopped stream resumes after the last window, and places that are seen again close loops (`loops`, `pose_graph`), after
which `scenes` yields all frames anew.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vggt_int8.images.fit import ImageTransform, Mode
from vggt_int8.plain_data import check_integer
from vggt_int8.scene import Scene
from vggt_int8.similarity import Similarity
from vggt_int8.stream.align import align
from vggt_int8.stream.frames import Frame, Frames, Source, check_frames
from vggt_int8.stream.loops import LEAST_SEEN, VISIT, Candidate, find_candidate, reach, seen_by_both, visit
from vggt_int8.stream.pieces import part_of, placed_onto, views_of
from vggt_int8.stream.pose_graph import Edge, check_scipy, solve
from vggt_int8.stream.report import Loop, Seam, StreamReport
from vggt_int8.stream.state import StreamFolder, Window, read_similarity, similarity_document

WINDOW, OVERLAP = 32, 8


@dataclass(frozen=True)
class StreamFrame:
    """The result for one frame, on the CPU, in the world of the stream's first camera and the scale of its first
    window.

    index: from the stream's first frame.
    seconds: in the video, or None.
    window: the window that it came from.
    extrinsic: [3, 4] fp32, camera from world (OpenCV).
    intrinsic: [3, 3], pixels of `colors`.
    depth: [H, W] along the camera's z axis.
    depth_conf: [H, W], above 1.
    colors: [H, W, 3] uint8.
    transform: to the original's pixels.
    """

    index: int
    name: str
    seconds: float | None
    window: int
    extrinsic: Tensor
    intrinsic: Tensor
    depth: Tensor
    depth_conf: Tensor
    colors: Tensor
    transform: ImageTransform


class Stream:
    """Iterable of `StreamFrame`, once: raises RuntimeError the second time. Created by `VGGTInt8.stream`, which
    documents the arguments.

    report: a `StreamReport`, which grows while the stream runs.
    """

    def __init__(
        self,
        model: Any,
        frames: Frames,
        *,
        window: int = WINDOW,
        overlap: int = OVERLAP,
        folder: str | PathLike[str] | None = None,
        loops: bool | None = None,
        mode: Mode = "crop",
        max_pixels: int | None = None,
        fast_jpeg: bool = False,
        settings: dict[str, Any] | None = None,
        on_window: Callable[[StreamReport], None] | None = None,
        **call: Any,
    ) -> None:
        check_frames(frames)
        _check(window, overlap, folder, loops)
        self._model, self._call, self._on_window = model, call, on_window
        self._window, self._overlap = window, overlap
        self._loops = folder is not None if loops is None else loops
        if self._loops:
            check_scipy()
        self._folder = None
        if folder is not None:
            decides = {"window": window, "overlap": overlap, "loops": self._loops, "mode": mode, **call}
            decides["fast_jpeg"] = fast_jpeg
            self._folder = StreamFolder(Path(folder), {**decides, **(settings or {})})
        self.report = StreamReport(window, overlap)
        self._windows: list[Window] = [] if self._folder is None else self._folder.windows
        self._edges: list[Edge] = []
        self._begun = False
        config = model.config
        fit: dict[str, Any] = {
            "mode": mode,
            "size": config.img_size,
            "patch_size": config.patch_size,
            "max_pixels": max_pixels,
            "fast_jpeg": fast_jpeg,
        }
        self._make_source = lambda skip, shape: Source(frames, skip=skip, shape=shape, room=window, **fit)

    def __iter__(self) -> Iterator[StreamFrame]:
        if self._begun:
            raise RuntimeError("a stream gives its frames once: make another one, with the same folder= to go on")
        self._begun, start = True, time.perf_counter()
        last = self._resume()
        kept: deque[Frame] = deque(last.frames if last else (), maxlen=self._window)
        done = self._windows[-1].end if self._windows else 0
        self.report.resumed_at = done or None
        if self._folder is None or not self._folder.complete:
            source = iter(self._make_source(done, None if last is None else last.scene.size))
            while fresh := list(islice(source, self._window if last is None else self._window - self._overlap)):
                kept.extend(fresh)
                last = self._next(list(kept), len(fresh), last)
                yield from self._hand_out(last, fresh)
                self.report.seconds["all"] = time.perf_counter() - start
                if self._on_window is not None:
                    self._on_window(self.report)
            if not self._windows:
                raise ValueError("the stream holds no frames")
            if self._folder is not None:
                self._folder.finish()
        self.report.seconds["all"] = time.perf_counter() - start

    def placements(self) -> list[Similarity]:
        """Similarity from each window's world to the stream's: measured from window to window, or optimized if loops
        were closed.
        """
        placed: list[Similarity] = []
        for window in self._windows:
            placed.append(Similarity.identity() if window.onto is None else placed[-1].after(window.onto))
        if not self._edges:
            return placed
        assert self._folder is not None
        edges = [*self._edges]
        for number, window in enumerate(self._windows[1:], 1):
            assert window.onto is not None
            edges.append(Edge(number - 1, number, window.onto, reach(views_of(self._folder.scene(number - 1)))))
        solved, self.report.residual = solve(placed, edges)
        return solved

    def times(self) -> list[float | None]:
        """Seconds of every frame so far in its video, in order; None for a frame of another kind."""
        return [seconds for window in self._windows for seconds in window.times[window.frames - window.new :]]

    def scenes(self) -> Iterator[Scene]:
        """All frames once more, one piece per window, in one world after loop closure. Needs `folder=`."""
        if self._folder is None:
            raise ValueError("scenes() reads the windows that were kept: give the stream folder=")
        for number, (window, placed) in enumerate(zip(self._windows, self.placements(), strict=True)):
            yield placed_onto(part_of(self._folder.scene(number), slice(window.frames - window.new, None)), placed)

    # ---- one window ----

    def _next(self, frames: list[Frame], new: int, last: "_Last | None") -> "_Last":
        """Reconstruct a window, align it with the one before, store it, and detect loops."""
        number = len(self._windows)
        with self._timed("reconstruct"):
            scene, descriptors = self._reconstruct(
                torch.stack([frame.pixels for frame in frames]),
                [frame.transform for frame in frames],
                [frame.name for frame in frames],
                [frame.file for frame in frames],
            )
        onto = drift = None
        placed = Similarity.identity()
        if last is not None:
            with self._timed("align"):
                shared = len(frames) - new
                before = views_of(last.scene).of(slice(len(last.frames) - shared, None))
                onto, drift = align(before, views_of(scene).of(slice(shared)))
            placed = last.placed.after(onto)
            self.report.seams.append(Seam(number, frames[-new].index, drift))
        window = Window(
            first=frames[0].index, frames=len(frames), new=new, onto=onto, drift=drift,
            times=tuple(frame.seconds for frame in frames), descriptors=descriptors,
        )  # fmt: skip
        if self._folder is not None:
            self._folder.add(window, scene)
        else:
            self._windows.append(replace(window, descriptors=None))
        self.report.windows, self.report.frames = len(self._windows), window.end
        if self._loops:
            with self._timed("loops"):
                self._look_for_loop(number)
        return _Last(frames, scene, placed, number)

    def _reconstruct(
        self, pixels: Tensor, transforms: list[ImageTransform], names: list[str], files: list[Path | None]
    ) -> tuple[Scene, Tensor | None]:
        model = self._model
        with torch.inference_mode():
            asked = {"descriptors": True} if self._loops else {}
            pred = model(pixels.to(model.device), heads=("camera", "depth"), **asked, **self._call)
        scene = Scene.from_prediction(pred, transforms, names, files)
        return scene, pred.descriptor[0].float().cpu() if self._loops else None

    def _hand_out(self, last: "_Last", fresh: list[Frame]) -> Iterator[StreamFrame]:
        views = views_of(placed_onto(part_of(last.scene, slice(len(last.frames) - len(fresh), None)), last.placed))
        now = time.perf_counter()
        self.report.latencies += [now - frame.taken_at for frame in fresh]
        for i, frame in enumerate(fresh):
            yield StreamFrame(
                frame.index, frame.name, frame.seconds, last.number, views.extrinsic[i], views.intrinsic[i],
                views.depth[i], views.confidence[i], last.scene.colors[i - len(fresh)], frame.transform,
            )  # fmt: skip

    # ---- loops ----

    def _look_for_loop(self, number: int) -> None:
        assert self._folder is not None
        candidate = find_candidate(self._windows, apart=self._window)
        found: dict[str, Any] = {}
        if candidate is not None:
            edge, seen = self._measure(candidate)
            first = [self._windows[window].first for window in candidate.windows]
            frames = (first[0] + candidate.frames[0], first[1] + candidate.frames[1])
            loop = Loop(candidate.windows, frames, candidate.likeness, seen, seen >= LEAST_SEEN)
            found = {**asdict(loop), "measured": similarity_document(edge.measured), "reach": edge.reach}
        self._folder.add_loop(number, found)
        self._know_loop(found)

    def _know_loop(self, found: Mapping[str, Any]) -> None:
        if not found:
            return
        (old, new), frames = found["windows"], tuple(found["frames"])
        self.report.loops.append(Loop((old, new), frames, found["likeness"], found["seen"], found["closed"]))
        if found["closed"]:
            self._edges.append(Edge(old, new, read_similarity(found["measured"]), found["reach"]))

    def _measure(self, candidate: Candidate) -> tuple[Edge, float]:
        """Reconstruct both visits in one window -> the pose of the later window in the earlier one, and what
        both see.
        """
        assert self._folder is not None
        most = min(VISIT, self._window // 2)
        parts, views = [], []
        for number, frame in zip(candidate.windows, candidate.frames, strict=True):
            scene = self._folder.scene(number)
            parts.append(part_of(scene, visit(frame, len(scene), most)))
            views.append(views_of(parts[-1]))
        pixels = torch.cat([part.colors for part in parts]).permute(0, 3, 1, 2).float() / 255
        transforms = [transform for part in parts for transform in part.transforms]
        names = [name for part in parts for name in part.names]
        both, _ = self._reconstruct(pixels, transforms, names, [None] * len(names))
        there, here = (views_of(both).of(slice(*ends)) for ends in ((0, len(parts[0])), (len(parts[0]), None)))
        onto_old, _ = align(views[0], there)
        onto_new, _ = align(views[1], here)
        old, new = candidate.windows
        measured = onto_old.after(onto_new.inverse())
        return Edge(old, new, measured, reach(views[0])), seen_by_both(there, here)

    # ---- resuming ----

    def _resume(self) -> "_Last | None":
        """Restore the state in which an earlier run of this folder stopped."""
        if self._folder is None or not self._windows:
            return None
        placed = Similarity.identity()
        for number, window in enumerate(self._windows):
            if window.onto is not None and window.drift is not None:
                placed = placed.after(window.onto)
                self.report.seams.append(Seam(number, window.end - window.new, window.drift))
        number, window = len(self._windows) - 1, self._windows[-1]
        scene = self._folder.scene(number)
        frames = [
            Frame(window.first + i, scene.names[i], window.times[i], scene.files[i], 0.0, pixels, scene.transforms[i])
            for i, pixels in enumerate(scene.colors.permute(0, 3, 1, 2).float() / 255)  # as they came from a picture
        ]
        self.report.windows, self.report.frames = len(self._windows), window.end
        for at in range(len(self._windows)) if self._loops else ():
            if (found := self._folder.loop(at)) is not None:
                self._know_loop(found)
            elif at == number:  # a kill came between the window and its loop
                self._look_for_loop(at)
        return _Last(frames, scene, placed, number)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.report.add_seconds(name, time.perf_counter() - start)


class _Last(NamedTuple):
    """The window before: its frames, its scene in its own world, and that world's similarity to the stream's."""

    frames: list[Frame]
    scene: Scene
    placed: Similarity
    number: int


def _check(window: int, overlap: int, folder: Any, loops: bool | None) -> None:
    check_integer("window", window)
    check_integer("overlap", overlap)
    if window < 2:
        raise ValueError(f"window is {window}; at least two frames are reconstructed at a time")
    if not 1 <= overlap < window:
        raise ValueError(f"overlap is {overlap}; it must be at least 1 and less than the window of {window} frames")
    if loops and folder is None:
        raise ValueError("loops=True needs the windows of before: give the stream folder=")
