"""`vggt-int8 compare`: compare the outputs of two models on the same images."""

from typing import Annotated

import typer
from rich.table import Table

from vggt_int8.cli import console, options
from vggt_int8.cli.loading import (
    EMBEDDED_NAMES,
    Backend,
    Device,
    Dtype,
    Images,
    MaxMegapixels,
    Mode,
    find_and_check,
    load_images_for,
    load_model,
)

METRICS = {
    "relative": "relative",
    "mae": "mean abs.",
    "max_diff": "max abs.",
    "sqnr_db": "SQNR (dB)",
    "cosine": "cosine",
}

# Keys of `geometric_differences`.
GEOMETRY = {
    "rotation_degrees": ("rotation of the cameras", "°"),
    "center_percent": ("centres of the cameras, of their extent", " %"),
    "field_of_view_degrees": ("field of view", "°"),
    "depth_percent": ("depth", " %"),
    "points_percent": ("points", " %"),
}
WORDS = {"mean": "mean", "max": "largest of the frames", "median": "median", "p90": "90th percentile"}


def compare(
    model_a: Annotated[
        str,
        typer.Argument(
            help=f"The reference: a folder, a Hub model, or {EMBEDDED_NAMES}.",
            show_default=False,
            autocompletion=options.offer_embedded,
        ),
    ],
    model_b: Annotated[
        str,
        typer.Argument(help="Model to measure.", show_default=False, autocompletion=options.offer_embedded),
    ],
    images: Images,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", "-r", help="Quantize MODEL_B with this recipe while loading.", **options.recipe_option()
        ),
    ] = None,
    backend: Backend = "auto",
    device: Device = None,
    dtype: Dtype = None,
    mode: Mode = "crop",
    max_megapixels: MaxMegapixels = None,
    as_json: options.Json = False,
) -> None:
    """Run two models on the same images and print how MODEL_B's outputs differ from MODEL_A's."""
    paths = find_and_check(images, max_megapixels)
    from vggt_int8 import compare_model_outputs

    first = load_model(model_a, device=device, dtype=dtype)
    second = load_model(model_b, recipe=recipe, backend=backend, device=device, dtype=dtype)
    pixels, _ = load_images_for(first, paths, mode, max_megapixels)
    with console.step(f"Comparing on {console.count_images(len(paths))}"):
        result = compare_model_outputs(first, second, pixels)
    outputs = {n: v for n, v in result.items() if isinstance(v, dict) and n not in ("overall", "geometry")}
    geometry = result.get("geometry", {})
    if as_json:
        content = {"model_a": model_a, "model_b": model_b, "recipe": recipe, "images": [str(path) for path in paths]}
        numbers = {"outputs": outputs, "overall": result["overall"], "geometry": geometry}
        console.document("compare", {**content, **numbers})
        return
    console.say(f"Difference of {model_b} from {model_a} on {console.count_images(len(paths))}")
    table = Table(box=None, pad_edge=False)
    table.add_column("output", no_wrap=True)
    for title in METRICS.values():
        table.add_column(title, justify="right")
    for name, values in {**outputs, "overall": result["overall"]}.items():
        table.add_row(name, *(f"{values[key]:.4g}" for key in METRICS))
    console.show(table)
    if geometry:
        console.say("")
        console.show(geometry_table(geometry))


def geometry_table(geometry: dict[str, dict[str, float]]) -> Table:
    """`geometric_differences` as a table: means and maxima over frames, medians and 90th percentiles over pixels."""
    table = Table("geometry", "typical", "large", "", box=None, pad_edge=False)
    table.columns[1].justify = table.columns[2].justify = "right"
    for name, values in geometry.items():
        title, unit = GEOMETRY[name]
        typical, large = (f"{value:.3g}{unit}" for value in values.values())
        table.add_row(title, typical, large, " and ".join(WORDS[key] for key in values))
    return table
