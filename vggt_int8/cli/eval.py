"""`vggt-int8 eval`: score models on scenes with known geometry; one table, headed by differences from the first
model.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggt_int8.cli import console, options
from vggt_int8.cli.loading import EMBEDDED_NAMES, Backend, Device, Dtype, fetch, load_model, resolve_device
from vggt_int8.disk import check_own_folder, check_place

if TYPE_CHECKING:
    from vggt_int8 import Recipe, VGGTInt8
    from vggt_int8.scorecard.cache import Predictions
    from vggt_int8.scorecard.data import DataSet
    from vggt_int8.scorecard.rows import Row

SYNTHETIC = "synthetic"
CAPTURED = ("eth3d:", "colmap:", "co3d:")
FILES = ("scores.json", "report.md", "report.html")


def eval_models(
    models: Annotated[
        list[str],
        typer.Argument(
            help=f"Folders, Hub models, or {EMBEDDED_NAMES}. The first computes in fp32; others are measured against "
            "it.",
            show_default=False,
            autocompletion=options.offer_embedded,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for predictions and the report.")],
    data: Annotated[
        str,
        typer.Option(
            help=f"{SYNTHETIC}; eth3d:FOLDER of `vggt-int8 data eth3d`; colmap:FOLDER, a COLMAP model with its images, "
            "or a folder of such; co3d:FOLDER; or a folder of `vggt-int8 scenes render`, or of such folders."
        ),
    ] = SYNTHETIC,
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            "--recipe",
            "-r",
            help="Also score the first model with this recipe; repeatable.",
            **options.recipes_option(),
        ),
    ] = None,
    scenes: Annotated[
        int | None,
        typer.Option(
            help="Number of scenes; by default 32, or all of a folder.", show_default=False, **options.between(1)
        ),
    ] = None,
    views: Annotated[
        int | None,
        typer.Option(
            help="Images per scene, evenly spread; by default 8 for synthetic scenes and all for others.",
            show_default=False,
            **options.between(1),
        ),
    ] = None,
    size: options.SyntheticSize = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Split of the synthetic scenes; by default held_out.",
            show_default=False,
            **options.choice("split", *options.SPLITS),
        ),
    ] = None,
    points: Annotated[
        int, typer.Option(help="Maximum number of points of a scene's point clouds.", **options.between(3))
    ] = 5000,
    icp: Annotated[bool, typer.Option("--icp", help="Refine the alignment of point clouds with ICP.")] = False,
    seed: Annotated[int, typer.Option(help="Seed for the intervals and the points.", **options.seed_option())] = 0,
    backend: Backend = "auto",
    device: Device = None,
    dtype: Dtype = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace predictions that were made with other settings.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Score models against the ground truth and the first model; predictions are cached and reused."""
    out = out.expanduser()
    check_place(out)
    check_own_folder(out, {"predictions", *FILES}, "predictions", "an evaluation")
    stored = data != SYNTHETIC and not data.startswith(CAPTURED)
    for option, value in (("--views", views if stored else None), ("--size", size), ("--split", split)):
        if data != SYNTHETIC and value is not None:
            raise ValueError(f"{option} makes synthetic scenes, and --data is {data}: leave one of them out")
    from vggt_int8.scorecard.rows import make_rows
    from vggt_int8.scorecard.scores import Protocol

    target = resolve_device(device)
    rows = make_rows(models, recipe or [], dtype, backend, "fp16" if target.type == "cuda" else "fp32")
    for model in models:
        fetch(model)
    truth = _data(data, models[0], scenes, views, size, split, str(target))
    predictions = _identified(rows, truth, out, target.type)
    _export(rows, predictions, truth, out, str(target), overwrite)
    protocol = Protocol(points=points, icp=icp, seed=seed)
    document = _score(predictions, truth, protocol, target)
    if as_json:
        console.document("eval", {"out": out, **document})
        return
    from vggt_int8.scorecard.tables import markdown

    console.say(markdown(document, layers=False))
    console.say(f"Results: {', '.join(str(out / name) for name in FILES)}")


def _data(
    data: str,
    model: str,
    scenes: int | None,
    views: int | None,
    size: tuple[int, int] | None,
    split: str | None,
    device: str,
) -> "DataSet":
    """The scenes, at the input size of the first model."""
    from vggt_int8.embedded import resolve_source
    from vggt_int8.pretrained.source import load_config
    from vggt_int8.scorecard.captured import Co3dScenes, PosedScenes
    from vggt_int8.scorecard.data import RenderedScenes, StoredScenes
    from vggt_int8.scorecard.eth3d import Eth3dScenes

    config = load_config(resolve_source(model), {})
    found: DataSet
    if data == SYNTHETIC:
        chosen = size or (config.img_size, config.img_size)
        sizes = {"--size": chosen}
        found = RenderedScenes(scenes or 32, views or 8, chosen, split or "held_out", device)
    elif data.startswith(CAPTURED):
        kind, _, folder = data.partition(":")
        kinds = {"eth3d": Eth3dScenes, "colmap": PosedScenes, "co3d": Co3dScenes}
        return kinds[kind](Path(folder), config, scenes, views)
    else:
        found = stored = StoredScenes(Path(data), scenes)
        sizes = stored.sizes
    for name, (height, width) in sizes.items():
        if height % config.patch_size or width % config.patch_size:
            raise ValueError(
                f"{name} is {height} {width} pixels: height and width must be multiples of the model's patch size "
                f"{config.patch_size}"
            )
    return found


def _identified(rows: "list[Row]", data: "DataSet", out: Path, device_type: str) -> "list[Predictions]":
    """Each row's cache key, which covers everything that determines its results."""
    from vggt_int8 import __version__, load_recipe
    from vggt_int8.export.repeat import identify_model

    with console.step("Looking at models and data"):
        shared = {"data": data.identity(), "device": device_type, "version": __version__, "format_version": 1}
        found = []
        for row in rows:
            recipe = None if row.recipe is None else _data_free(load_recipe(row.recipe), row.model).to_dict()
            model = identify_model(row.model)
            if model["value"] is None:
                raise FileNotFoundError(f"{row.model} is neither a folder nor a file here, nor a model in the cache")
            found.append(row.predictions(out, {"model": model, "recipe": recipe, **shared}))
    return found


def _data_free(recipe: "Recipe", model: str) -> "Recipe":
    """Raise `RecipeError`, with the alternative, for a recipe that needs calibration."""
    from vggt_int8.recipe import RecipeError

    if recipe.needs_calibration:
        raise RecipeError(
            f"recipe {recipe.name!r} is calibrated on images, which `eval` does not do: run `vggt-int8 quantize "
            f"{model} -o FOLDER --recipe {recipe.name} --calibration IMAGES`, and name FOLDER among the models"
        )
    return recipe


def _export(
    rows: "list[Row]", predictions: "list[Predictions]", data: "DataSet", out: Path, device: str, overwrite: bool
) -> None:
    """Fill the cache. The first model stays loaded meanwhile, since single layers are compared with it."""
    from vggt_int8.scorecard.cache import StaleError, bytes_of
    from vggt_int8.scorecard.data import first_scenes
    from vggt_int8.scorecard.rows import describe, export, is_complete

    missing = []
    for row, kept in zip(rows, predictions, strict=True):
        try:
            complete = is_complete(kept, data)
        except StaleError:
            if not overwrite:
                raise
            kept.clear()
            complete = False
        if not complete:
            missing.append((row, kept))
    if missing:
        check_place(out, sum(map(bytes_of, first_scenes(data, 1))) * len(data) * len(missing))
    reference: VGGTInt8 | None = None
    for row, kept in missing:
        model = load_model(row.model, recipe=row.recipe, backend=row.backend, device=device, dtype=row.dtype)
        with console.step(f"Predicting with {row.label}") as progress:
            export(model, kept, data, progress)
        if row is rows[0]:
            reference = model
        elif reference is None:
            reference = load_model(rows[0].model, backend=rows[0].backend, device=device, dtype=rows[0].dtype)
        with console.step(f"Looking at the layers of {row.label}"):
            kept.write_facts(describe(model, reference, data))


def _score(predictions: "list[Predictions]", data: "DataSet", protocol: Any, target: Any) -> dict[str, Any]:
    """Score the cached predictions, and write the three files of the report."""
    from dataclasses import asdict

    from vggt_int8.eval.metrics.points import search_method
    from vggt_int8.export.repeat import command_line
    from vggt_int8.export.report import describe_machine, installed_versions
    from vggt_int8.files import write_json, write_whole
    from vggt_int8.plain_data import finite
    from vggt_int8.scorecard.page import page
    from vggt_int8.scorecard.summary import summarize
    from vggt_int8.scorecard.tables import markdown

    with console.step("Scoring") as progress:
        rows = summarize(predictions, data, protocol, progress)
    document = {
        "format_version": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command_line": command_line(),
        "versions": installed_versions(),
        "machine": describe_machine(target),
        "data": data.identity(),
        "protocol": asdict(protocol),
        "search": search_method(),
        "scenes": len(data),
        "rows": rows,
    }
    out = predictions[0].folder.parent.parent
    with console.step(f"Writing {out}"):
        write_whole(out / "report.md", markdown(document))
        write_whole(out / "report.html", page(document, predictions, data))
        write_json(out / "scores.json", finite(document))
    return document
