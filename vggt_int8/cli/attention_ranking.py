"""`vggt-int8 sensitivity --attention`: measure restricted attention per layer, and choose the scopes for a budget."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from vggt_int8.cli import console
from vggt_int8.files import write_json, write_whole
from vggt_int8.recipe import Recipe

if TYPE_CHECKING:
    from vggt_int8 import VGGTInt8
    from vggt_int8.sensitivity.measures import Errors
    from vggt_int8.sensitivity.record import Record
    from vggt_int8.sensitivity.scenes import Scene


def check_options(attention: bool, keyframes: int | None, others: dict[str, Any]) -> None:
    """Raise ValueError for options that have no effect with, or without, --attention."""
    if not attention:
        if keyframes is not None:
            raise ValueError("--keyframes is measured with --attention: give both")
        return
    if given := next((name for name, value in others.items() if value is not None), None):
        raise ValueError(f"{given} is for layers in INT8, and --attention measures none: leave one of them out")


def check_views(data: "list[Scene]", keyframes: int | None) -> None:
    """Raise ValueError for scenes in which that number of key frames would be all frames."""
    few = next((scene for scene in data if keyframes is not None and len(scene.images) <= keyframes), None)
    if few is not None:
        raise ValueError(
            f"{few.name} has {len(few.images)} images, so {keyframes} key frames are all of them: give more images "
            "(--views for synthetic scenes), or fewer --keyframes"
        )


def rank_attention(
    plain: "VGGTInt8",
    model: str,
    base: Recipe,
    settings: dict[str, Any],
    data: "list[Scene]",
    record: "Record",
    budget: float | None,
    result: Path,
    recipe: Path,
) -> dict[str, Any]:
    """Measure all changes and, with a budget, choose, measure the choice and write it as a recipe. Returns the
    document, which is also written to `result`.
    """
    from vggt_int8.sensitivity.attention import changes_of, errors_of
    from vggt_int8.sensitivity.document import header
    from vggt_int8.sensitivity.measure import measure_changes

    plain.set_runtime("off")
    changes = changes_of(plain.config.depth, plain.global_layers, settings["keyframes"])
    with console.step(f"Measuring {len(changes)} changes on {len(data)} scenes") as progress:
        measure_changes(plain, data, changes, record, settings["seed"], progress)
    found = errors_of(changes, record, len(data))
    document = header(model, base, settings, data, plain.device)
    document["changes"] = [
        {"unit": unit, "choice": choice, "errors": errors} for (unit, choice), errors in found.items()
    ]
    write_json(result, document)  # a budget may be less than can be met
    if budget is not None:
        document |= _choose(plain, base, settings, data, record, budget, recipe, found)
        write_json(result, document)
    return document


def _choose(
    plain: "VGGTInt8",
    base: Recipe,
    settings: dict[str, Any],
    data: "list[Scene]",
    record: "Record",
    budget: float,
    path: Path,
    found: "dict[tuple[str, str], Errors]",
) -> dict[str, Any]:
    from vggt_int8.export.repeat import command_line
    from vggt_int8.sensitivity.attention import choose, errors_of
    from vggt_int8.sensitivity.measure import measure_changes
    from vggt_int8.sensitivity.measures import in_words, largest
    from vggt_int8.sensitivity.recipe_file import recipe_text

    chosen, predicted = choose(found, plain.config.depth, plain.global_layers, settings["keyframes"], budget)
    with console.step("Measuring the choice"):
        measure_changes(plain, data, [chosen], record, settings["seed"])
    measured = errors_of([chosen], record, len(data))[chosen.unit, chosen.choice]
    warn_above(budget, largest(measured))
    recipe = replace(base, name=path.stem, global_attention=chosen.layers, keyframes=chosen.keyframes)
    remarks = [command_line(), f"predicted: {in_words(predicted)}", f"measured:  {in_words(measured)}"]
    write_whole(path, recipe_text(recipe, remarks))
    return {
        "budget": {"error": budget},
        "global_attention": list(chosen.layers),
        "keyframes": chosen.keyframes,
        "predicted": {"errors": predicted, "error": largest(predicted)},
        "measured": {"errors": measured, "error": largest(measured)},
    }


def warn_above(budget: float | None, measured: float) -> None:
    """Warn if the measured error of a choice is larger than the requested limit."""
    if budget is not None and measured > budget:
        warnings.warn(
            f"the recipe's measured error is {measured:.3g}, above the {budget:g} that its prediction keeps to: ask "
            "for less",
            stacklevel=3,
        )


def attention_table(document: dict[str, Any]) -> Table:
    """One line for each measured change."""
    measures = document["measures"]
    kinds = [kind for kind in measures if any(kind in change["errors"] for change in document["changes"])]
    titles = [f"{measures[kind]['title']}, {measures[kind]['unit']}" for kind in kinds]
    table = Table("", "looks at", *titles, box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for change in document["changes"]:
        numbers = [f"{change['errors'][kind]:.3g}" if kind in change["errors"] else "" for kind in kinds]
        table.add_row(change["unit"], change["choice"], *numbers)
    return table
