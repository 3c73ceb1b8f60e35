"""`vggt-int8 compare`: how far the outputs of one model are from those of another on the same images."""

from typing import Annotated

import typer
from rich.table import Table

from vggt_int8.cli import console
from vggt_int8.cli.loading import Backend, Device, Dtype, Images, Mode, load_images_for, load_model

METRICS = {
    "relative": "relative",
    "mae": "mean abs.",
    "max_diff": "max abs.",
    "sqnr_db": "SQNR (dB)",
    "cosine": "cosine",
}


def compare(
    model_a: Annotated[str, typer.Argument(help="The reference: a folder or a Hub model.", show_default=False)],
    model_b: Annotated[str, typer.Argument(help="The model that is measured.", show_default=False)],
    images: Images,
    recipe: Annotated[
        str | None, typer.Option("--recipe", "-r", help="Quantize MODEL_B by this recipe while loading.")
    ] = None,
    backend: Backend = "auto",
    device: Device = None,
    dtype: Dtype = None,
    mode: Mode = "crop",
) -> None:
    """Run two models on the same images and table the differences of MODEL_B's outputs from MODEL_A's."""
    from vggt_int8 import compare_model_outputs
    from vggt_int8.images import find_images

    paths = find_images(images)
    first = load_model(model_a, device=device, dtype=dtype)
    second = load_model(model_b, recipe=recipe, backend=backend, device=device, dtype=dtype)
    pixels, _ = load_images_for(first, paths, mode)
    with console.step(f"Comparing on {console.count_images(len(paths))}"):
        result = compare_model_outputs(first, second, pixels)
    console.say(f"Difference of {model_b} from {model_a} on {console.count_images(len(paths))}")
    table = Table(box=None, pad_edge=False)
    table.add_column("output", no_wrap=True)
    for title in METRICS.values():
        table.add_column(title, justify="right")
    outputs = [name for name, value in result.items() if isinstance(value, dict) and name != "overall"]
    for name in [*outputs, "overall"]:
        table.add_row(name, *(f"{result[name][key]:.4g}" for key in METRICS))
    console.out.print(table)
