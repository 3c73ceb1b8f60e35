"""`vggt-int8 quantize`: a floating-point checkpoint in, an INT8 checkpoint out."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggt_int8.cli import console, options
from vggt_int8.cli.loading import Backend, Device, Model, load_model, local_bytes

if TYPE_CHECKING:
    from vggt_int8 import VGGTInt8


def quantize(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the INT8 checkpoint.")],
    recipe: Annotated[
        str,
        typer.Option("--recipe", "-r", help="A shipped recipe's name or a .toml file.", **options.recipe_option()),
    ] = "int8_dynamic",
    backend: Backend = "auto",
    device: Device = None,
    max_shard_size: Annotated[
        str,
        typer.Option(help="Split the weights into files of at most this size.", **options.size_option()),
    ] = "5GB",
    as_json: options.Json = False,
) -> None:
    """Quantize a checkpoint by a recipe and save it; the result runs under every backend that fits the recipe."""
    from vggt_int8.export import staged_folder

    entries: list[str] = []  # known once the weights are written: their files may be numbered
    with staged_folder(out, entries=entries, overwrite=None, needed=local_bytes(model) / 4) as folder:  # of fp32
        loaded = load_model(model, recipe=recipe, backend=backend, device=device, dtype="fp16")  # as it is stored
        with console.step(f"Saving {out}"):
            loaded.save_pretrained(folder, max_shard_size=max_shard_size)
        files = sorted(folder.iterdir())
        entries += sorted((file.name for file in files), key=lambda name: name == "config.json")  # that comes last
        weights = sum(file.stat().st_size for file in files if file.suffix == ".safetensors")
    if as_json:
        content = {"out": out, "model": model, "recipe": recipe, "weight_bytes": weights}
        console.document("quantize", {**content, "files": [file.name for file in files], "layers": layers_of(loaded)})
        return
    console.say(loaded.quantization_report().summary())
    console.say(f"{out}: {console.megabytes(weights)} in {len(files)} files")


def layers_of(model: "VGGTInt8") -> list[dict[str, Any]]:
    """The rows of `quantization_report()` for a document."""
    return [asdict(row) for row in model.quantization_report()]
