"""How exact single linears of VGGT-1B's shapes are under each recipe, without any trained weights.

    python -m benchmarks.layer_error                     # a minute on a CPU
    python -m benchmarks.layer_error --recipes int8_dynamic my.toml --seed 1 --out layers.json

A network of VGGT-1B's width (1024, hidden 4096, 16 heads) and patches, but of few blocks, with random weights and what
is published of the real one's ranges: rows of a weight differ 3 to 13 times in their largest value, inputs of qkv reach
3 to 5 on patches, and outlier tokens and inputs of fc2 are those of `vggt_int8.eval.outlier_tokens` (142 and 26 in the
encoder, 9 to 14 in the aggregator on special tokens, 11 to 23 before qkv and fc1). Each INT8 layer gets the inputs of
its float layer, and its SQNR is taken over all outputs, 10 log10(signal / error): "lowest / median" over blocks.

It is not the real model. Correlations between channels, what a weight does with an outlier, and how errors add up from
layer to layer are random here, so it says how a rounding copes with these ranges and nothing about poses or depth. With
real weights the same numbers are in the report of `vggt-int8 eval facebook/VGGT-1B -r RECIPE -o scores`.
"""

import argparse
import copy
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.accuracy_table import RECIPES
from vggt_int8 import VGGTConfig, VGGTInt8, load_recipe, quantize
from vggt_int8.eval.metrics import layer_sqnr
from vggt_int8.eval.outlier_tokens import linear_inputs, with_outlier_tokens
from vggt_int8.eval.outliers import transformer_blocks
from vggt_int8.export.report import describe_machine, installed_versions
from vggt_int8.files import write_json
from vggt_int8.plain_data import finite
from vggt_int8.scenes import scene_batches

CONFIG = {
    "img_size": 112, "patch_size": 14, "embed_dim": 1024, "encoder_depth": 3, "encoder_num_heads": 16, "depth": 2,
    "num_heads": 16, "dpt_features": 32, "dpt_out_channels": [32, 32, 32, 32], "dpt_layers": [0, 0, 1, 1],
    "enable_camera": False, "enable_point": False, "enable_track": False,
}  # fmt: skip
PARTS = {
    "encoder": "aggregator.patch_embed.blocks",
    "frame": "aggregator.frame_blocks",
    "global": "aggregator.global_blocks",
}
LINEARS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
ROW_SPREAD = (3.0, 13.0)  # largest over smallest row of a weight
LARGEST_ROW = 1.6  # standard deviation of an output whose row is the largest, for inputs of unit variance
BRANCH = 0.2  # LayerScale: how much a branch adds to the stream


def main(command_line: list[str] | None = None) -> None:
    arguments = parse(command_line)
    images, calibration = (
        [batch.images for batch in scene_batches(split, 2, 2, (112, 112))] for split in ("held_out", "calibration")
    )
    model = make_model(arguments.seed, calibration)
    names = [f"{block}.{linear}" for block, _ in transformer_blocks(model) for linear in LINEARS]
    inputs = linear_inputs(model, names, images)
    largest = {name: [rows.abs().max().item() for rows in inputs[name]] for name in names}
    found: dict[str, dict[str, float]] = {}
    for recipe in arguments.recipes:
        quantized = copy.deepcopy(model)
        options: dict[str, Any] = {"calibration": calibration} if load_recipe(recipe).needs_calibration else {}
        quantize(quantized, recipe, "reference", **options)
        sqnr = layer_sqnr(model, quantized, images)
        found[Path(recipe).stem] = {name: sqnr[name] for name in names}
    print(table(largest, found))
    if arguments.out:
        settings = {"seed": arguments.seed, "recipes": list(found)}
        created = datetime.now(UTC).isoformat(timespec="seconds")
        facts = {"created": created, "machine": describe_machine(torch.device("cpu")), "versions": installed_versions()}
        whole = {"format_version": 1, **facts, "settings": settings, "largest_inputs": largest, "sqnr_db": found}
        write_json(arguments.out, finite(whole))


def parse(command_line: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--recipes",
        nargs="+",
        default=[name for name in RECIPES if name != "fp16"],
        help="shipped names or .toml files",
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and outliers")
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    arguments = parser.parse_args(command_line)
    try:
        for recipe in arguments.recipes:
            load_recipe(recipe)
    except ValueError as error:
        parser.error(str(error))
    return arguments


def make_model(seed: int, images: list[Tensor], **config: Any) -> VGGTInt8:
    """The network of the module's text. images: batches [B, S, 3, H, W]; config: in the place of `CONFIG`'s."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = VGGTInt8(VGGTConfig(**{**CONFIG, **config})).eval()
        with torch.no_grad():
            for module in model.aggregator.modules():
                if isinstance(module, nn.Linear):
                    _draw_rows(module)
            for name, parameter in model.aggregator.named_parameters():
                if name.endswith("gamma"):
                    parameter.fill_(BRANCH)
                elif name.endswith(("_token", "_tokens")):
                    parameter.normal_()
    return with_outlier_tokens(model, seed, images)


def _draw_rows(linear: nn.Linear) -> None:
    """Rows of normal numbers, whose sizes are spread evenly by ratio."""
    low, high = ROW_SPREAD
    spread = low + (high - low) * torch.rand(())
    size = LARGEST_ROW * spread ** -torch.rand(linear.out_features, 1)
    linear.weight.normal_().mul_(size / linear.in_features**0.5)
    linear.bias.normal_(std=0.1)


def table(largest: dict[str, list[float]], found: dict[str, dict[str, float]]) -> str:
    """Markdown: a line for each kind of layer, and for each fc2 of the encoder, whose peaks differ."""
    lines = [
        "| layer | largest input: special tokens, patches | " + " | ".join(f"`{recipe}`" for recipe in found) + " |",
        "|---" * (2 + len(found)) + "|",
    ]
    for title, names in layer_kinds(list(largest)).items():
        special, patches = (max(largest[name][side] for name in names) for side in (0, 1))
        cells = [f"{special:.1f}, {patches:.1f}"]
        for sqnr in found.values():
            values = [sqnr[name] for name in names]
            middle = f" / {statistics.median(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{min(values):.1f}{middle}")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def layer_kinds(names: list[str]) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = {}
    for part, path in PARTS.items():
        for linear in LINEARS:
            for name in (name for name in names if name.startswith(path) and name.endswith(linear)):
                short = linear.partition(".")[2]
                apart = (
                    f", block {name.removeprefix(path).split('.')[1]}" if (part, short) == ("encoder", "fc2") else ""
                )
                kinds.setdefault(f"{part} {short}{apart}", []).append(name)
    return kinds


if __name__ == "__main__":
    main()
