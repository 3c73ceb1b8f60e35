"""`vggt-int8 run --window`: process any number of frames in windows, which are stored until everything is written."""

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vggt_int8.cli import console
from vggt_int8.cli.attention import check_scope
from vggt_int8.cli.frames import Clip, Growing, Input, Pictures
from vggt_int8.cli.loading import in_pixels, load_model
from vggt_int8.global_attention import words_of

if TYPE_CHECKING:
    from vggt_int8.cli.run import Wanted
    from vggt_int8.export import RunReport
    from vggt_int8.images import Mode
    from vggt_int8.pretrained.int8_network import Int8Network
    from vggt_int8.scene import Scene
    from vggt_int8.stream import Stream, StreamReport

KEPT = ".windows"  # after the name of the results' folder


@dataclass(frozen=True)
class Windows:
    """The options of `run` for windows."""

    window: int
    overlap: int
    loops: bool | None

    @classmethod
    def of(cls, window: int, overlap: int | None, no_loops: bool) -> "Windows":
        overlap = max(window // 4, 1) if overlap is None else overlap
        if overlap >= window:
            raise ValueError(f"--overlap {overlap} must be less than --window {window}")
        return cls(window, overlap, False if no_loops else None)


def reconstruct_windows(wanted: "Wanted", source: Input, windows: Windows) -> "tuple[RunReport, dict[str, Any]]":
    """Load, process window after window, and write. Returns the report and the contents of report.json.

    Windows are stored in OUT.windows. After an interruption the same command continues from there. The folder is
    removed when OUT is complete.
    """
    from vggt_int8.cli.loading import resolve_device
    from vggt_int8.cli.run import check_heads
    from vggt_int8.cli.run_report import report_of
    from vggt_int8.export import SCENE_ENTRIES, PhaseClock, owned_files, staged_folder, write_report, write_scene
    from vggt_int8.export.repeat import identify_model
    from vggt_int8.export.write import format_of
    from vggt_int8.scene.saved import FOLDER
    from vggt_int8.stream.state import identity_of, remove_stream

    _check_options(wanted)
    clock, owned = PhaseClock(resolve_device(wanted.device)), partial(owned_files, command="run")
    out = wanted.out.expanduser()
    kept = out.with_name(out.name + KEPT)
    _forget_what_is_written(out, kept)
    with staged_folder(wanted.out, entries=SCENE_ENTRIES, overwrite=wanted.overwrite, owned=owned) as folder:
        importlib.import_module("vggt_int8.pretrained")
        with clock.phase("load_model"):
            network = load_model(
                wanted.model, recipe=wanted.recipe, backend=wanted.backend, device=wanted.device, dtype=wanted.dtype
            )
            identity = identify_model(wanted.model)
        check_heads(network, wanted.exports)
        check_scope(network, wanted.global_attention, wanted.keyframes)
        if not (network.config.enable_camera and network.config.enable_depth):
            raise ValueError("windows are aligned by cameras and depth, but this model lacks one of these heads")
        with console.step("Reconstructing windows") as progress, clock.phase("stream"):
            stream = _stream(network, identity, wanted, source, windows, kept, partial(_tell, progress, source))
            for _ in stream:
                pass
            if isinstance(source, Clip) and not stream.report.latencies:
                _look_at_ending(source, stream.report.frames)
        console.detail(lambda: f"{network.quantization_report()}\nran {network.runtime_report()}")
        _note(stream.report)
        with clock.phase("write"):
            scene = _joined(stream, folder / FOLDER)
            with console.step(f"Writing {wanted.out}") as progress:
                options = wanted.exports.options(wanted.out)
                outputs = write_scene(
                    folder, scene, wanted.exports.formats, options, release_pages=True, on_frame=progress
                )
        inputs = _described(scene, stream.times())
        settings = {**wanted.settings(network), "window": windows.window, "overlap": windows.overlap}
        report = report_of(network, wanted.model, identity, inputs, settings, clock.seconds, outputs)
        stream_document = {**stream.report.to_document(), "identity": identity_of(kept)}
        document = {**report.to_document(), **source.report(), "stream": stream_document}
        content = write_report(folder, "run", document, format_of)
    remove_stream(kept)
    return report, content


def _stream(
    network: "Int8Network", identity: Any, wanted: "Wanted", source: Input, windows: Windows, kept: Path,
    on_window: "Callable[[StreamReport], None]",
) -> "Stream":  # fmt: skip
    """The windows of the source, stored in `kept`. Stored ones count only if they were made with the same settings."""
    from vggt_int8.recipe import load_recipe

    recipe = None if wanted.recipe is None else load_recipe(wanted.recipe).to_dict()
    decides = {"model": identity, "recipe": recipe, "dtype": str(network.dtype), **source.settings()}
    return network.stream(
        _going_on(source, kept).frames, window=windows.window, overlap=windows.overlap, folder=kept,
        loops=windows.loops, mode=cast("Mode", wanted.mode), fast_jpeg=wanted.fast_jpeg,
        max_pixels=in_pixels(wanted.max_megapixels), frames_chunk_size=wanted.frames_chunk,
        global_attention=None if wanted.global_attention is None else words_of(wanted.global_attention),
        keyframes=wanted.keyframes, settings=decides, on_window=on_window,
    )  # fmt: skip


def _forget_what_is_written(out: Path, kept: Path) -> None:
    """Remove stored windows whose results are complete: an earlier process was killed before or during the removal."""
    from vggt_int8.stream.state import identity_of, remove_stream

    if not kept.is_dir():
        return
    try:
        written = json.loads((out / "report.json").read_text(encoding="utf-8"))["stream"]["identity"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):  # of another kind of run, or of none
        return
    if not any(kept.iterdir()) or (written is not None and written == identity_of(kept)):
        remove_stream(kept)


def _check_options(wanted: "Wanted") -> None:
    """Raise ValueError for options that do not work with windows."""
    exports = wanted.exports
    if exports.points == "world_points":
        raise ValueError("--points world_points needs the point head, which does not run in windows: leave it out")
    if wanted.tracks is not None or wanted.refine or "tracks" in exports.formats:
        raise ValueError("tracks and --refine go through all frames at once, --window sees only some: leave one out")


def _going_on(source: Input, kept: Path) -> Input:
    """A growing folder has no fixed order to count by, so processed files are identified by name."""
    if not isinstance(source, Growing):
        return source
    from vggt_int8.stream.state import finished_names

    return replace(source, known=frozenset(finished_names(kept)))


def _look_at_ending(clip: Clip, frames: int) -> None:
    """Note how a video ended whose windows were all finished by an earlier run, which then had no report to say it in.
    Frames are decoded, and not converted.
    """
    for _ in clip.frames(frames):
        pass


def _tell(progress: Any, source: Input, report: "StreamReport") -> None:
    progress(report.frames, len(source) if isinstance(source, Pictures) else report.frames)


def _note(report: "StreamReport") -> None:
    seams, closed = report.seams, [loop for loop in report.loops if loop.closed]
    if report.resumed_at:
        console.note(f"went on behind {report.resumed_at} frames of an earlier run")
    worst = max(seams, key=lambda seam: seam.drift.rotation_degrees, default=None)
    if worst is not None:
        drift = worst.drift
        console.note(
            f"{report.windows} windows; most drift at frame {worst.first}: {drift.rotation_degrees:.2f} degrees, "
            f"{100 * drift.translation:.1f} % of the depth, scale {drift.scale:.3f}; {len(closed)} loops closed"
        )


def _described(scene: "Scene", times: list[float | None]) -> list[dict[str, Any]]:
    """What report.json says of each frame: files by their content, frames of a video by their time."""
    from vggt_int8.ahead import begun
    from vggt_int8.export.report import describe_inputs

    entries = describe_inputs([Path(name) for name in scene.names], scene.transforms)
    with begun(_digest, scene.files) as digests:
        for entry, digest, seconds in zip(entries, digests, times, strict=True):
            entry.update(digest if seconds is None else {"seconds": seconds})
    return entries


def _digest(file: Path | None) -> dict[str, Any]:
    """Nothing for a picture that was removed since it was read, as from a folder that grows."""
    from vggt_int8.export.repeat import identify_file

    try:
        return {} if file is None else identify_file(file)
    except FileNotFoundError:
        return {}


def _joined(stream: "Stream", place: Path) -> "Scene":
    """All windows as one saved scene, read one window at a time."""
    from vggt_int8.scene import SceneWriter

    with SceneWriter(place) as writer:
        for piece in stream.scenes():
            writer.add(piece)
        return writer.finish()
