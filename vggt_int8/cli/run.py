"""`vggt-int8 run`: reconstruct photographs: cameras, depth, points and a report of the run."""

import importlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from vggt_int8.cli import console, formats, options
from vggt_int8.cli.attention import GlobalAttention, Keyframes, check_attention, check_scope
from vggt_int8.cli.frames import (
    End,
    Every,
    Follow,
    Fps,
    Input,
    NoLoops,
    Overlap,
    Pictures,
    Sharpest,
    Start,
    Window,
    find_input,
)
from vggt_int8.cli.loading import (
    Backend,
    Dtype,
    FastJpeg,
    Images,
    MaxMegapixels,
    Mode,
    Model,
    Recipe,
    load_model,
    local_input_size,
)
from vggt_int8.cli.reading import How, Read, reading
from vggt_int8.cli.run_report import report_of
from vggt_int8.cli.team import Loading, launched_device, launched_rank, team_of
from vggt_int8.cli.tracking import Refine, TrackCount, check_refine, queries, refined
from vggt_int8.cli.windows import Windows, reconstruct_windows
from vggt_int8.disk import check_place
from vggt_int8.global_attention import words_of

if TYPE_CHECKING:
    from vggt_int8 import VGGTOutput
    from vggt_int8.export import PhaseClock, RunReport
    from vggt_int8.pretrained.int8_network import Int8Network


def run(
    model: Model,
    images: Images,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")],
    recipe: Recipe = None,
    backend: Backend = "auto",
    device: Annotated[
        list[str] | None,
        typer.Option(
            help="Device; by default cuda if available. Repeatable: several GPUs divide the images "
            "of the scene; under a launcher all of its processes do.",
            **options.repeatable(options.device_option()),
        ),
    ] = None,
    dtype: Dtype = None,
    mode: Mode = "crop",
    frames_chunk: Annotated[
        int,
        typer.Option(
            help="Images that the depth and point heads process at a time: a smaller number needs less memory.",
            **options.between(1),
        ),
    ] = 8,
    global_attention: GlobalAttention = None,
    keyframes: Keyframes = None,
    format: formats.Formats = formats.DEFAULT_FORMATS,
    points: formats.Points = None,
    confidence_percentile: formats.ConfidencePercentile = 25.0,
    min_confidence: formats.MinConfidence = None,
    edges: formats.Edges = None,
    voxel: formats.Voxel = None,
    max_points: formats.MaxPoints = None,
    masks: formats.Masks = None,
    normals: formats.Normals = False,
    shared_camera: formats.SharedCamera = False,
    copy_images: formats.CopyImages = False,
    link_images: formats.LinkImages = False,
    image_scales: formats.ImageScales = None,
    tracks: TrackCount = None,
    refine: Refine = False,
    max_megapixels: MaxMegapixels = None,
    fast_jpeg: FastJpeg = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the results of an earlier run in the folder.")
    ] = False,
    fps: Fps = None,
    every: Every = None,
    start: Start = None,
    end: End = None,
    sharpest: Sharpest = False,
    window: Window = None,
    overlap: Overlap = None,
    no_loops: NoLoops = False,
    follow: Follow = None,
    as_json: options.Json = False,
) -> None:
    """Reconstruct a scene: write cameras.json, the formats asked for, the scene itself and report.json."""
    exports = formats.exports(
        format, image_scales, copy_images, link_images, masks, points=points,
        confidence_percentile=confidence_percentile, min_confidence=min_confidence, edges=edges, voxel=voxel,
        max_points=max_points, normals=normals, shared_camera=shared_camera,
    )  # fmt: skip
    check_attention(global_attention, keyframes)
    windows = None if window is None else Windows.of(window, overlap, no_loops)
    if windows is None and (overlap is not None or no_loops):
        raise ValueError(f"{'--overlap' if overlap is not None else '--no-loops'} needs --window: give both or none")
    source = find_input(
        images, max_megapixels=max_megapixels, fps=fps, every=every, start=start, end=end, sharpest=sharpest,
        follow=follow, window=window,
    )  # fmt: skip
    check_place(out.expanduser())
    devices = device or []
    if windows is not None and len(devices) > 1:
        raise ValueError("--window reconstructs few images at a time, which one GPU does: give one --device")
    wanted = Wanted(
        model=model, source=source, out=out, recipe=recipe, backend=backend, devices=tuple(devices), dtype=dtype,
        mode=mode, frames_chunk=frames_chunk, global_attention=global_attention, keyframes=keyframes, exports=exports,
        tracks=tracks, refine=refine, max_megapixels=max_megapixels, overwrite=overwrite, fast_jpeg=fast_jpeg,
    )  # fmt: skip
    if launched_rank() > 0:
        if windows is not None:
            raise ValueError("--window reconstructs few images at a time, which one GPU does: use no launcher")
        from vggt_int8.cli.follower import follow_first

        follow_first(wanted.loading())
        return
    report, content = reconstruct(wanted) if windows is None else reconstruct_windows(wanted, source, windows)
    if as_json:
        console.document("run", {"out": out, "report": content})
        return
    console.say(f"{console.count_images(len(report.inputs))} -> {out}")
    console.show(_summary(report))


@dataclass(frozen=True)
class Wanted:
    """The options of `run`. The images have been found and can be opened."""

    model: str
    source: Input
    out: Path
    recipe: str | None
    backend: str
    devices: tuple[str, ...]
    dtype: str | None
    mode: str
    frames_chunk: int
    global_attention: str | None
    keyframes: int | None
    exports: formats.Exports
    max_megapixels: float | None
    overwrite: bool
    fast_jpeg: bool = False
    tracks: int | None = None
    refine: bool = False

    @property
    def device(self) -> str | None:
        """Device of this process; None for the machine's first device."""
        return self.devices[0] if self.devices else None

    def loading(self) -> Loading:
        return Loading(self.model, self.recipe, self.backend, self.dtype, self.device or launched_device())

    def settings(self, network: "Int8Network") -> dict[str, Any]:
        """What report.json needs besides model, recipe, device and dtype to repeat the run."""
        from vggt_int8.export.selection import SEED

        attention = ("global_attention", "keyframes")
        names = ("backend", "mode", "frames_chunk", *attention, "max_megapixels", "fast_jpeg", "tracks", "refine")
        points = self.exports.points or default_points(network)
        here = {name: getattr(self, name) for name in names}
        return {**here, **self.exports.settings(), "points": points, "seed": SEED}


def reconstruct(wanted: Wanted) -> "tuple[RunReport, dict[str, Any]]":
    """Load, run and write. Returns the report and the contents of report.json. The folder appears when it is
    complete.
    """
    import torch

    from vggt_int8.cli.loading import resolve_device
    from vggt_int8.export import SCENE_ENTRIES, PhaseClock, owned_files, staged_folder, write_report
    from vggt_int8.export.repeat import identify_model
    from vggt_int8.export.write import format_of

    check_refine(wanted.refine)
    loading = wanted.loading()
    clock = PhaseClock(resolve_device(loading.device))
    owned = partial(owned_files, command="run")
    known, input_size = len(wanted.source) if isinstance(wanted.source, Pictures) else 1, local_input_size(wanted.model)
    needed = known * (input_size.size if input_size else 0) ** 2 * wanted.exports.bytes_per_pixel() / 2
    how = How(wanted.mode, wanted.max_megapixels, wanted.fast_jpeg)
    with (
        staged_folder(
            wanted.out, entries=SCENE_ENTRIES, overwrite=wanted.overwrite, owned=owned, needed=needed
        ) as folder,
        team_of(wanted.devices, loading) as team,
        reading(wanted.source, how, input_size) as read_for,
    ):
        importlib.import_module("vggt_int8.pretrained")  # seconds that are not the model's
        with clock.phase("load_model"):
            network = load_model(
                wanted.model, recipe=wanted.recipe, backend=wanted.backend, device=loading.device, dtype=wanted.dtype
            )
            identity = identify_model(wanted.model)
            team.join(network)
        check_heads(network, wanted.exports, wanted.tracks, refine=wanted.refine)
        check_scope(network, wanted.global_attention, wanted.keyframes)
        with clock.phase("load_images"):
            read = read_for(network)
        count = len(read.names)
        step = console.step(f"Reconstructing {console.count_images(count)}", images=count)
        with clock.phase("reconstruct"), step, torch.inference_mode():
            pred = team.call(
                network,
                read.pixels,
                **queries(network, wanted, read.transforms[0]),
                frames_chunk_size=wanted.frames_chunk,
                global_attention=None if wanted.global_attention is None else words_of(wanted.global_attention),
                keyframes=wanted.keyframes,
            )
        console.detail(lambda: f"{network.quantization_report()}\nran {network.runtime_report()}")
        outputs = _write(folder, pred, read, wanted, clock)
        settings = wanted.settings(network)
        report = report_of(network, wanted.model, identity, read.inputs, settings, clock.seconds, outputs)
        document = {**report.to_document(), **wanted.source.report()}
        return report, write_report(folder, "run", document, format_of)


def _write(folder: Path, pred: "VGGTOutput", read: Read, wanted: Wanted, clock: "PhaseClock") -> dict[str, Any]:
    from vggt_int8.export import Scene, write_scene

    scene = Scene.from_prediction(pred, read.transforms, read.names, read.files)
    options = wanted.exports.options(wanted.out)
    refinement: dict[str, Any] = {}
    if wanted.refine:
        with clock.phase("refine"), console.step("Refining cameras"):
            scene, refinement = refined(scene, options.points)
    with clock.phase("write"), console.step(f"Writing {wanted.out}") as progress:
        written = write_scene(folder, scene, wanted.exports.formats, options, save=True, on_frame=progress)
    return {**written, **refinement}


def check_heads(
    network: "Int8Network", exports: formats.Exports, tracks: int | None = None, *, refine: bool = False
) -> None:
    """Raise ValueError if the model lacks the heads for these points, formats or tracks, or cameras for refinement."""
    present, points = network.present_heads, exports.points
    if ("tracks" in exports.formats or tracks is not None) and "track" not in present:
        what = "--tracks" if tracks is not None else "format tracks"
        raise ValueError(f"{what} needs the track head, which this model does not have")
    if "camera" not in present and (needy := [name for name in formats.NEED_CAMERAS if name in exports.formats]):
        raise ValueError(f"format {needy[0]} needs the camera head, which this model does not have")
    if refine and ("camera" not in present or default_points(network) is None):
        raise ValueError("--refine needs the camera head and one that gives points, which this model does not have")
    needed = {"depth", "camera"} if points == "depth" else {"point"}
    if points is not None and not needed <= set(present):
        needs = "the depth and camera heads" if points == "depth" else "the point head"
        raise ValueError(f"--points {points} needs {needs}, which this model does not have")


def default_points(network: "Int8Network") -> str | None:
    """The default source of points, chosen by `export.points.point_source`."""
    present = network.present_heads
    if {"depth", "camera"} <= set(present):
        return "depth"
    return "world_points" if "point" in present else None


def _summary(report: "RunReport") -> Table:
    table = Table(box=None, show_header=False)
    for name, seconds in report.seconds.items():
        table.add_row(name.replace("_", " "), f"{seconds:.2f} s")
    points = report.outputs.get("points")
    if points is not None:
        table.add_row("points", f"{points['written']:,}")
    if (refined := report.outputs.get("refine")) is not None:
        table.add_row("refined cameras", _refinement(refined))
    transparent = sum(entry["transparent_pixels"] for entry in report.inputs)
    if transparent:
        table.add_row("transparent pixels", f"{transparent:,}")
    return table


def _refinement(summary: dict[str, Any]) -> str:
    """Result of bundle adjustment: errors in pixels of the photographs."""
    outcome = "kept" if summary["kept"] else f"not kept: {summary['reason']}"
    if "after" not in summary:
        return outcome
    return f"{summary['before']:.3g} -> {summary['after']:.3g} px by {summary['observations']}, {outcome}"
