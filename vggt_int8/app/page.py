"""The only module that imports gradio: the page's layout and its event handlers.

By default gradio stores users' runs in their browser, has a page with traffic statistics, sends telemetry, loads fonts
from another host, and can share the page through a public server. All of this is disabled here.
"""

import contextlib
import io
import re
import shutil
import uuid
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from vggt_int8.address import free_port, page_address
from vggt_int8.app.compared import (
    Comparison,
    Outcome,
    camera_table,
    compare_recipes,
    cost_table,
    difference_table,
)
from vggt_int8.app.inputs import image_files
from vggt_int8.app.limits import Limits
from vggt_int8.app.models import Models
from vggt_int8.disk import message_of
from vggt_int8.export import ExportOptions, PointOptions
from vggt_int8.export.bundle import write_bundle

NOTHING = "nothing"  # in the place of a second recipe
COST = ["recipe", "time", "weights", "GPU memory", "runs on"]
DIFFERENCE = ["difference", "mean or median", "largest or 90 %"]
CAMERA = ["image", "position", "turn", "focal length"]
FORMATS = ("ply", "glb", "colmap", "transforms", "npz", "depth")
INTRODUCTION = """# vggt-int8
Images of one scene, or a video, to cameras, depth and points: under one recipe, or under two beside each other."""
_FONTS = ("system-ui", "sans-serif")  # of the visitor's machine


def build(models: Models, folder: Path, limits: Limits) -> gr.Blocks:
    """Build the page. Results are written below `folder`."""
    first = "fp16" if "fp16" in models.choices else models.choices[0]
    second = "int8_dynamic" if "int8_dynamic" in models.choices else NOTHING
    with gr.Blocks(title="vggt-int8", analytics_enabled=False, fill_width=True) as blocks:
        gr.Markdown(f"{INTRODUCTION}\n\nModel: `{models.name}`; at most {limits.images} images.")
        with gr.Row():
            files = gr.File(label="Images, or one video", file_count="multiple", type="filepath", height=160)
            with gr.Column():
                recipes = [
                    gr.Dropdown(models.choices, value=first, label="Recipe"),
                    gr.Dropdown([NOTHING, *models.choices], value=second, label="Compared with"),
                ]
                percentile = gr.Slider(0, 99, 25, step=1, label="Leave out the least confident points, %")
                run = gr.Button("Reconstruct", variant="primary")
        costs = gr.Dataframe(headers=COST, label="Cost", interactive=False)
        differences = gr.Dataframe(headers=DIFFERENCE, label="Differences from the first", interactive=False)
        state = gr.State(None)
        with gr.Row(equal_height=False):
            sides = [_side(name) for name in ("First", "Second")]
        outputs = [state, costs, differences, *(part for side in sides for part in side[:3])]
        reconstruct = _reconstruct(models, folder, limits)
        run.click(reconstruct, [files, *recipes, percentile], outputs, api_visibility="private")
        for number, (*_, format, button, file) in enumerate(sides):
            button.click(_download(number, folder), [state, format, percentile], file, api_visibility="private")
    blocks.queue(api_open=False, max_size=limits.waiting, default_concurrency_limit=1)
    return blocks


def launch(blocks: gr.Blocks, host: str, port: int, limits: Limits) -> str:
    """Serve the page in background threads and return its address. port: 0 selects any free port."""
    font: Any = list(_FONTS)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        blocks.launch(
            server_name=host,
            server_port=port or free_port(host),
            max_file_size=limits.upload_bytes,
            theme=gr.themes.Base(font=font, font_mono=["monospace"]),
            prevent_thread_lock=True,
            share=False,
            quiet=True,
            show_error=False,
            run_history=False,
            enable_monitoring=False,
            footer_links=[],
            allowed_paths=[],
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            inbrowser=False,
        )
    return page_address(host, blocks.server_port)


def _side(name: str) -> tuple[Any, ...]:
    """Controls of one reconstruction: points, depth, cameras, format, button, file."""
    with gr.Column():
        return (
            gr.Model3D(label=f"{name}: points and cameras", clear_color=(1.0, 1.0, 1.0, 1.0), height=400),
            gr.Gallery(label="Depth: near is bright", columns=4, height=240, buttons=["fullscreen"]),
            gr.Dataframe(headers=CAMERA, label="Cameras", interactive=False, max_height=240),
            gr.Dropdown(FORMATS, value="ply", label="Format"),
            gr.Button("Prepare the download"),
            gr.File(label="Download", interactive=False),
        )


def _reconstruct(models: Models, folder: Path, limits: Limits) -> Callable[..., list[Any]]:
    def run(
        files: Sequence[str] | None,
        first: str,
        second: str,
        percentile: float,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how gradio asks for it
    ) -> list[Any]:
        recipes = [first] if second in (NOTHING, first) else [first, second]
        place = folder / uuid.uuid4().hex
        place.mkdir(parents=True)
        try:
            images = image_files([Path(file) for file in files or ()], place / "images", limits.images)
            comparison = compare_recipes(models, recipes, images, place, percentile=percentile, progress=progress)
        except BaseException as error:
            shutil.rmtree(place, ignore_errors=True)
            raise _told(error, folder.parent) from error
        return _shown(comparison)

    return run


def _shown(comparison: Comparison) -> list[Any]:
    """Values of all outputs. The second side is empty if there is only one outcome."""
    sides: list[Any] = []
    for outcome in [*comparison.outcomes, None][:2]:
        sides += [None, None, None] if outcome is None else _shown_side(outcome)
    return [comparison, cost_table(comparison), difference_table(comparison), *sides]


def _shown_side(outcome: Outcome) -> list[Any]:
    glb, scene = outcome.folder / "scene.glb", outcome.scene
    names = [scene.names[index] for index in range(len(scene))]
    return [
        str(glb) if glb.is_file() else None,
        [(str(path), name) for path, name in zip(outcome.pictures, names, strict=True)],
        camera_table(scene),
    ]


def _download(number: int, folder: Path) -> Callable[..., str]:
    def prepare(comparison: Comparison | None, format: str, percentile: float) -> str:
        if comparison is None or len(comparison.outcomes) <= number:
            raise gr.Error("there is no reconstruction yet", print_exception=False)
        outcome = comparison.outcomes[number]
        if not outcome.folder.is_dir():
            raise gr.Error("the reconstruction was deleted meanwhile: make it again", print_exception=False)
        place = outcome.folder / uuid.uuid4().hex
        options = ExportOptions(
            points=PointOptions(confidence_percentile=percentile),
            images="copy" if format in ("colmap", "transforms") else None,
        )
        try:
            return str(write_bundle(place, {outcome.recipe: outcome.scene}, format, options))
        except Exception as error:
            raise _told(error, folder.parent) from error

    return prepare


def _told(error: BaseException, folder: Path) -> BaseException:
    """The message for the user about wrong input or a lack of memory, without paths on this machine.

    Other errors are bugs: the user only learns that there was an error, and the details go to the console.
    """
    if not isinstance(error, ValueError | OSError | MemoryError | torch.OutOfMemoryError):
        return error
    words = message_of(error) or type(error).__name__
    return gr.Error(re.sub(rf"{re.escape(str(folder))}(/[^/ ]+)*/", "", words), print_exception=False)
