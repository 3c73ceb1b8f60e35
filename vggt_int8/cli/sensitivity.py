"""`vggt-int8 sensitivity`: measure which layers lose accuracy in INT8, and write a recipe for a budget."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggt_int8.cli import console, options
from vggt_int8.cli.attention_ranking import attention_table, check_options, check_views, rank_attention, warn_above
from vggt_int8.cli.loading import (
    Backend,
    Device,
    MaxMegapixels,
    Mode,
    Model,
    fetch,
    load_model,
    resolve_device,
)
from vggt_int8.cli.ranking_table import ranking_table
from vggt_int8.disk import check_own_folder, check_place
from vggt_int8.files import write_json
from vggt_int8.listing import first_few
from vggt_int8.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    import torch

    from vggt_int8 import VGGTInt8
    from vggt_int8.sensitivity.record import Record
    from vggt_int8.sensitivity.scenes import Scene
    from vggt_int8.sensitivity.sources import Source
    from vggt_int8.sensitivity.tables import Row
    from vggt_int8.sensitivity.units import Unit

SYNTHETIC = "synthetic"
MEASURED, RESULT, CHART, RECIPE = "measured.jsonl", "sensitivity.json", "ranking.svg", "recipe.toml"
SHOWN = 30  # rows of the table on the console


def sensitivity(
    model: Model,
    images: Annotated[
        list[str],
        typer.Argument(
            help=f"Scenes: folders of images, each a scene; files, together one; stored scenes; or {SYNTHETIC}.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for measurements, ranking, chart and recipe.")],
    by: Annotated[
        str, typer.Option(help="Unit that is changed at a time.", **options.choice("unit", *options.UNITS))
    ] = "group",
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe", "-r", help="Recipe for all layers that are not too sensitive.", **options.recipe_option()
        ),
    ] = "int8_rotated",
    upgrade: Annotated[
        list[str] | None,
        typer.Option(
            help="Options for sensitive layers; repeatable, by default weight-only (rotated if --recipe is) and keep.",
            show_default=False,
            **options.choices("choice", *options.UPGRADES),
        ),
    ] = None,
    error: Annotated[
        float | None,
        typer.Option(
            help="Write the cheapest recipe whose largest predicted error is at most this many degrees or per cent.",
            show_default=False,
            **options.between(1e-6, 100),
        ),
    ] = None,
    size_mb: Annotated[
        float | None,
        typer.Option(
            help="Write the most accurate recipe of at most this many megabytes (10^6 bytes) of weights.",
            show_default=False,
            **options.between(0.001, 1e6),
        ),
    ] = None,
    scenes: Annotated[
        int | None, typer.Option(help="Number of synthetic scenes; by default 8.", **options.between(1))
    ] = None,
    views: Annotated[
        int | None, typer.Option(help="Images per synthetic scene; by default 4.", **options.between(2))
    ] = None,
    size: options.SyntheticSize = None,
    attention: Annotated[
        bool, typer.Option("--attention", help="Measure restricted global attention in each layer instead.")
    ] = False,
    keyframes: Annotated[
        int | None,
        typer.Option(
            help="With --attention: also measure this number of key frames.", show_default=False, **options.between(1)
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed for the points to track.", **options.seed_option())] = 0,
    backend: Backend = "auto",
    device: Device = None,
    dtype: Annotated[
        str, typer.Option(help="Compute dtype of both models.", **options.choice("dtype", *options.DTYPES))
    ] = "fp32",
    mode: Mode = "crop",
    max_megapixels: MaxMegapixels = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace measurements of other models, images or options.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Quantize one group, block or layer at a time, and rank them by the change of the outputs."""
    out = out.expanduser()
    check_place(out)
    check_own_folder(out, {MEASURED, RESULT, CHART, RECIPE}, MEASURED, "this command")
    unlike: dict[str, Any] = {"--upgrade": upgrade, "--size-mb": size_mb}
    unlike |= {"--by": None if by == "group" else by, "--backend": None if backend == "auto" else backend}
    check_options(attention, keyframes, unlike)
    _check_options(images, {"--scenes": scenes, "--views": views, "--size": size}, error, size_mb)
    from vggt_int8.sensitivity.sources import find_scenes

    most = None if max_megapixels is None else round(max_megapixels * 1e6)
    sources = None if images == [SYNTHETIC] else find_scenes(images, most)
    base, target = load_recipe(recipe), resolve_device(device)
    fetch(model)
    config = _floating_config(model)
    if sources is None:
        data = _rendered(config, scenes or 8, views or 4, size, target)
    else:
        data = _read(sources, config, mode, most)
    settings: dict[str, Any]
    if attention:
        check_views(data, keyframes)
        settings = {"by": "attention", "keyframes": keyframes, "dtype": dtype, "seed": seed, "device": target.type}
    else:
        from vggt_int8.sensitivity.units import usual_upgrades

        settings = {"by": by, "upgrades": upgrade or list(usual_upgrades(base)), "dtype": dtype, "seed": seed}
        settings |= {"backend": backend, "device": target.type}
    record = _record(out, model, base, settings, data, overwrite)
    plain = load_model(model, device=str(target), dtype=dtype)
    rows: list[list[Row]] = []
    if attention:
        document = rank_attention(plain, model, base, settings, data, record, error, out / RESULT, out / RECIPE)
    else:
        document, rows = _rank_layers(plain, model, base, settings, data, record, out, error, size_mb)
    if as_json:
        console.document("sensitivity", {"out": out, **document})
    elif attention:
        console.show(attention_table(document))
        console.say(f"Results: {out / RESULT}" + (f", {out / RECIPE}" if error is not None else ""))
    else:
        console.show(ranking_table(rows, by, SHOWN))
        _conclude(rows, document, out)


def _check_options(images: list[str], of_scenes: dict[str, Any], error: float | None, size_mb: float | None) -> None:
    if SYNTHETIC in images and len(images) > 1:
        raise ValueError(f"{SYNTHETIC} scenes and images of yours are two measurements: give one of them")
    for option, value in of_scenes.items():
        if images != [SYNTHETIC] and value is not None:
            raise ValueError(f"{option} makes synthetic scenes, and the images are {images[0]}: leave one of them out")
    if error is not None and size_mb is not None:
        raise ValueError("--error and --size-mb are two budgets: give one of them, and read what the other becomes")


def _floating_config(model: str) -> Any:
    """The model's config. Raises ValueError if the model is already quantized."""
    from vggt_int8.embedded import resolve_source
    from vggt_int8.pretrained.source import load_config, open_file

    source = resolve_source(model)
    config = open_file(source, None, {})[1] if Path(source).is_file() else load_config(source, {})
    if getattr(config, "quantization_config", None):
        raise ValueError(f"{model} is quantized already: give the floating-point model that it was made from")
    return config


def _rendered(
    config: Any, count: int, views: int, size: tuple[int, int] | None, device: "torch.device"
) -> "list[Scene]":
    """Scenes of the calibration split, so that the recipe can still be evaluated on held-out scenes."""
    from vggt_int8.sensitivity.scenes import render

    square = (config.img_size, config.img_size)
    with console.step(f"Rendering {count} scenes"):
        return render(count, views, size or square, "calibration", config.patch_size, str(device))


def _read(sources: "list[Source]", config: Any, mode: str, max_pixels: int | None) -> "list[Scene]":
    from vggt_int8.sensitivity.scenes import read_scene

    with console.step(f"Reading {len(sources)} scenes") as progress:
        found = []
        for source in sources:
            found.append(read_scene(source, config, mode, max_pixels))
            progress(len(found), len(sources))
    return found


def _record(
    out: Path, model: str, base: Recipe, settings: dict[str, Any], data: "list[Scene]", overwrite: bool
) -> "Record":
    """Existing measurements. Raises ValueError if they are of another model, other images or other options."""
    from vggt_int8 import __version__
    from vggt_int8.export.repeat import identify_model
    from vggt_int8.sensitivity.record import Record

    images = {scene.name: scene.digest() for scene in data}
    identity = {"model": identify_model(model), "recipe": base.to_dict(), **settings, "images": images}
    return Record(out / MEASURED, {**identity, "version": __version__, "format_version": 1}, overwrite=overwrite)


def _rank_layers(
    plain: "VGGTInt8",
    model: str,
    base: Recipe,
    settings: dict[str, Any],
    data: "list[Scene]",
    record: "Record",
    out: Path,
    error: float | None,
    size_mb: float | None,
) -> "tuple[dict[str, Any], list[list[Row]]]":
    """Measure, rank and, with a budget, write a recipe. Returns the contents of sensitivity.json, and the ranking."""
    from vggt_int8.sensitivity.document import document_of

    rows, units = _measure(plain, base, settings, data, record)
    document = document_of(model, base, settings, data, record, rows, plain.device)
    _write(out, rows, document)  # a budget may be more than can be met
    if error is not None or size_mb is not None:
        document["budget"] = {"error": error, "size_mb": size_mb}
        document |= _write_recipe(plain, model, base, units, rows, document, settings, data, out)
        _write(out, rows, document)
    return document, rows


def _measure(
    plain: "VGGTInt8", base: Recipe, settings: dict[str, Any], data: "list[Scene]", record: "Record"
) -> "tuple[list[list[Row]], list[Unit]]":
    """The ranking and its units."""
    from vggt_int8.sensitivity.measure import Change, measure_changes
    from vggt_int8.sensitivity.tables import ranking, silent
    from vggt_int8.sensitivity.units import StoredChange, changes_of, find_units, smooth

    plain.set_runtime("off")  # layer by layer, as the changed model runs
    smooth(plain, base)
    units = find_units(plain, base, settings["by"], settings["upgrades"])
    changes: list[Change] = [StoredChange(), *changes_of(units, base, settings["backend"])]
    with console.step(f"Measuring {len(changes)} changes on {len(data)} scenes") as progress:
        measure_changes(plain, data, changes, record, settings["seed"], progress)
    rows = ranking(units, record, len(data))
    if nothing := silent(rows):
        warnings.warn(f"no output of these scenes changes at all with {first_few(nothing)}", stacklevel=2)
    return rows, units


def _write_recipe(
    plain: "VGGTInt8",
    model: str,
    base: Recipe,
    units: "list[Unit]",
    rows: "list[list[Row]]",
    document: dict[str, Any],
    settings: dict[str, Any],
    data: "list[Scene]",
    out: Path,
) -> dict[str, Any]:
    """Choose, write the recipe, load the model with it, and measure it."""
    from vggt_int8.files import write_whole
    from vggt_int8.sensitivity.measure import compare_on
    from vggt_int8.sensitivity.measures import largest, over_scenes
    from vggt_int8.sensitivity.outcome import Budget, decide, in_words
    from vggt_int8.sensitivity.recipe_file import recipe_text
    from vggt_int8.sensitivity.units import stored_size

    wish = document["budget"]
    budget = Budget(wish["error"], None if wish["size_mb"] is None else int(wish["size_mb"] * 1e6))
    path = out / RECIPE
    outcome = decide(plain, base, units, rows, document["stored"], budget, by=settings["by"], name=path.stem)
    remarks = [document["command_line"], f"predicted: {in_words(outcome.errors, outcome.bytes)}"]
    write_whole(path, recipe_text(outcome.recipe, remarks))
    where = {"device": str(plain.device), "dtype": settings["dtype"]}
    made = load_model(model, recipe=str(path), backend=settings["backend"], **where)
    made.set_runtime("off")
    with console.step("Measuring the recipe"):
        errors = over_scenes(compare_on(plain, made, data, settings["seed"]))
    size = stored_size(made)
    write_whole(path, recipe_text(outcome.recipe, [*remarks, f"measured:  {in_words(errors, size)}"]))
    warn_above(budget.error, largest(errors))
    return {
        "chosen": outcome.chosen,
        "predicted": {"errors": outcome.errors, "error": largest(outcome.errors), "bytes": outcome.bytes},
        "measured": {"errors": errors, "error": largest(errors), "bytes": size},
    }


def _write(out: Path, rows: "list[list[Row]]", document: dict[str, Any]) -> None:
    from vggt_int8.chart import write_rows
    from vggt_int8.sensitivity.tables import chart

    name = document["recipe"]["name"]
    write_rows(out / CHART, chart(rows, f"One {document['settings']['by']} at a time under {name}"))
    write_json(out / RESULT, document)


def _conclude(rows: "list[list[Row]]", document: dict[str, Any], out: Path) -> None:
    """Print the lines below the table."""
    from vggt_int8.sensitivity.outcome import in_words

    if len(rows) > SHOWN:
        console.say(f"... and {len(rows) - SHOWN} more, in {out / RESULT}")
    both = {key: ", ".join(f"{value:.3g}" for value in values.values()) for key, values in document["together"].items()}
    console.say(f"All of them at once: predicted {both['predicted']}; measured {both['measured']}")
    if "chosen" in document:
        for key in ("predicted", "measured"):
            console.say(f"{out / RECIPE}, {key}: {in_words(document[key]['errors'], document[key]['bytes'])}")
    console.say(f"Results: {out / RESULT}, {out / CHART}")
