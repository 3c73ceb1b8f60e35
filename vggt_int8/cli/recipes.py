"""`vggt-int8 recipes`: the shipped recipes, with a description, the size of VGGT-1B, and the backends that can run
them.
"""

from typing import Annotated, Any

import typer
from rich.table import Table

from vggt_int8.cli import console, options
from vggt_int8.cli.libraries import quiet_libraries
from vggt_int8.recipe import load_recipe

# Bytes of a VGGT-1B checkpoint, and the backends with kernels for the recipe. Measuring them would need PyTorch, the
# network and seconds; a test compares them with measured values.
FACTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "fp16": (2_513_075_032, ()),
    "int8_dynamic": (1_277_529_560, ("native", "torchao", "bitsandbytes", "reference")),
    "int8_mixed": (1_310_128_984, ("native", "torchao", "bitsandbytes", "reference")),
    "int8_rotated": (1_277_529_560, ("native", "torchao", "bitsandbytes", "reference")),
    "int8_smooth": (1_277_529_560, ("native", "torchao", "bitsandbytes", "reference")),
    "int8_smooth_rotated": (1_277_529_560, ("native", "torchao", "bitsandbytes", "reference")),
    "int8_static": (1_277_531_672, ("native", "torchao", "reference")),
    "int8_static_rotated": (1_277_531_864, ("native", "torchao", "reference")),
    "int8_weight_only": (1_277_529_560, ("native", "torchao", "reference")),
    "llm_int8": (1_277_529_560, ("bitsandbytes", "reference")),
}


def recipes(
    check: Annotated[
        bool, typer.Option("--check", help="Check which of the backends can run on this machine, which takes seconds.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """List the shipped recipes: what they do, the size of VGGT-1B, and the backends that can run them."""
    rows = [_row(name) for name in FACTS]
    if check:
        with console.step("Trying the backends on this machine"), quiet_libraries():
            for row in rows:
                row["runs_here"] = measure(row["name"])[1]
    if as_json:
        console.document("recipes", {"recipes": rows})
        return
    table = Table("recipe", "what it does", "VGGT-1B", "backends", box=None, pad_edge=False)
    if check:
        table.add_column("on this machine")
    for row in rows:
        kinds = [row["backends"], *([row["runs_here"]] if check else [])]
        names = [", ".join(kind) or "plain PyTorch" for kind in kinds]
        table.add_row(row["name"], row["description"], console.megabytes(row["vggt_1b_bytes"]), *names)
    console.show(table)


def _row(name: str) -> dict[str, Any]:
    size, backends = FACTS[name]
    return {
        "name": name,
        "description": load_recipe(name).description,
        "vggt_1b_bytes": size,
        "backends": list(backends),
    }


def measure(name: str) -> tuple[int, list[str]]:
    """Bytes of a VGGT-1B checkpoint with a recipe, without weights, and the backends that can run it here."""
    import torch

    from vggt_int8.model.config import VGGTConfig
    from vggt_int8.quant.backends import BACKENDS, BackendError
    from vggt_int8.quant.quantize import check_backend
    from vggt_int8.runtime.fits import skeleton, stored_bytes

    recipe = load_recipe(name)
    model, plan = skeleton(VGGTConfig(), recipe)
    size = stored_bytes(model)
    if not any(layer.scheme for layer in plan.values()):
        return size, []
    usable = []
    for backend in BACKENDS:
        try:
            check_backend(plan, recipe, backend, "cuda" if torch.cuda.is_available() else "cpu")
        except BackendError:
            continue
        usable.append(backend)
    return size, usable
