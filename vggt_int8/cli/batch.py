"""`vggt-int8 batch`: reconstruct many scenes, one folder each, on one or more GPUs, with resume and retries."""

import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from vggt_int8 import __version__
from vggt_int8.cli import console, formats, options
from vggt_int8.cli.attention import GlobalAttention, Keyframes, check_attention
from vggt_int8.cli.frames import DEFAULT_FPS, Every, Fps, Sharpest
from vggt_int8.cli.loading import Backend, Dtype, FastJpeg, MaxMegapixels, Mode, Model, Recipe, fetch, resolve_device
from vggt_int8.cli.team import launched_device
from vggt_int8.cli.tracking import Refine, TrackCount, check_refine
from vggt_int8.disk import check_place
from vggt_int8.encoding import one_line
from vggt_int8.video.pick import check_choice

if TYPE_CHECKING:
    from vggt_int8.batch import Board

COLUMNS = ("images", "seconds", "points")


def batch(
    model: Model,
    scenes: Annotated[
        Path,
        typer.Argument(help="A folder that contains a folder of images or a video for each scene.", show_default=False),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Output folder, with a folder for each scene; shared by all processes and machines."
        ),
    ],
    recipe: Recipe = None,
    backend: Backend = "auto",
    device: Annotated[
        list[str] | None,
        typer.Option(
            help="Device; repeatable for several GPUs. By default all GPUs of this machine, or under a launcher "
            "the GPU of each process.",
            **options.repeatable(options.device_option()),
        ),
    ] = None,
    dtype: Dtype = None,
    mode: Mode = "crop",
    global_attention: GlobalAttention = None,
    keyframes: Keyframes = None,
    inside: Annotated[
        str | None,
        typer.Option(
            "--images",
            help="Subfolder of each scene's folder that contains its images; by default the folder itself, or images.",
            show_default=False,
        ),
    ] = None,
    format: formats.Formats = formats.DEFAULT_FORMATS,
    points: formats.Points = None,
    confidence_percentile: formats.ConfidencePercentile = 25.0,
    min_confidence: formats.MinConfidence = None,
    edges: formats.Edges = None,
    voxel: formats.Voxel = None,
    max_points: formats.MaxPoints = None,
    tracks: TrackCount = None,
    refine: Refine = False,
    save_scene: Annotated[
        bool, typer.Option("--save-scene/--no-scene", help="Also save the scene itself, for `export` and `view`.")
    ] = True,
    max_megapixels: MaxMegapixels = None,
    fast_jpeg: FastJpeg = False,
    fps: Fps = None,
    every: Every = None,
    sharpest: Sharpest = False,
    retries: Annotated[int, typer.Option(help="Number of retries for a failed scene.", **options.between(0, 1000))] = 1,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Retry scenes that failed in an earlier run.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Reconstruct many scenes: each input is a folder or a video, each output is a folder; writes summary.json.

    When it is started again, it continues with unfinished scenes. Processes of `accelerate launch`, or on several
    machines with a shared output folder, divide the scenes among themselves. Exit code 1 if a scene failed.
    """
    from vggt_int8.batch import Board, find_scenes
    from vggt_int8.batch.scenes import loose_images
    from vggt_int8.batch.summary import summarize
    from vggt_int8.export.repeat import identify_model
    from vggt_int8.files import write_json
    from vggt_int8.images.names import some_names
    from vggt_int8.recipe import load_recipe

    check_attention(global_attention, keyframes)
    exports = formats.exports(
        format, points=points, confidence_percentile=confidence_percentile, min_confidence=min_confidence, edges=edges,
        voxel=voxel, max_points=max_points,
    )  # fmt: skip
    check_refine(refine)
    found = find_scenes(scenes.expanduser(), inside)
    if loose := loose_images(scenes.expanduser()):
        warnings.warn(
            f"images in {scenes} itself are in no scene, so they are not used: {some_names(loose)}", stacklevel=1
        )
    given = [name for name, value in {"fps": fps, "every": every, "sharpest": sharpest}.items() if value]
    if given and not any(scene.is_video for scene in found):
        raise ValueError(f"--{given[0]} is for videos, and {scenes} holds none")
    fps = DEFAULT_FPS if fps is None and every is None else fps  # a video may come later, into the same results
    check_choice(fps, every, None, None, sharpest)
    _check_out(out.expanduser(), scenes)
    content = None if recipe is None else load_recipe(recipe).to_dict()
    settings: dict[str, Any] = {
        "recipe": recipe, "backend": backend, "dtype": dtype, "mode": mode, "max_megapixels": max_megapixels,
        "save_scene": save_scene, "exports": asdict(exports), "global_attention": global_attention,
        "keyframes": keyframes, "tracks": tracks, "refine": refine, "fast_jpeg": fast_jpeg, "fps": fps,
        "every": every, "sharpest": sharpest,
    }  # fmt: skip
    devices = device or _devices()
    fetch(model)
    board = Board(out.expanduser(), found, retries)
    # By content: paths may be spelled in other ways, and a file of a recipe may be edited.
    board.open({"version": __version__, **settings, "model": identify_model(model), "recipe": content})
    if retry_failed:
        board.forget_failures()
    settings |= {"model": model, "scenes": scenes, "inside": inside, "out": out, "retries": retries}
    _work_off(board, settings, devices)
    summary = summarize(board)
    if changed := [row["scene"] for row in summary["rows"] if row.get("images_changed")]:
        warnings.warn(
            f"other images than those that were used are now in {some_names(changed)}: remove the results to have them "
            "done again",
            stacklevel=1,
        )
    if as_json:
        console.document("batch", {"out": out, **summary})
    else:
        console.show(_table(summary))
        console.say(_sentence(summary, out))
    write_json(board.out / "summary.json", summary)  # last, since a full disk makes it fail
    if summary["done"] < summary["scenes"]:
        raise typer.Exit(1)


def _check_out(out: Path, scenes: Path) -> None:
    """Raise ValueError or OSError for an output folder that is not writable, or that is itself one of the scenes."""
    check_place(out)
    if scenes.expanduser().resolve() in (out.resolve(), *out.resolve().parents):
        raise ValueError(f"--out {out} lies in {scenes}, whose folders are scenes: choose a folder elsewhere")


def _work_off(board: "Board", settings: dict[str, Any], devices: list[str]) -> None:
    """Process all unfinished scenes with one worker per device. Exits if the workers reject the input."""
    from vggt_int8.batch.supervise import BAD_INPUT, BadInput, supervise

    left, total = board.unfinished(), len(board.scenes)
    console.note(f"{total} scenes, {total - len(left)} of them done or given up before, on {', '.join(devices)}")
    if not left:
        return
    rank, peers = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    wanted = {
        **settings, "peers": peers * len(devices), "quiet": console.settings.quiet,
        "verbose": console.settings.verbose,
    }  # fmt: skip
    commands = [_command({**wanted, "device": name, "rank": rank * len(devices) + i}) for i, name in enumerate(devices)]
    start = time.monotonic()
    try:
        supervise(board, commands, console.note)
    except BadInput:
        board.forget_settings()
        raise typer.Exit(BAD_INPUT) from None
    seconds, through = time.monotonic() - start, len(left) - len(board.unfinished())
    console.note(f"{through} scenes in {seconds:.0f} s, {3600 * through / seconds:.0f} an hour")


def _devices() -> list[str]:
    """Devices of this process: the one of its rank under a launcher, otherwise all GPUs of the machine, or the CPU."""
    import torch

    if resolve_device(None).type == "cpu":
        return ["cpu"]
    launched = launched_device()
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] if launched is None else [launched]


def _command(wanted: dict[str, Any]) -> Callable[[str], list[str]]:
    """The command that starts the worker of a token."""
    from vggt_int8.cli.batch_worker import to_argument

    return lambda token: [sys.executable, "-m", "vggt_int8.cli.batch_worker", to_argument({**wanted, "token": token})]


def _table(summary: dict[str, Any]) -> Table:
    """One line per scene for up to about fifty scenes; failed scenes are always listed."""
    table = Table("scene", "", *COLUMNS, "", box=None, pad_edge=False)
    rows = summary["rows"]
    bad = [row for row in rows if row["status"] != "done"]
    shown = rows if len(rows) <= 50 else bad
    for row in shown:
        cells = ["" if row.get(name) is None else f"{row[name]:,}" for name in COLUMNS]
        table.add_row(one_line(row["scene"]), row["status"], *cells, row.get("error") or "")
    return table


def _sentence(summary: dict[str, Any], out: Path) -> str:
    failed, left = summary["failed"], summary["scenes"] - summary["done"] - summary["failed"]
    words = [f"{summary['done']} of {summary['scenes']} scenes are in {out}"]
    words += [f"{failed} failed: mend them, or try again with --retry-failed"] if failed else []
    words += [f"{left} were not tried: see the messages above, and run the same command again"] if left else []
    return "; ".join(words)
