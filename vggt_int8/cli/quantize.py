"""`vggt-int8 quantize`: convert a floating-point checkpoint to an INT8 checkpoint."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggt_int8.cli import console, options
from vggt_int8.cli.loading import Backend, Device, Model, load_model, local_bytes
from vggt_int8.recipe import RecipeError, load_recipe
from vggt_int8.recipe.scheme import OBSERVERS, ROUNDINGS

if TYPE_CHECKING:
    from vggt_int8 import Recipe, VGGTInt8
    from vggt_int8.calibration.images import Scenes


def quantize(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the INT8 checkpoint.")],
    recipe: Annotated[
        str,
        typer.Option("--recipe", "-r", help="A shipped recipe's name or a .toml file.", **options.recipe_option()),
    ] = "int8_dynamic",
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="Calibration images for static scales or smoothing strengths: a folder, a pattern or a file; "
            "repeatable. A folder is a scene.",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(help="Number of images to use; by default as in the recipe.", **options.between(1)),
    ] = None,
    observer: Annotated[
        str | None,
        typer.Option(
            help=f"How a range is found from what was seen: {', '.join(OBSERVERS)}; by default what the recipe says. "
            "per_channel takes the place of the recipe's smoothing.",
            **options.choice("observer", *OBSERVERS),
        ),
    ] = None,
    rounding: Annotated[
        str | None,
        typer.Option(
            help="Rounding of linear weights: nearest, or gptq, which uses their inputs on these images and "
            "needs about seven passes over them, and more memory; by default as in the recipe.",
            **options.choice("rounding", *ROUNDINGS),
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Seed for selecting images if there are more than needed.", **options.seed_option())
    ] = 0,
    backend: Backend = "auto",
    device: Device = None,
    max_shard_size: Annotated[
        str,
        typer.Option(help="Split the weights into files of at most this size.", **options.size_option()),
    ] = "5GB",
    as_json: options.Json = False,
) -> None:
    """Quantize a checkpoint with a recipe and save it. The result runs on every backend that supports the recipe."""
    from vggt_int8.export import staged_folder

    changed = {"calibration_samples": samples, "observer": observer, "rounding": rounding}
    chosen = calibrated_recipe(recipe, calibration, {key: value for key, value in changed.items() if value is not None})
    scenes = find_calibration(chosen, calibration)
    entries: list[str] = []  # known once the weights are written: their files may be numbered
    with staged_folder(out, entries=entries, overwrite=None, needed=local_bytes(model) / 4) as folder:  # of fp32
        loaded = load_model(
            model,
            recipe=chosen,
            calibration=scenes,
            seed=seed,
            backend=backend,
            device=device,
            dtype="fp16",  # as it is stored
        )
        with console.step(f"Saving {out}"):
            loaded.save_pretrained(folder, max_shard_size=max_shard_size)
        files = sorted(folder.iterdir())
        entries += sorted((file.name for file in files), key=lambda name: name == "config.json")  # that comes last
        weights = sum(file.stat().st_size for file in files if file.suffix == ".safetensors")
    if as_json:
        content = {"out": out, "model": model, "recipe": recipe, "weight_bytes": weights, "calibration": facts(loaded)}
        console.document("quantize", {**content, "files": [file.name for file in files], "layers": layers_of(loaded)})
        return
    console.say(loaded.quantization_report().summary())
    if (found := facts(loaded)) is not None:
        console.say(summary(found))
    console.say(f"{out}: {console.megabytes(weights)} in {len(files)} files")


def calibrated_recipe(name: str, calibration: list[str] | None, changed: dict[str, Any]) -> "Recipe":
    """The recipe with the calibration options applied. changed: recipe field -> value, for options that were given.
    Raises `RecipeError` if they contradict the recipe.
    """
    recipe = load_recipe(name)
    if changed and calibration is None:
        option = next(iter(changed)).removeprefix("calibration_")
        raise RecipeError(f"--{option} says how to calibrate, so --calibration is needed beside it")
    if "observer" in changed and "static" not in recipe.activations_asked:
        raise RecipeError(
            f"--observer says how static scales are found, and recipe {recipe.name!r} has none: leave it out, or "
            "choose a recipe that has, such as int8_static_rotated"
        )
    if changed.get("observer") == "per_channel":  # which folds factors of its own
        changed = {**changed, "smoothing": 0}
    return replace(recipe, **changed) if changed else recipe


def find_calibration(recipe: "Recipe", calibration: list[str] | None) -> "Scenes | None":
    """Find the calibration images before the model is downloaded. Raises the errors of the images, and `RecipeError` if
    they are missing.
    """
    from vggt_int8.calibration import find_scenes
    from vggt_int8.pretrained.in_place import check_calibration

    check_calibration(recipe, calibration)
    return None if calibration is None else find_scenes(calibration)


def facts(model: "VGGTInt8") -> dict[str, Any] | None:
    """The calibration in the model's config."""
    found: dict[str, Any] | None = getattr(model.config.quantization_config, "calibration", None)
    return found


def summary(calibration: dict[str, Any]) -> str:
    """The calibration in one line."""
    images, calls = console.count_images(calibration["images"]), calibration["calls"]
    ranges = [own for layer in calibration["ranges"].values() for own in layer]
    strengths = calibration.get("smoothing", {}).values()
    found = []
    if ranges:
        number = len(calibration["ranges"])
        found.append(f"ranges of {number} layers from {min(ranges):.3g} to {max(ranges):.3g}")
    if strengths:
        found.append(f"smoothing before {len(strengths)} layers of strength {min(strengths):g} to {max(strengths):g}")
    observer = f"observer {calibration['observer']}, " if ranges else ""
    in_calls = "1 call" if calls == 1 else f"{calls} calls"
    how = f"calibrated with {images} in {in_calls}, {observer}seed {calibration['seed']}"
    return f"{how}: {'; '.join(found)}" if found else how


def layers_of(model: "VGGTInt8") -> list[dict[str, Any]]:
    """The rows of `quantization_report()` for a JSON document."""
    return [asdict(row) for row in model.quantization_report()]
