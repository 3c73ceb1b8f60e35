"""Accuracy of the embedded model on held-out scenes with exact truth: fp32, fp16 and recipes, plain and made hard.

    python -m benchmarks.embedded_accuracy    # the shipped numbers: 128 scenes x 4 and 8 views
    python -m benchmarks.embedded_accuracy --outliers 0 --variants fp32 fp16 int8_weight_only int8_dynamic int8_static

A variant is "fp32", "fp16" (weights and arithmetic), or a recipe: a shipped name or a .toml file. Those with static
scales are calibrated with scenes of the split "calibration", of 8 views each, which are none of those that are scored.
Recipes compute in fp32 on a CPU and in fp16 on CUDA, as `from_pretrained` does. `--outliers SEED` adds
`with_outliers(model, SEED)`: the same function with outlier channels, so its fp32 row is the same and all others are
harder.

Relative errors are of outputs against fp32's. Differences in AUC are in points, those of AbsRel in per cent of fp32's;
their intervals are those of `vggt_int8.scorecard.intervals`, so a limit is missed where one lies beyond it as a whole.
Writes tables, and with `--out` everything as one JSON document.
"""

import argparse
import copy
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vggt_int8 import VGGTInt8, available_recipes, load_recipe, quantize
from vggt_int8.calibration import observe
from vggt_int8.calibration.observers import MinMax
from vggt_int8.eval.active import check_active, int8_layer_names
from vggt_int8.eval.held_out import score_models
from vggt_int8.eval.outliers import with_outliers
from vggt_int8.export.report import describe_machine, installed_versions
from vggt_int8.files import write_json
from vggt_int8.plain_data import finite
from vggt_int8.quant import BackendError
from vggt_int8.recipe import Scheme
from vggt_int8.scenes import scene_batches
from vggt_int8.scorecard.intervals import paired_interval

ROOT = Path(__file__).parent.parent
MINI = ROOT / "vggt_int8" / "assets" / "mini"
BESIDE_EACH_OTHER = ("auc_30", "auc_5", "abs_rel", "pose_enc", "depth")  # columns for two models; all for one
READERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
# Title, key of the scores, format.
COLUMNS = (
    ("AUC@30", "auc_30", "{:.2f}"),
    ("AUC@15", "auc_15", "{:.2f}"),
    ("AUC@5", "auc_5", "{:.2f}"),
    ("AUC@3", "auc_3", "{:.2f}"),
    ("AbsRel", "abs_rel", "{:.4f}"),
    ("d<1.25 %", "delta_125", "{:.2f}"),
    ("fx/fy", "focal_ratio", "{:.4f}"),
    ("in 5 % %", "focal_ratio_105", "{:.2f}"),
    ("rel. pose", "pose_enc", "{:.2e}"),
    ("rel. depth", "depth", "{:.2e}"),
    ("rel. points", "world_points", "{:.2e}"),
)

DIFFERENCES = (
    ("AUC@30", "auc_30", False),
    ("AUC@5", "auc_5", False),
    ("AUC@3", "auc_3", False),
    ("AbsRel %", "abs_rel", True),
)


def main(command_line: list[str] | None = None) -> None:
    arguments = parse(command_line)
    device = torch.device(arguments.device)
    torch.backends.cudnn.allow_tf32 = False  # convolutions would run in TF32 and still be called fp32
    plain = VGGTInt8.from_pretrained(arguments.model, dtype=torch.float32).eval().to(device)
    size = tuple(arguments.size or [plain.config.img_size] * 2)
    kinds = {"plain": plain}
    if arguments.outliers is not None:
        kinds["hard"] = with_outliers(plain, arguments.outliers)
    batches = scene_batches("calibration", arguments.calibration_scenes, 8, size, device=device)
    calibration = torch.cat([batch.images for batch in batches])
    ranges = {kind: activation_ranges(model, calibration) for kind, model in kinds.items()}
    models, left_out = build_all(kinds, arguments, calibration)
    rows: list[dict[str, Any]] = []
    for views in arguments.views:
        start = time.perf_counter()
        now = score(models, views, size, arguments)
        rows += now
        print(f"\n{arguments.scenes} held-out scenes x {views} views ({time.perf_counter() - start:.0f} s)")
        print(table(now))
        if len(now) > len(kinds):
            print("\nDifference from fp32 of the same model, with 95 % intervals (paired bootstrap over scenes)")
            print(difference_table(now), flush=True)
    if len(kinds) > 1:
        print("\nLargest inputs of the linears, over the calibration scenes (smallest and largest block)")
        print(range_table(ranges))
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    if arguments.out:
        settings = {key: _shown(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
        facts = {"machine": describe_machine(device), "versions": installed_versions(), "settings": settings}
        whole = {"format_version": 1, **facts, "left_out": left_out, "ranges": ranges, "rows": rows}
        write_json(arguments.out, finite(whole))  # a score may be no number, as a ratio of an untrained network


def score(
    models: dict[str, nn.Module], views: int, size: tuple[int, int], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row of each model: "model", "variant", "views", its scores, and unless it is fp32 its differences from that."""
    scores = score_models(
        models,
        scenes=arguments.scenes,
        views=views,
        size=size,
        pixel_aspect=tuple(arguments.pixel_aspect),
        frames_per_batch=arguments.frames_per_batch,
        device=arguments.device,
        on_batch=progress(views),
    )
    rows = []
    for name, values in scores.items():
        kind, variant = name.split(":", 1)
        check_active(name, int8_layer_names(models[name]), values["relative"])
        row = {"model": kind, "variant": variant, "views": views, **values}
        if variant != "fp32":
            row["differences"] = differences(scores[f"{kind}:fp32"], values)
        rows.append(row)
    return rows


def _shown(path: Path) -> str:
    """As it is in every clone, where it lies in this one."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def parse(command_line: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    recipes = [name for name in available_recipes() if name != "fp16"]
    parser.add_argument("--model", type=Path, default=MINI, help="folder of a floating-point model")
    parser.add_argument("--variants", nargs="+", default=["fp32", "fp16", *recipes], help="see above; fp32 comes first")
    parser.add_argument("--backend", default="reference", help="what runs INT8 layers: reference, native, auto, ...")
    parser.add_argument("--outliers", type=int, metavar="SEED", help="also the hard variant of the model")
    parser.add_argument("--scenes", type=int, default=128)
    parser.add_argument("--views", type=int, nargs="+", default=[4, 8])
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="pixels; unless given, the model's square"
    )
    parser.add_argument(
        "--pixel-aspect", type=float, nargs=2, default=[1.0, 1.0], metavar=("LOW", "HIGH"), help="fx / fy"
    )
    parser.add_argument("--calibration-scenes", type=int, default=16, help="for static scales, with 8 views each")
    parser.add_argument("--frames-per-batch", type=int, default=64)
    parser.add_argument("--device", default=default)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args(command_line)
    arguments.variants = ["fp32", *(v for v in arguments.variants if v != "fp32")]
    return arguments


def build_all(
    kinds: dict[str, VGGTInt8], arguments: argparse.Namespace, calibration: Tensor
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """ "kind:variant" -> model, plain fp32 first; and why a variant is missing, where its backend cannot run it."""
    models: dict[str, nn.Module] = {}
    left_out: dict[str, str] = {}
    for variant in arguments.variants:
        for kind, model in kinds.items():
            try:
                models[f"{kind}:{variant}"] = build(model, variant, arguments.backend, calibration)
            except BackendError as error:
                left_out[f"{kind}:{variant}"] = str(error)
    return models, left_out


def build(plain: VGGTInt8, variant: str, backend: str, calibration: Tensor) -> nn.Module:
    """A copy of the fp32 model as the variant says. calibration: scenes [B, S, 3, H, W]."""
    model = copy.deepcopy(plain)
    if variant == "fp32":
        return model
    if variant == "fp16":
        return model.half()
    recipe = load_recipe(variant)
    quantize(model, recipe, backend, calibration=calibration if recipe.needs_calibration else None)
    return model.half() if model.device.type == "cuda" else model


def activation_ranges(model: VGGTInt8, calibration: Tensor) -> dict[str, list[float]]:
    """Part and kind of linear -> smallest and largest absmax of its input over the blocks."""
    parts = {
        "encoder": "aggregator.patch_embed.blocks",
        "frame": "aggregator.frame_blocks",
        "global": "aggregator.global_blocks",
    }
    groups = {
        f"{part} {reader}": [
            name for name, _ in model.named_modules() if name.startswith(path) and name.endswith(reader)
        ]
        for part, path in parts.items()
        for reader in READERS
    }
    schemes = {name: Scheme("static") for names in groups.values() for name in names}
    seen = observe(model, list(calibration), schemes, lambda name: MinMax)
    values = {group: [seen[name][0].range() for name in names] for group, names in groups.items()}
    return {group: [min(found), max(found)] for group, found in values.items()}


def table(rows: list[dict[str, Any]]) -> str:
    """A line per variant; where there is a hard model, its scores stand beside the plain one's."""
    kinds = list(dict.fromkeys(row["model"] for row in rows))
    scores = {(row["variant"], row["model"]): {**row, **row["relative"]} for row in rows}
    width = max(len(variant) for variant, _ in scores) + 1
    columns, cell = (COLUMNS, 11) if len(kinds) == 1 else ([c for c in COLUMNS if c[1] in BESIDE_EACH_OTHER], 10)
    lines = [f"{'':{width}s}" + "".join(f"{title:>{cell * len(kinds)}s}" for title, _, _ in columns)]
    if len(kinds) > 1:
        lines.append(f"{'':{width}s}" + "".join(f"{kind:>{cell}s}" for _ in columns for kind in kinds))
    for variant in dict.fromkeys(row["variant"] for row in rows):
        cells = [
            form.format(scores[variant, kind][key]) if key in scores.get((variant, kind), {}) else "-"
            for _, key, form in columns
            for kind in kinds
        ]
        lines.append(f"{variant:{width}s}" + "".join(f"{text:>{cell}s}" for text in cells))
    return "\n".join(lines)


def differences(plain: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Scores of two rows over the same scenes -> key -> value, low, high: how far `other` is, and how sure that is."""
    return {
        key: paired_interval(plain["scenes"][key], other["scenes"][key], relative=relative)._asdict()
        for _, key, relative in DIFFERENCES
        if key in plain["scenes"] and key in other["scenes"]
    }


def difference_table(rows: list[dict[str, Any]]) -> str:
    """A line per model and variant that has differences from fp32."""
    lines = {f"{row['model']} {row['variant']}": row["differences"] for row in rows if "differences" in row}
    width = max(map(len, lines)) + 1
    columns = [column for column in DIFFERENCES if all(column[1] in found for found in lines.values())]
    text = [f"{'':{width}s}" + "".join(f"{title:>26s}" for title, _, _ in columns)]
    for name, found in lines.items():
        cells = ("{value:+.2f} [{low:+.2f}, {high:+.2f}]".format(**found[key]) for _, key, _ in columns)
        text.append(f"{name:{width}s}" + "".join(f"{cell:>26s}" for cell in cells))
    return "\n".join(text)


def range_table(ranges: dict[str, dict[str, list[float]]]) -> str:
    groups = next(iter(ranges.values()))
    lines = [f"{'':18s}" + "".join(f"{kind:>20s}" for kind in ranges)]
    for group in groups:
        cells = "".join(f"{'{:.1f} ... {:.1f}'.format(*values[group]):>20s}" for values in ranges.values())
        lines.append(f"{group:18s}{cells}")
    return "\n".join(lines)


def progress(views: int) -> Any:
    def show(done: int, scenes: int) -> None:
        print(f"\r{views} views: {done}/{scenes} scenes", end="", file=sys.stderr, flush=True)

    return show


if __name__ == "__main__":
    main()
