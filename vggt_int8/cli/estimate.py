"""`vggt-int8 estimate`: how many frames fit in a GPU's memory with each recipe, without loading a model.

Only the model's config is read.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.table import Table

from vggt_int8.cli import console, options
from vggt_int8.cli.bench import height_and_width
from vggt_int8.embedded import EMBEDDED_NAMES

if TYPE_CHECKING:
    from vggt_int8.model.configs import AnyConfig
    from vggt_int8.recipe import Recipe
    from vggt_int8.runtime.fits import Question

RECIPES = ("fp16", "int8_rotated")  # where none is asked for; INT8 recipes differ by a few per cent in size
DEFAULT = "VGGT-1B"


def estimate(
    model: Annotated[
        str | None,
        typer.Argument(
            help=f"A folder, a file, a model on the Hugging Face Hub, or {EMBEDDED_NAMES}, of which the config "
            "alone is read; by default VGGT-1B's sizes, without asking anybody.",
            show_default=False,
            autocompletion=options.offer_embedded,
        ),
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            "--recipe",
            "-r",
            help=f"Of a floating-point model; several times for several; by default {' and '.join(RECIPES)}.",
            **options.recipes_option(),
        ),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            help="Also show the memory for this number of frames; exit code 1 if they never fit.", **options.between(1)
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="Height x width of the model's images in pixels; by default 4:3 photographs as `run` resizes them.",
            metavar="HxW",
            **options.checked(lambda text: height_and_width(text)),
        ),
    ] = None,
    memory_gb: Annotated[
        list[float] | None,
        typer.Option(
            help="Nominal memory of the GPU (a 12 GB card has 12 GiB); repeatable.",
            show_default=False,
            **options.each_between(1),
        ),
    ] = None,
    keyframes: Annotated[
        int | None,
        typer.Option(
            help="Assume global attention to this number of key frames; by default exact attention.",
            **options.between(1),
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Estimate how many frames fit in a GPU's memory, with the runtime's own planner; no model is loaded."""
    from vggt_int8.runtime.fits import cards_with

    config, stored = _config(model)
    pixels = _of_a_photograph(config) if size is None else height_and_width(size)
    if stored is not None and recipe:
        raise ValueError(f"{model} is quantized already, by {stored.name}: leave --recipe out")
    rows = []
    for name, question in _questions(config, [stored] if stored is not None else recipe, pixels, keyframes):
        for gigabytes, memory in cards_with(memory_gb or ()):
            row: dict[str, Any] = {
                "memory_gb": gigabytes,
                "recipe": name,
                "weight_bytes": question.weights,
                "frames_on_gpu": question.frames_on_gpu(memory),
                "frames": question.most_frames(memory),
            }
            if frames is not None:
                need = question.need(frames, memory)
                row["asked"] = {
                    "frames": frames,
                    "fits": need.fits,
                    "bytes": need.total,
                    "how": need.words,
                    "plan": asdict(need.plan),
                }
            rows.append(row)
    rows.sort(key=lambda row: row["memory_gb"])  # a stable sort: recipes stay in the order they were given
    if as_json:
        console.document("estimate", {"model": model or DEFAULT, "size": pixels, "keyframes": keyframes, "rows": rows})
    else:
        how = "" if keyframes is None else f", {keyframes} key frames"
        console.say(f"{model or DEFAULT}, images of {pixels[0]} x {pixels[1]} pixels, fp16, native backend{how}")
        console.show(_table(rows, frames))
    if frames is not None and not any(row["asked"]["fits"] for row in rows):
        raise typer.Exit(1)


def _questions(
    config: "AnyConfig", recipes: "Sequence[str | Recipe] | None", size: tuple[int, int], keyframes: int | None
) -> "list[tuple[str, Question]]":
    """(recipe name, query) for each row of weights."""
    from vggt_int8.recipe import load_recipe
    from vggt_int8.runtime.fits import Question, skeleton, stored_bytes

    chosen = [load_recipe(recipe) for recipe in recipes or RECIPES]
    return [
        (recipe.name, Question(config, stored_bytes(skeleton(config, recipe)[0]), size, keyframes)) for recipe in chosen
    ]


def _of_a_photograph(config: "AnyConfig") -> tuple[int, int]:
    """Height and width of a 4:3 landscape photograph at the model's image width, in whole patches."""
    patch = config.patch_size
    return max(1, round(0.75 * config.img_size / patch)) * patch, config.img_size


def _config(model: str | None) -> "tuple[AnyConfig, Recipe | None]":
    """Config of a model and its recipe; None for a floating-point model. Raises the errors of `from_pretrained` for a
    bad source.
    """
    from vggt_int8.embedded import resolve_source
    from vggt_int8.model.config import VGGTConfig
    from vggt_int8.pretrained.source import load_config, open_file, stored_quantization
    from vggt_int8.saves.names import check_source

    if model is None:
        return VGGTConfig(), None
    source = resolve_source(model)
    check_source(source, {})
    config = cast("AnyConfig", open_file(source, None, {})[1] if Path(source).is_file() else load_config(source, {}))
    quantization = stored_quantization(config, model)
    return config, None if quantization is None else quantization.parsed()


def _table(rows: list[dict[str, Any]], frames: int | None) -> Table:
    table = Table(
        "GPU", "recipe", "weights", "frames, all on it", "frames, parts on the host", box=None, pad_edge=False
    )
    if frames is not None:
        table.add_column("1 frame" if frames == 1 else f"{frames} frames")
    for row in rows:
        cells = [f"{row['memory_gb']:g} GB", row["recipe"], console.megabytes(row["weight_bytes"])]
        cells += [f"{row['frames_on_gpu']:,}", f"{row['frames']:,}"]
        if frames is not None:
            asked = row["asked"]
            cells.append(f"{asked['bytes'] / 2**30:.1f} GiB, {asked['how'] if asked['fits'] else 'does not fit'}")
        table.add_row(*cells)
    return table
