"""A worker process of `vggt-int8 batch` for one device: `python -m vggt_int8.cli.batch_worker WANTED`."""

import json
import sys
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vggt_int8.batch import BadScene, Board, Broken, Claims, NoPlace, SceneFolder, find_scenes, run_worker
from vggt_int8.batch.supervise import NO_PLACE, RESTART, end_with_parent
from vggt_int8.cli import console
from vggt_int8.cli.attention import check_scope
from vggt_int8.cli.formats import Exports
from vggt_int8.cli.frames import Clip, Input, Pictures
from vggt_int8.cli.guard import guarded
from vggt_int8.cli.loading import InputSize, in_pixels
from vggt_int8.cli.reading import How, Read, read_now
from vggt_int8.cli.tracking import queries, refined, track_count
from vggt_int8.encoding import one_line
from vggt_int8.global_attention import words_of
from vggt_int8.interrupts import heeded

if TYPE_CHECKING:
    from vggt_int8 import VGGTInt8
    from vggt_int8.export import RunReport, Scene


SETTINGS = (  # of a scene's report
    *("backend", "mode", "max_megapixels", "fast_jpeg", "global_attention", "keyframes", "tracks", "refine"),
)


@dataclass(frozen=True)
class Wanted:
    """The options of `batch`, and which of the processes this is."""

    model: str
    scenes: Path
    inside: str | None
    out: Path
    recipe: str | None
    backend: str
    device: str
    dtype: str | None
    mode: str
    global_attention: str | None
    keyframes: int | None
    exports: Exports
    tracks: int | None
    refine: bool
    save_scene: bool
    max_megapixels: float | None
    fast_jpeg: bool
    fps: float | None
    every: int | None
    sharpest: bool
    retries: int
    rank: int
    peers: int
    token: str
    quiet: bool
    verbose: bool


def to_argument(wanted: dict[str, Any]) -> str:
    """Encode as JSON for the command line of a worker."""
    names = {field.name for field in fields(Wanted)}
    assert wanted.keys() == names, wanted.keys() ^ names
    return json.dumps(wanted, default=str)


def from_argument(text: str) -> Wanted:
    found = json.loads(text)
    exports: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in found["exports"].items()
    }
    places = {name: Path(found[name]).expanduser() for name in ("scenes", "out")}
    return Wanted(**{**found, **places, "exports": Exports(**exports)})


@dataclass
class _Read:
    """source: the input that was read. seconds: time for reading."""

    frames: "Read"
    source: Input
    seconds: dict[str, float]


@dataclass
class _Computed:
    """Results without the images that were read, whose pinned memory is reused for the next scene."""

    source: Input
    scene: "Scene"
    report: "RunReport"
    seconds: dict[str, float]


class Reconstruct:
    """The stages of a scene, as in `run`, on one loaded model."""

    def __init__(self, wanted: Wanted) -> None:
        from vggt_int8.cli.loading import load_model
        from vggt_int8.cli.run import check_heads, default_points
        from vggt_int8.export.repeat import identify_model

        self.wanted = wanted
        self.network: VGGTInt8 = load_model(
            wanted.model, recipe=wanted.recipe, backend=wanted.backend, device=wanted.device, dtype=wanted.dtype
        )
        self.identity = identify_model(wanted.model)
        check_heads(self.network, wanted.exports, wanted.tracks, refine=wanted.refine)
        check_scope(self.network, wanted.global_attention, wanted.keyframes)
        self.points = wanted.exports.points or default_points(self.network)
        self.heads = self._heads()
        self._first_report: RunReport | None = None

    def _heads(self) -> tuple[str, ...]:
        """The heads whose output is written: without the point head if points come from depth."""
        config = self.network.config
        there = {
            "camera": config.enable_camera,
            "depth": config.enable_depth,
            "point": self.points == "world_points",
            "track": track_count(self.network, self.wanted) is not None,
        }
        return tuple(head for head, runs in there.items() if runs)

    def read(self, scene: SceneFolder) -> _Read:
        from vggt_int8.export import PhaseClock
        from vggt_int8.images import check_images

        clock, wanted, config = PhaseClock("cpu"), self.wanted, self.network.config
        with clock.phase("load_images"):
            source: Input
            if scene.is_video:
                source = Clip(scene.images, wanted.fps, wanted.every, None, None, wanted.sharpest)
            else:
                source = Pictures(scene.paths())
                check_images(source.paths, max_pixels=in_pixels(wanted.max_megapixels))
            how = How(wanted.mode, wanted.max_megapixels, wanted.fast_jpeg)
            frames = read_now(source, how, InputSize(config.img_size, config.patch_size))
        if self.network.device.type == "cuda":
            frames = replace(frames, pixels=frames.pixels.pin_memory())
        return _Read(frames, source, clock.seconds)

    def compute(self, scene: SceneFolder, item: _Read) -> _Computed:
        import torch

        from vggt_int8.export import PhaseClock, Scene

        clock, device, frames = PhaseClock(self.network.device), self.network.device, item.frames
        try:
            followed: dict[str, Any] = queries(self.network, self.wanted, frames.transforms[0])
        except ValueError as error:  # a first image that shows nothing
            raise BadScene(str(error)) from error
        try:
            with clock.phase("reconstruct"), torch.inference_mode():
                attention = self.wanted.global_attention
                pred = self.network(
                    frames.pixels.to(device, non_blocking=True),
                    **followed,
                    heads=self.heads,
                    global_attention=None if attention is None else words_of(attention),
                    keyframes=self.wanted.keyframes,
                )
            with clock.phase("to_host"):  # where images go as bytes, which they become on the GPU
                whole = Scene.from_prediction(pred, frames.transforms, frames.names, frames.files)
        except torch.OutOfMemoryError:
            raise
        except FloatingPointError as error:  # images that the network makes nothing finite of
            raise BadScene(str(error)) from error
        except RuntimeError as error:
            if device.type == "cuda" and _is_broken(device):
                raise Broken(str(error)) from error
            raise
        return _Computed(item.source, whole, self._report(frames.inputs), {**item.seconds, **clock.seconds})

    def _report(self, inputs: list[dict[str, Any]]) -> "RunReport":
        """Report of the last call. What all scenes have in common is determined once: it can take longer than a
        frame.
        """
        from vggt_int8.cli.run_report import report_of, runtime_of

        if self._first_report is None:
            settings = {name: getattr(self.wanted, name) for name in SETTINGS}
            settings |= {**self.wanted.exports.settings(), "points": self.points}
            self._first_report = report_of(self.network, self.wanted.model, self.identity, [], settings, {}, {})
        return replace(self._first_report, inputs=inputs, runtime=runtime_of(self.network))

    def write(self, scene: SceneFolder, result: _Computed) -> None:
        from vggt_int8.export import SCENE_ENTRIES, PhaseClock, staged_folder, write_report, write_scene
        from vggt_int8.export.write import format_of

        clock, out = PhaseClock("cpu"), self.wanted.out / scene.name
        options, whole = self.wanted.exports.options(out), result.scene
        refinement: dict[str, Any] = {}
        with staged_folder(out, entries=SCENE_ENTRIES) as folder:
            if self.wanted.refine:
                with clock.phase("refine"):
                    whole, refinement = refined(whole, options.points)
            with clock.phase("write"):
                result.report.outputs = refinement | write_scene(
                    folder, whole, self.wanted.exports.formats, options, save=self.wanted.save_scene
                )
            result.report.seconds = {**result.seconds, **clock.seconds}
            write_report(folder, "batch", {**result.report.to_document(), **result.source.report()}, format_of)


def _is_broken(device: Any) -> bool:
    """Whether the GPU is no longer usable in this process, for example after an illegal memory access."""
    import torch

    try:
        torch.cuda.synchronize(device)
        torch.zeros(1, device=device).item()
    except torch.OutOfMemoryError:
        return False
    except RuntimeError:
        return True
    return False


def work(wanted: Wanted) -> None:
    board = Board(wanted.out, find_scenes(wanted.scenes, wanted.inside), wanted.retries)
    stages = Reconstruct(wanted)
    with Claims(board.claims_folder, wanted.token) as claims:
        try:
            run_worker(board, claims, stages, rank=wanted.rank, peers=wanted.peers, tell=partial(_tell, wanted.device))
        except Broken as error:
            console.complain(f"{wanted.device} is of no use to this process any more, which is started anew: {error}")
            raise typer.Exit(RESTART) from error
        except NoPlace as error:
            console.complain(f"{wanted.device} stops, since results cannot be written: {error}")
            raise typer.Exit(NO_PLACE) from error


def _tell(device: str, scene: SceneFolder, error: str) -> None:
    name = one_line(scene.name)
    if error:
        console.err.print(f"{name} ({device}): {error}", markup=False, highlight=False, soft_wrap=True)
    else:
        console.note(f"{name} ({device}): done")


def main() -> None:
    wanted = from_argument(sys.argv[1])
    console.settings.quiet, console.settings.verbose = wanted.quiet, wanted.verbose
    with heeded():
        end_with_parent()
        try:
            guarded(work)(wanted)
        except typer.Exit as ended:
            sys.exit(ended.exit_code)


if __name__ == "__main__":
    main()
