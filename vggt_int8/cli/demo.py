"""`vggt-int8 demo`: every recipe on one small scene, without network or GPU, in one table and one folder of results.

The scene is rendered, so its geometry is known exactly. The model is the one that ships with the package; where that
is missing, a random network of the same kind takes its place, and the table says so: its sizes, times and differences
between recipes are real, its geometry means nothing.
"""

import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from vggt_int8.cli import console

if TYPE_CHECKING:
    from vggt_int8 import VGGTInt8, VGGTOutput
    from vggt_int8.scenes import SceneBatch

MINI = Path(__file__).parent.parent / "assets" / "mini"
FRAMES = 4
TIMED_RUNS, TIMED_SECONDS = 5, 3.0  # whichever comes first
PLAIN = "fp32"  # the row that the others are compared with


@dataclass
class Row:
    """What the table says of one recipe. Errors are None where there is nothing to compare with."""

    recipe: str
    megabytes: float
    milliseconds: float
    runs_on: str
    depth_difference: float | None  # relative, from fp32
    pose_difference: float | None
    depth_error: float | None  # AbsRel, percent
    rotation_error: float | None  # median over pairs of frames, degrees
    translation_error: float | None  # the same for the direction of motion


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("vggt-int8-demo"),
) -> None:
    """Reconstruct a bundled scene in fp32 and under every recipe: no network, no GPU, about a minute."""
    from vggt_int8.export import depth_sheet, staged_folder, write_json
    from vggt_int8.recipe import available_recipes

    names = [PLAIN, *available_recipes()]
    trained = (MINI / "model.safetensors").is_file()
    with staged_folder(out, entries=[*names, "depth.png", "report.json"], overwrite=True) as folder:
        with tempfile.TemporaryDirectory() as scratch:
            source = MINI if trained else random_checkpoint(Path(scratch) / "random")
            rows, outputs, scene = reconstruct(source, names, Path(scratch), trained)
        with console.step(f"Writing {out}"):
            for name, pred in outputs.items():
                write_result(folder / name, pred)
            depths = {name: pred.depth[0] for name, pred in outputs.items()}
            depth_sheet(depths | {"ground truth": scene.depth[0]} if trained else depths, scene.images[0]).save(
                folder / "depth.png"
            )
            write_json(folder / "report.json", report(rows, trained))
    which = "the embedded model" if trained else "a small network with random weights (no trained one is installed)"
    console.say(f"{FRAMES} frames, {which}, on the CPU")
    console.out.print(table(rows, trained))
    console.say(f"Results: {out}/depth.png, {out}/<recipe>/points.ply, {out}/report.json")


def random_checkpoint(folder: Path) -> Path:
    """Save a small network with random weights, always the same ones."""
    import torch

    from vggt_int8 import VGGTConfig, VGGTInt8

    config = VGGTConfig(
        img_size=112,
        embed_dim=192,
        encoder_depth=4,
        encoder_num_heads=3,
        depth=4,
        num_heads=3,
        camera_depth=2,
        camera_num_heads=6,
        dpt_features=64,
        dpt_out_channels=[48, 96, 192, 192],
        dpt_layers=[0, 1, 2, 3],
        enable_track=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VGGTInt8(config)
    # Random cameras would often have no field of view at all; about 60 degrees makes a picture of it.
    torch.nn.init.ones_(model.get_parameter("camera_head.pose_branch.fc2.bias")[7:])
    model.save_pretrained(folder)
    return folder


def reconstruct(
    source: Path, names: list[str], scratch: Path, trained: bool
) -> "tuple[list[Row], dict[str, Any], SceneBatch]":
    """Quantize, save, reload, run and measure: one row and one output per name."""
    from vggt_int8 import VGGTInt8
    from vggt_int8.scenes import render_scenes, scene_seeds

    with console.step("Rendering the scene"):
        side = VGGTInt8.config_class.from_pretrained(source).img_size
        scene = render_scenes(scene_seeds("demo", [0]), FRAMES, (side, side))
    rows: list[Row] = []
    outputs: dict[str, Any] = {}
    for name in names:
        with console.step(f"Reconstructing with {name}"):
            saved = scratch / name
            VGGTInt8.from_pretrained(source, recipe=None if name == PLAIN else name).save_pretrained(saved)
            model = VGGTInt8.from_pretrained(saved).eval()
            outputs[name], seconds = timed(model, scene.images)
            rows.append(measure(name, model, saved, seconds, outputs, scene, trained))
    return rows, outputs, scene


def timed(model: "VGGTInt8", images: Any) -> "tuple[VGGTOutput, float]":
    """The output, and the median seconds of the runs after it."""
    import torch

    seconds: list[float] = []
    with torch.inference_mode():
        output = model(images)
        while len(seconds) < TIMED_RUNS and sum(seconds) < TIMED_SECONDS:
            start = time.perf_counter()
            model(images)
            seconds.append(time.perf_counter() - start)
    return output, statistics.median(seconds)


def measure(
    name: str,
    model: "VGGTInt8",
    saved: Path,
    seconds: float,
    outputs: dict[str, Any],
    scene: "SceneBatch",
    trained: bool,
) -> Row:
    """One row of the table."""
    from vggt_int8.cli.run import kernels_of
    from vggt_int8.eval.compare import difference
    from vggt_int8.scenes.metrics import depth_scores, pose_errors, pose_scores

    plain, pred = outputs[PLAIN], outputs[name]
    is_plain = name == PLAIN
    depth = depth_scores(pred.depth[..., 0], scene.depth, scene.valid)
    pose = pose_scores(*pose_errors(pred.extrinsic, scene.extrinsic))
    return Row(
        recipe=name,
        megabytes=sum(file.stat().st_size for file in saved.glob("*.safetensors")) / 1e6,
        milliseconds=seconds * 1e3,
        runs_on=kernels_of(model) or "PyTorch",
        depth_difference=None if is_plain else difference(plain.depth, pred.depth)["relative"],
        pose_difference=None if is_plain else difference(plain.pose_enc, pred.pose_enc)["relative"],
        depth_error=100 * depth.abs_rel if trained else None,
        rotation_error=pose.rotation_median if trained else None,
        translation_error=pose.translation_median if trained else None,
    )


def write_result(folder: Path, pred: "VGGTOutput") -> None:
    """What `vggt-int8 run` writes, but for the report."""
    from vggt_int8.export import write_scene
    from vggt_int8.images import ImageTransform

    assert pred.images is not None
    frames, size = pred.images.shape[1], (pred.images.shape[3], pred.images.shape[4])
    folder.mkdir()
    names = [f"frame_{index}.png" for index in range(frames)]
    write_scene(folder, pred, [ImageTransform(size, size, (1.0, 1.0), (0, 0))] * frames, names)


def report(rows: list[Row], trained: bool) -> dict[str, Any]:
    """Content of report.json."""
    import torch

    from vggt_int8.export.report import describe_machine, installed_versions

    return {
        "format_version": 1,
        "model": "embedded" if trained else "random weights",
        "frames": FRAMES,
        "versions": installed_versions(),
        "machine": describe_machine(torch.device("cpu")),
        "rows": [asdict(row) for row in rows],
    }


def table(rows: list[Row], trained: bool) -> Table:
    """The rows for the console."""
    result = Table(box=None, pad_edge=False)
    columns = ["recipe", "size", "time", "depth vs fp32", "pose vs fp32"]
    columns += ["depth error", "rotation error", "motion error"] if trained else []
    for column in columns:
        result.add_column(column, justify="left" if column == "recipe" else "right", no_wrap=column == "recipe")
    for row in rows:
        cells = [row.recipe, f"{row.megabytes:.2f} MB", f"{row.milliseconds:.0f} ms"]
        cells += [_cell(value, "{:.2%}") for value in (row.depth_difference, row.pose_difference)]
        if trained:
            cells.append(_cell(row.depth_error, "{:.2f} %"))
            cells += [_cell(value, "{:.2f}°") for value in (row.rotation_error, row.translation_error)]
        result.add_row(*cells)
    return result


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
