"""`vggt-int8 run`: photographs in; cameras, depth, points and a report of the run out."""

import importlib
from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.table import Table

from vggt_int8.cli import console, options
from vggt_int8.cli.loading import (
    Backend,
    Device,
    Dtype,
    Images,
    MaxMegapixels,
    Mode,
    Model,
    Recipe,
    find_and_check,
    load_images_for,
    load_model,
    local_image_size,
)

if TYPE_CHECKING:
    from vggt_int8 import VGGTInt8
    from vggt_int8.export import RunReport
    from vggt_int8.export.points import PointSource

LEAST_BYTES = 4.0  # written per pixel of a square: 8 of two maps, if an image is no wider than 2:1


def run(
    model: Model,
    images: Images,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")],
    recipe: Recipe = None,
    backend: Backend = "auto",
    device: Device = None,
    dtype: Dtype = None,
    mode: Mode = "crop",
    frames_chunk: Annotated[
        int, typer.Option(min=1, help="Images that the depth and point heads work on at a time: less is less memory.")
    ] = 8,
    points: Annotated[
        str | None,
        typer.Option(
            help="Points from depth and cameras, or from the point head (world_points); by default depth if there is.",
            **options.choice("source of points", *options.POINTS),
        ),
    ] = None,
    confidence_percentile: Annotated[
        float, typer.Option(min=0, max=100, help="Leave out points whose confidence is below this percentile.")
    ] = 25.0,
    max_points: Annotated[
        int | None, typer.Option(min=1, help="Write a random subset of at most so many points; by default all.")
    ] = None,
    max_megapixels: MaxMegapixels = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the results of an earlier run in the folder.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Reconstruct a scene: write cameras.json, depth and confidence maps, points.ply and report.json."""
    import torch

    from vggt_int8.cli.loading import resolve_device
    from vggt_int8.export import (
        SCENE_ENTRIES,
        PhaseClock,
        owned_files,
        staged_folder,
        write_report,
        write_scene,
    )
    from vggt_int8.export.points import SEED, check_point_options
    from vggt_int8.export.repeat import identify_file, identify_model
    from vggt_int8.export.report import describe_inputs

    check_point_options(points, confidence_percentile, max_points)
    paths = find_and_check(images, max_megapixels)
    count = console.count_images(len(paths))
    clock = PhaseClock(resolve_device(device))
    owned = partial(owned_files, command="run")
    needed = len(paths) * local_image_size(model) ** 2 * LEAST_BYTES
    with staged_folder(out, entries=SCENE_ENTRIES, overwrite=overwrite, owned=owned, needed=needed) as folder:
        importlib.import_module("vggt_int8.pretrained")  # seconds that are not the model's
        with clock.phase("load_model"):
            network = load_model(model, recipe=recipe, backend=backend, device=device, dtype=dtype)
            identity = identify_model(model)
        _check_heads(network, points)
        with clock.phase("load_images"):
            pixels, transforms = load_images_for(network, paths, mode, max_megapixels)
            described = zip(describe_inputs(paths, transforms), paths, strict=True)
            inputs = [{**entry, **identify_file(path)} for entry, path in described]  # now: later one may be gone
        with (
            clock.phase("reconstruct"),
            console.step(f"Reconstructing {count}"),
            torch.inference_mode(),
        ):
            pred = network(pixels.to(network.device), frames_chunk_size=frames_chunk)
        console.detail(lambda: f"{network.quantization_report()}\nran {network.runtime_report()}")
        with clock.phase("write"), console.step(f"Writing {out}") as progress:
            written = write_scene(
                folder,
                pred,
                transforms,
                [str(path) for path in paths],
                point_source=cast("PointSource | None", points),
                confidence_percentile=confidence_percentile,
                max_points=max_points,
                on_map=progress,
            )
        settings = {
            "backend": backend,
            "mode": mode,
            "frames_chunk": frames_chunk,
            "points": points or default_points(network),
            "confidence_percentile": confidence_percentile,
            "max_points": max_points,
            "seed": SEED,
            "max_megapixels": max_megapixels,
        }
        report = report_of(network, model, identity, inputs, settings, clock.seconds, written)
        content = write_report(folder, "run", report.to_document())
    if as_json:
        console.document("run", {"out": out, "report": content})
        return
    console.say(f"{count} -> {out}")
    console.show(_summary(report))


def report_of(
    network: "VGGTInt8",
    model: str,
    identity: dict[str, str | None],
    inputs: list[dict[str, Any]],
    settings: dict[str, Any],
    seconds: dict[str, float],
    outputs: dict[str, Any],
) -> "RunReport":
    """What a run says of itself; `network` is the model of that name and identity after it ran."""
    from vggt_int8.export import RunReport

    return RunReport(
        model=model,
        recipe=recipe_of(network),
        backend=kernels_of(network),
        device=network.device,
        dtype=str(network.dtype).removeprefix("torch."),
        inputs=inputs,
        seconds=seconds,
        outputs=outputs,
        model_identity=identity,
        quantization=recipe_content(network),
        settings=settings,
        runtime=runtime_of(network),
    )


def _check_heads(network: "VGGTInt8", points: str | None) -> None:
    """Raise ValueError if the model has no head that gives these points."""
    config = network.config
    there = config.enable_depth and config.enable_camera if points == "depth" else config.enable_point
    if points is not None and not there:
        needs = "the depth and camera heads" if points == "depth" else "the point head"
        raise ValueError(f"--points {points} needs {needs}, which this model does not have")


def default_points(network: "VGGTInt8") -> str | None:
    """Where points come from unless it is said: as `collect_points` decides."""
    config = network.config
    if config.enable_depth and config.enable_camera:
        return "depth"
    return "world_points" if config.enable_point else None


def runtime_of(network: "VGGTInt8") -> dict[str, Any]:
    """How the last call ran: "fused" or "plain", why not otherwise, and how much it worked on at a time."""
    report = network.runtime_report()
    plan = None if report.plan is None else asdict(report.plan)
    return {"mode": report.mode, "reason": report.reason or None, "plan": plan}


def recipe_content(network: "VGGTInt8") -> dict[str, Any] | None:
    """The whole recipe a model was quantized by, as its config.json holds it."""
    quantization: Any = getattr(network.config, "quantization_config", None)
    return None if quantization is None else dict(quantization.recipe)


def recipe_of(network: "VGGTInt8") -> str | None:
    """Name of the recipe a model was quantized by; None for a plain network."""
    quantization: Any = getattr(network.config, "quantization_config", None)
    return None if quantization is None else str(quantization.recipe["name"])


def kernels_of(network: "VGGTInt8") -> str | None:
    """What runs the INT8 layers, most layers first: "native (VNNI u8·s8) x 344, …"; None for a plain network."""
    if recipe_of(network) is None:
        return None
    count = Counter(
        f"{row.backend} ({row.kernel})" for row in network.quantization_report() if row.backend != "pytorch"
    )
    return ", ".join(f"{kernel} x {number}" for kernel, number in count.most_common()) or None


def _summary(report: "RunReport") -> Table:
    table = Table(box=None, show_header=False)
    for name, seconds in report.seconds.items():
        table.add_row(name.replace("_", " "), f"{seconds:.2f} s")
    points = report.outputs["points"]
    if points is not None:
        table.add_row("points", f"{points['written']:,}")
    transparent = sum(entry["transparent_pixels"] for entry in report.inputs)
    if transparent:
        table.add_row("transparent pixels", f"{transparent:,}")
    return table
