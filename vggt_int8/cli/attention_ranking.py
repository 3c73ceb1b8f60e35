"""`vggt-int8 sensitivity --attention`: which layers can look at less, and the list of choices for a budget."""

import warnings
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from vggt_int8.cli import console
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
    """Raise ValueError for scenes in which so many key frames would be all frames."""
    few = next((scene for scene in data if keyframes is not None and len(scene.images) <= keyframes), None)
    if few is not None:
        raise ValueError(
            f"{few.name} has {len(few.images)} images, so {keyframes} key frames are all of them: give more images "
            "(--views for synthetic scenes), or fewer --keyframes"
        )


def rank_attention(
    plain: "VGGTInt8",
    base: Recipe,
    settings: dict[str, Any],
    data: "list[Scene]",
    record: "Record",
    budget: float | None,
    recipe: Path,
) -> dict[str, Any]:
    """Measure, and with a budget choose, measure the choice, and write it into a recipe; -> the document."""
    from vggt_int8.export.repeat import command_line
    from vggt_int8.export.report import describe_machine, installed_versions
    from vggt_int8.sensitivity.attention import changes_of, errors_of
    from vggt_int8.sensitivity.measure import measure_changes
    from vggt_int8.sensitivity.measures import MEASURES

    plain.set_runtime("off")
    changes = changes_of(plain.config.depth, settings["keyframes"])
    with console.step(f"Measuring {len(changes)} changes on {len(data)} scenes") as progress:
        measure_changes(plain, data, changes, record, settings["seed"], progress)
    found = errors_of(changes, record, len(data))
    document: dict[str, Any] = {
        "format_version": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command_line": command_line(),
        "versions": installed_versions(),
        "machine": describe_machine(plain.device),
        "settings": settings,
        "scenes": [{"name": scene.name, "images": list(scene.images.shape)} for scene in data],
        "measures": {kind: {"title": title, "unit": unit} for kind, (title, unit) in MEASURES.items()},
        "changes": [{"unit": unit, "choice": choice, "errors": errors} for (unit, choice), errors in found.items()],
    }
    if budget is not None:
        document |= _choose(plain, base, settings, data, record, budget, recipe, found)
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
    from vggt_int8.files import write_whole
    from vggt_int8.sensitivity.attention import choose, errors_of
    from vggt_int8.sensitivity.measure import measure_changes
    from vggt_int8.sensitivity.measures import largest
    from vggt_int8.sensitivity.written import recipe_text

    chosen, predicted = choose(found, plain.config.depth, settings["keyframes"], budget)
    with console.step("Measuring the choice"):
        measure_changes(plain, data, [chosen], record, settings["seed"])
    measured = errors_of([chosen], record, len(data))[chosen.unit, chosen.choice]
    if largest(measured) > budget:
        warnings.warn(
            f"the measured error of the choice is {largest(measured):.3g}, above the {budget:g} that its prediction "
            "keeps to: ask for less",
            stacklevel=2,
        )
    recipe = replace(base, name=path.stem, global_attention=chosen.layers, keyframes=chosen.keyframes)
    remarks = [command_line(), f"predicted: {_in_words(predicted)}", f"measured:  {_in_words(measured)}"]
    write_whole(path, recipe_text(recipe, remarks))
    return {
        "budget": {"error": budget},
        "global_attention": list(chosen.layers),
        "keyframes": chosen.keyframes,
        "predicted": {"errors": predicted, "error": largest(predicted)},
        "measured": {"errors": measured, "error": largest(measured)},
    }


def attention_table(document: dict[str, Any]) -> Table:
    """A line for each change, as it was measured."""
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


def _in_words(errors: "Errors") -> str:
    from vggt_int8.sensitivity.measures import MEASURES

    return ", ".join(f"{MEASURES[kind].title} {value:.3g} {MEASURES[kind].unit}" for kind, value in errors.items())
