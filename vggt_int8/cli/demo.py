"""`vggt-int8 demo`: run every recipe on the bundled scenes without network or GPU; one table and one folder of results.

The scenes are rendered, so their geometry is known exactly. The model is the embedded one, which was trained on neither
these scenes nor their seeds. Errors are those of `vggt_int8.eval.metrics`.
"""

import functools
import hashlib
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from vggt_int8.cli import console, options
from vggt_int8.embedded import EMBEDDED, EMBEDDED_MODELS
from vggt_int8.files import sweep

if TYPE_CHECKING:
    from torch import Tensor

    from vggt_int8 import VGGTOutput
    from vggt_int8.model.omega.network import VGGTOmegaOutput
    from vggt_int8.pretrained.int8_network import Int8Network
    from vggt_int8.scenes import StoredScene

PLAIN, TRUTH = "fp32", "ground_truth"
PICTURED = "int8_dynamic"  # the recipe whose depth stands beside fp32's
TIMED_RUNS, TIMED_SECONDS = 5, 15.0  # of all models; whichever comes first
CALIBRATION_SCENES = 2  # of 8 images, for recipes with static scales
LEAST_BYTES = 80e6  # written in the end; the models lie beside it meanwhile

# Result of one recipe: scene -> outputs of the network.
Outputs = dict[str, "VGGTOutput | VGGTOmegaOutput"]


@dataclass
class Row:
    """Results of one recipe over all scenes, and for each scene."""

    recipe: str
    megabytes: float
    milliseconds: float  # for one scene
    runs_on: str
    rotation_error: float  # median over pairs of images, degrees
    translation_error: float  # the same for the direction of translation
    abs_rel: float
    depth_difference: float | None  # relative, from fp32; None for fp32 itself
    pose_difference: float | None
    scenes: dict[str, dict[str, float]]  # name -> the scores of `ScoreKeeper`


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("vggt-int8-demo"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Also write to a folder with other contents, which are kept.")
    ] = False,
    model: Annotated[
        str,
        typer.Option(
            help=f"Which of the models that ship: {', '.join(EMBEDDED_MODELS)}.",
            **options.choice("model", *EMBEDDED_MODELS),
        ),
    ] = EMBEDDED,
    as_json: options.Json = False,
) -> None:
    """Reconstruct the bundled scenes in fp32 and under every recipe: no network, no GPU, about a minute."""
    from vggt_int8.export import owned_files, staged_folder, write_report
    from vggt_int8.recipe import available_recipes
    from vggt_int8.scenes import available_scenes, load_scene

    names = [PLAIN, *available_recipes()]
    scenes = {name: load_scene(name) for name in available_scenes()}
    owned = functools.partial(owned_files, command="demo")
    sweep(out)  # before looking for an earlier demo, which a kill may have left in pieces
    overwrite = overwrite or bool(owned(out.expanduser()))
    with staged_folder(
        out, entries=[*scenes, "report.json"], overwrite=overwrite, owned=owned, needed=LEAST_BYTES
    ) as folder:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:  # there, since what a kill leaves there is swept
            source = embedded_model(model)
            models: dict[str, Int8Network] = {}
            megabytes: dict[str, float] = {}
            outputs: dict[str, Outputs] = {}
            for name in names:
                with console.step(f"Reconstructing with {name}"):
                    models[name], megabytes[name] = prepare(source, name, Path(scratch))
                    outputs[name] = reconstruct(models[name], scenes)
            with console.step("Timing them in turns"):
                seconds = time_in_turns(models, next(iter(scenes.values())).images)
            rows = [measure(n, models[n], megabytes[n], seconds[n], outputs, scenes) for n in names]
        with console.step(f"Writing {out}"):
            for name, scene in scenes.items():
                predictions = {recipe: results[name] for recipe, results in outputs.items()}
                write_scene_results(folder / name, scene, predictions)
            content = write_report(folder, "demo", report(rows, scenes, source))
    if as_json:
        console.document("demo", {"out": out, "report": content})
        return
    images = ", ".join(f"{name} ({len(scene.images)} images)" for name, scene in scenes.items())
    console.say(f"{images}, on the CPU")
    console.show(table(rows))
    console.say("On a CPU fp16 is how weights are stored: it computes in fp32.")
    console.say(f"Results: {out}/<scene>/depth.png, {out}/<scene>/<recipe>/points.ply, {out}/report.json")


def embedded_model(name: str) -> Path:
    """The folder of an embedded model. Raises FileNotFoundError if its weights are missing."""
    weights = EMBEDDED_MODELS[name] / "model.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(f"{weights} is missing: this installation is incomplete, install vggt-int8 again")
    return weights.parent


def prepare(source: Path, name: str, scratch: Path) -> "tuple[Int8Network, float]":
    """Quantize, save and reload the model with a recipe, as a user would. Returns it with its size on disk in
    megabytes.
    """
    from vggt_int8 import load_recipe
    from vggt_int8.pretrained.model import int8_class_of

    saved = scratch / name
    recipe = None if name == PLAIN else load_recipe(name)
    images = None
    if recipe is not None and recipe.needs_calibration:
        images = calibration_images()
        recipe = replace(recipe, calibration_samples=images.shape[0] * images.shape[1])
    network = int8_class_of(str(source))
    network.from_pretrained(source, recipe=recipe, calibration=images).save_pretrained(saved)
    megabytes = sum(file.stat().st_size for file in saved.glob("*.safetensors")) / 1e6
    return network.from_pretrained(saved).eval(), megabytes


@functools.cache
def calibration_images() -> "Tensor":
    """[B, S, 3, H, W]: images of other scenes than the reconstructed ones."""
    import torch

    from vggt_int8.scenes import scene_batches

    return torch.cat([batch.images for batch in scene_batches("calibration", CALIBRATION_SCENES, 8, (112, 112))])


def reconstruct(model: "Int8Network", scenes: "dict[str, StoredScene]") -> Outputs:
    """The outputs for each scene."""
    import torch

    with torch.inference_mode():
        return {name: model(scene.images) for name, scene in scenes.items()}


def time_in_turns(models: "dict[str, Int8Network]", images: "Tensor") -> dict[str, float]:
    """Median seconds of each model for one scene. The models take turns, so that other load on the machine affects all
    of them equally.
    """
    import torch

    seconds: dict[str, list[float]] = {name: [] for name in models}
    began = time.perf_counter()
    with torch.inference_mode():
        for _ in range(TIMED_RUNS):
            for name, model in models.items():
                start = time.perf_counter()
                model(images)
                seconds[name].append(time.perf_counter() - start)
            if time.perf_counter() - began > TIMED_SECONDS:
                break
    return {name: statistics.median(times) for name, times in seconds.items()}


def measure(
    name: str,
    model: "Int8Network",
    megabytes: float,
    seconds: float,
    outputs: dict[str, Outputs],
    scenes: "dict[str, StoredScene]",
) -> Row:
    """Compute one row of the table."""
    from vggt_int8.cli.run_report import kernels_of
    from vggt_int8.eval.metrics import ScoreKeeper

    overall, each = ScoreKeeper(), {scene: ScoreKeeper() for scene in scenes}
    for scene, truth in scenes.items():
        pred = outputs[name][scene]
        for keeper in (overall, each[scene]):
            keeper.add(pred.extrinsic, pred.depth, truth.extrinsic[None], truth.depth[None], truth.valid[None])
    scores = overall.scores()
    return Row(
        recipe=name,
        megabytes=megabytes,
        milliseconds=seconds * 1e3,
        runs_on=kernels_of(model) or "PyTorch",
        rotation_error=scores["rotation_median"],
        translation_error=scores["translation_median"],
        abs_rel=scores["abs_rel"],
        depth_difference=None if name == PLAIN else relative_difference(outputs, name, "depth"),
        pose_difference=None if name == PLAIN else relative_difference(outputs, name, "pose_enc"),
        scenes={scene: keeper.scores() for scene, keeper in each.items()},
    )


def relative_difference(outputs: dict[str, Outputs], name: str, key: str) -> float:
    """Relative difference of one output from fp32's, over all scenes."""
    import torch

    from vggt_int8.difference import relative_error

    plain, other = (torch.cat([pred[key].flatten() for pred in outputs[n].values()]) for n in (PLAIN, name))
    return relative_error(other, plain)


def write_scene_results(folder: Path, scene: "StoredScene", predictions: Outputs) -> None:
    """Write depth.png, and for the ground truth and each recipe the files of `vggt-int8 run` except the report."""
    from vggt_int8.export import Scene, write_scene
    from vggt_int8.images import ImageTransform

    folder.mkdir()
    picture(scene, predictions).save(folder / "depth.png")
    frames, size = len(scene.images), (scene.images.shape[2], scene.images.shape[3])
    transforms = [ImageTransform(size, size, (1.0, 1.0), (0, 0))] * frames
    tensors = {"images": scene.images, "depth": scene.depth, "extrinsic": scene.extrinsic, "intrinsic": scene.intrinsic}
    results: dict[str, Any] = {TRUTH: {key: value[None] for key, value in tensors.items()}, **predictions}
    for name, pred in results.items():
        (folder / name).mkdir()
        names = [f"image_{index}.png" for index in range(frames)]
        write_scene(folder / name, Scene.from_prediction(pred, transforms, names), save=True)


def picture(scene: "StoredScene", predictions: Outputs) -> Any:
    """Images, true depth, depth of fp32 and INT8 with the colour scale of the ground truth, and their difference."""
    from vggt_int8.export import depth_sheet

    def to_scale(pred: "VGGTOutput | VGGTOmegaOutput") -> "Tensor":
        assert pred.depth is not None
        depth = pred.depth[0, ..., 0]
        return depth * (scene.depth / depth)[scene.valid].median()

    plain, quantized = to_scale(predictions[PLAIN]), to_scale(predictions[PICTURED])
    return depth_sheet(
        {"ground truth": scene.depth, f"{PLAIN}, scaled to it": plain, f"{PICTURED}, scaled to it": quantized},
        scene.images,
        {
            f"|{PLAIN} - ground truth| / ground truth": (plain - scene.depth).abs() / scene.depth,
            f"|{PICTURED} - {PLAIN}| / {PLAIN}": (quantized - plain).abs() / plain,
        },
    )


def report(rows: list[Row], scenes: "dict[str, StoredScene]", source: Path) -> dict[str, Any]:
    """Contents of report.json."""
    import torch

    from vggt_int8.export.report import describe_machine, installed_versions

    return {
        "format_version": 3,
        "model_sha256": hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest(),
        "scenes": {name: {"images": len(scene.images), **scene.origin} for name, scene in scenes.items()},
        "versions": installed_versions(),
        "machine": describe_machine(torch.device("cpu")),
        "rows": [asdict(row) for row in rows],
    }


def table(rows: list[Row]) -> Table:
    """The rows for the console, at most 80 characters wide."""
    result = Table(box=None, pad_edge=False)
    titles = (
        "recipe",
        "size",
        "time\na scene",
        "rotation\nerror",
        "translation\nerror",
        "depth\nAbsRel",
        "depth\nvs fp32",
    )
    for title in titles:
        result.add_column(title, justify="left" if title == "recipe" else "right", no_wrap=True)
    for row in rows:
        difference = "–" if row.depth_difference is None else f"{row.depth_difference:.2%}"
        result.add_row(
            row.recipe,
            f"{row.megabytes:.1f} MB",
            f"{row.milliseconds:.0f} ms",
            f"{row.rotation_error:.2f}°",
            f"{row.translation_error:.2f}°",
            f"{row.abs_rel:.4f}",
            difference,
        )
    return result
