"""`vggt-int8 recipes`: the shipped recipes, what each does, how large it makes VGGT-1B, and what can run it."""

from typing import TYPE_CHECKING

from rich.table import Table

from vggt_int8.cli import console

if TYPE_CHECKING:
    from vggt_int8.recipe import Recipe


def recipes() -> None:
    """List the shipped recipes: what they do, the size of VGGT-1B, and the backends that can run them here."""
    with console.step("Measuring VGGT-1B under each recipe"):
        rows = _rows()
    table = Table("recipe", "what it does", "VGGT-1B", "backends (on this machine)", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console.out.print(table)


def _rows() -> list[tuple[str, str, str, str]]:
    from vggt_int8.recipe import available_recipes, load_recipe

    rows = []
    for name in available_recipes():
        recipe = load_recipe(name)
        size, runs_on = _measure(recipe)
        rows.append((name, recipe.description, console.megabytes(size), runs_on))
    return rows


def _measure(recipe: "Recipe") -> tuple[int, str]:
    """Bytes of a VGGT-1B checkpoint under the recipe, without any weights, and the backends that can run it."""
    import torch

    from vggt_int8.model.config import VGGTConfig
    from vggt_int8.model.vggt import VGGT
    from vggt_int8.quant.backends import BACKENDS, BackendError
    from vggt_int8.quant.quantize import check_backend, prepare_module, stored_dtype

    with torch.device("meta"):
        model = VGGT(VGGTConfig())
    plan = prepare_module(model, recipe)
    size = sum(t.numel() * stored_dtype(name, t).itemsize for name, t in model.state_dict().items())
    if not any(layer.scheme for layer in plan.values()):
        return size, "plain PyTorch"
    usable = []
    for backend in BACKENDS:
        try:
            check_backend(plan, recipe, backend, "cuda" if torch.cuda.is_available() else "cpu")
        except BackendError:
            continue
        usable.append(backend)
    return size, ", ".join(usable)
