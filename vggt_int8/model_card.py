"""The README.md of a checkpoint: what it is, how it was quantized, how to run it, and its licence.

A function of plain data and of the package's recipe names: shared by saving, uploading and tests, without network.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCardData

from vggt_int8.embedded import EMBEDDED_MODELS
from vggt_int8.global_attention import attention_in_words
from vggt_int8.plain_data import flat
from vggt_int8.recipe import Recipe, available_recipes, load_recipe

VGGT_1B = "facebook/VGGT-1B"
OPTIONS = {"calibration_samples": "samples", "observer": "observer", "rounding": "rounding"}  # of `quantize`, by field
OMEGA = "vggt_omega"  # `model_type` of its config.json
METRICS = {
    "relative": "relative error",
    "mae": "mean abs. difference",
    "max_diff": "max. difference",
    "cosine": "cosine",
    "sqnr_db": "SQNR (dB)",
}


def model_card(
    config: Mapping[str, Any],
    sizes: Mapping[str, int],
    *,
    name: str = "VGGT in INT8",
    base_model: str | None = None,
    base_file: str | None = None,
    differences: Mapping[str, Any] | None = None,
    tags: Sequence[str] = (),
    evidence: Sequence[tuple[str, str]] = (),
) -> str:
    """Text of a model card, with the metadata block that the Hub reads.

    config: what `config.json` holds; its `model_type` gives the class that loads it, its `quantization_config`, if any,
        recipe and format, its `license`, if any, what the source of the weights states (see `saves.license`).
    sizes: dtype name -> bytes of stored tensors.
    name: title, and what the example loads: a Hub id or a folder.
    base_model: Hub id of the checkpoint that was quantized, or an embedded model's name; None when it is not known.
    base_file: name of the file of weights, in that checkpoint or by itself, where it has no config.json.
    differences: measured against that checkpoint: output -> metric (see `METRICS`) -> value, as in the result of
        `compare_model_outputs`, whose other entries are ignored.
    tags: for the Hub, beside the card's own.
    evidence: title and text of sections about what was measured.
    """
    quantization = config.get("quantization_config") or {}
    recipe = quantization.get("recipe") or {}
    options = _options(recipe, quantization)
    omega = config.get("model_type") == OMEGA
    sections = [
        f"# {name}",
        _introduction(config, recipe, base_model, omega, described=not options),
        _example(name, "VGGTOmegaInt8" if omega else "VGGTInt8", _outputs(config, omega), bool(recipe)),
        "## Stored tensors\n\n" + _size_table(sizes),
    ]
    if recipe:
        sections.append("## Recipe\n\n" + _recipe_table(recipe, quantization))
        sections.append(
            "## How to make it again\n\n" + _command(recipe["name"], base_model, base_file, quantization, options)
        )
    if training := quantization.get("training"):
        sections.append("## Training\n\n" + _training(training))
    if differences:
        sections.append("## Measured difference from the original\n\n" + _difference_table(differences))
    sections += [f"## {title}\n\n{text}" for title, text in evidence]
    stated = {} if base_model in EMBEDDED_MODELS else config.get("license") or {}
    sections.append("## Licence\n\n" + _licence(base_model, stated))
    return f"---\n{_metadata(bool(recipe), base_model, stated, tags)}\n---\n\n" + "\n\n".join(sections) + "\n"


def _metadata(quantized: bool, base_model: str | None, stated: Mapping[str, str], tags: Sequence[str]) -> str:
    own = ["vggt", "3d-reconstruction", "depth-estimation", *(["int8", "quantized"] if quantized else [])]
    embedded = base_model in EMBEDDED_MODELS
    if embedded:
        base_model = None  # it is no repository of the Hub
    licence: dict[str, Any] = {}  # the Hub shows none where none is known
    if embedded:
        licence = {"license": "apache-2.0"}
    elif stated:
        licence = {"license": stated["id"], "license_name": stated.get("name"), "license_link": _link(stated)}
    elif base_model is not None:
        link = f"https://huggingface.co/{base_model}"
        licence = {"license": "other", "license_name": "licence-of-the-base-model", "license_link": link}
    data = ModelCardData(
        **licence,
        library_name="vggt-int8",
        pipeline_tag="image-to-3d",
        base_model=base_model,
        base_model_relation="quantized" if quantized and base_model else None,
        tags=list(dict.fromkeys([*own, *tags])),
    )
    return data.to_yaml()


def _introduction(
    config: Mapping[str, Any], recipe: Mapping[str, Any], base_model: str | None, omega: bool, described: bool
) -> str:
    """described: whether the recipe's description fits, as no option of `quantize` has changed it."""
    source = "a VGGT checkpoint" if base_model is None else f"[{base_model}](https://huggingface.co/{base_model})"
    if base_model in EMBEDDED_MODELS:
        source = "the small model inside the package vggt-int8"
    if not recipe:
        return f"The weights of {source}, stored by vggt-int8 without quantization."
    what = str(recipe.get("description") or "").rstrip(".") if described else ""
    tracks = " and tracks" if config.get("enable_track", True) else ""
    gives = (
        f"VGGT turns images of a scene into cameras, depth{',' if tracks else ' and'} 3D points{tracks} in one pass."
    )
    if omega:
        gives = "VGGT-Ω turns images of a scene into cameras and depth in one pass."
    return (
        f"The weights of {source}, quantized to INT8 by vggt-int8 with the recipe `{recipe['name']}`"
        f"{f' ({what})' if what else ''}. {gives}"
    )


def _outputs(config: Mapping[str, Any], omega: bool) -> list[str]:
    """Attributes of the model's output."""
    heads = {"depth": "depth", "point": "world_points", "camera": "extrinsic, pred.intrinsic"}
    there = [text for head, text in heads.items() if config.get(f"enable_{head}", True)]
    return [text for text in there if not (omega and text == "world_points")]


def _example(name: str, loader: str, outputs: Sequence[str], quantized: bool) -> str:
    alone = ", which alone loads these weights: other loaders know nothing of scales, and refuse codes in this shape"
    return (
        "```python\n"
        f"from vggt_int8 import {loader}, load_images\n\n"
        f'model = {loader}.from_pretrained("{name}", device_map="cuda")  # or "cpu"\n'
        'images = load_images(["a.jpg", "b.jpg"], model=model)  # [S, 3, H, W] in [0, 1]\n'
        "pred = model(images.to(model.device))\n"
        f"{', '.join(f'pred.{output}' for output in outputs)}\n"
        "```\n\n"
        f"The Python package `vggt-int8` has `{loader}`{alone if quantized else ''}."
    )


def _options(recipe: Mapping[str, Any], quantization: Mapping[str, Any]) -> list[str]:
    """Options of `quantize` that override a shipped recipe's calibration, and its seed if one was chosen."""
    if not quantization.get("calibration") or recipe.get("name") not in available_recipes():
        return []
    shipped = load_recipe(recipe["name"])
    asked = {field: recipe.get(field, getattr(Recipe, field)) for field in OPTIONS}
    changed = [f"--{OPTIONS[field]} {value}" for field, value in asked.items() if value != getattr(shipped, field)]
    seed = quantization["calibration"].get("seed")
    return [*changed, *([f"--seed {seed}"] if seed else [])]


def _command(
    recipe: str, base_model: str | None, base_file: str | None, quantization: Mapping[str, Any], options: Sequence[str]
) -> str:
    """The command that makes such a checkpoint; for a recipe outside the package, where it is stored."""
    shipped = recipe in available_recipes()
    source, file = base_file or base_model or "CHECKPOINT", recipe if shipped else "RECIPE.toml"
    images = " ".join(["", "--calibration IMAGES", *options]) if quantization.get("calibration") else ""
    made = f"`vggt-int8 quantize {source} -o FOLDER --recipe {file}{images}`"
    if training := quantization.get("training"):
        data = "synthetic" if ("data kind", "rendered scenes") in flat(training) else "IMAGES"
        made = f"`vggt-int8 qat {source} {data} -o FOLDER --recipe {file}`, with the settings below"
    if base_file and base_model:
        made = f"`hf download {base_model} {base_file} --local-dir .`, then {made}"
    seen = ", on images of your own" if "IMAGES" in made else ""
    return f"{made}{seen}." + ("" if shipped else " The recipe is written out in `config.json`.")


def _size_table(sizes: Mapping[str, int]) -> str:
    rows = [f"| {dtype} | {count / 1e6:.1f} |" for dtype, count in sorted(sizes.items(), key=lambda item: -item[1])]
    total = f"| **total** | **{sum(sizes.values()) / 1e6:.1f}** |"
    return "\n".join(["| dtype | MB |", "|---|---:|", *rows, total])


def _recipe_table(recipe: Mapping[str, Any], quantization: Mapping[str, Any]) -> str:
    facts = {
        "recipe": recipe["name"],
        "weights": recipe.get("weights"),
        "activations": recipe.get("activations"),
    }
    if recipe.get("attention", "float") != "float":
        facts["attention"] = recipe["attention"]
    if recipe.get("outlier_threshold"):
        facts["outlier threshold"] = recipe["outlier_threshold"]
    if recipe.get("rotation"):
        facts["rotation of inputs"] = f"in groups of at most {recipe['rotation']}"
    if recipe.get("rounding", "nearest") != "nearest":
        facts["rounding of weights"] = recipe["rounding"]
    how = recipe.get("global_attention", "exact")
    facts["global attention"] = attention_in_words(how, recipe.get("keyframes"))
    facts["everything else"] = recipe.get("keep")
    facts["checkpoint format"] = quantization.get("format_version")
    if calibration := quantization.get("calibration"):
        facts["calibration"] = _calibration(calibration)
    rows = [f"| {key} | `{value}` |" for key, value in facts.items() if value is not None]
    # In a table a vertical bar ends the cell, even in code, unless it is escaped.
    rules = [
        "| `{}` | {} | {} |".format(
            rule["match"].replace("|", "\\|"), _stored_and_multiplied(rule, recipe), rule.get("reason", "")
        )
        for rule in recipe.get("rules", [])
    ]
    table = "\n".join(["| | |", "|---|---|", *rows])
    if rules:
        table += "\n\n" + "\n".join(
            ["| layers (first match wins) | weights and inputs | why |", "|---|---|---|", *rules]
        )
    return table


def _calibration(facts: Mapping[str, Any]) -> str:
    found = [f"{facts.get('images')} images", f"observer {facts['observer']}" if facts.get("ranges") else ""]
    return ", ".join(word for word in [*found, f"seed {facts.get('seed', 0)}"] if word)


def _stored_and_multiplied(rule: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """What becomes of a rule's layers, as text."""
    weights = rule.get("weights") or recipe.get("weights", "int8")
    activations = rule.get("activations") or recipe.get("activations")
    if weights == "keep" or activations is None:
        return f"{recipe.get('keep', 'floating point')}, as it was"
    inputs = "floating point" if activations == "none" else f"int8 by {activations} scales"
    rotated = rule.get("rotated") if activations == "none" else recipe.get("rotation")
    return f"{weights}; inputs {inputs}" + (", rotated" if rotated else "")


def _training(facts: Mapping[str, Any]) -> str:
    """The training facts that `training.qat` records."""
    rows = [f"| {key.replace('_', ' ')} | `{value}` |" for key, value in flat(facts) if value is not None]
    return (
        "Trained under the rounding of INT8 to follow its own outputs in floating point, on images without labels. The "
        "losses are those of the validation, before and after.\n\n" + "\n".join(["| | |", "|---|---|", *rows])
    )


def _difference_table(differences: Mapping[str, Any]) -> str:
    differences = {name: row for name, row in differences.items() if isinstance(row, Mapping)}
    shown = [key for key in METRICS if any(key in row for row in differences.values())]
    head = "| output | " + " | ".join(METRICS[key] for key in shown) + " |"
    rows = [
        f"| {output} | " + " | ".join(f"{row[key]:.4g}" if key in row else "–" for key in shown) + " |"
        for output, row in differences.items()
    ]
    return "\n".join([head, "|---|" + "---:|" * len(shown), *rows])


def _link(stated: Mapping[str, str]) -> str | None:
    """The URL of a stated licence; a file name cannot be linked from here."""
    link = stated.get("link")
    return link if link and "://" in link else None


def _in_words(stated_by: str | None) -> str:
    return "" if stated_by is None else f" ({stated_by})"


def _licence(base_model: str | None, stated: Mapping[str, str]) -> str:
    text = (
        "The code of vggt-int8 is under Apache-2.0. Quantizing does not change the licence of weights: these "
        "keep that of the checkpoint they were made from"
    )
    if base_model in EMBEDDED_MODELS:
        return "The code of vggt-int8 and the weights of the small model inside it are under Apache-2.0."
    if stated:
        title = f"`{stated.get('name') or stated['id']}`"
        link = _link(stated)
        named = title if link is None else f"[{title}]({link})"
        return f"{text}: {named}, as their source states{_in_words(stated.get('stated_by'))}."
    if base_model is None:
        return f"{text}. Which licence that is, nothing says that came with them."
    if base_model == VGGT_1B:
        return f"{text}. `{VGGT_1B}` is under Meta's own terms, which allow non-commercial use only."
    return f"{text}, [{base_model}](https://huggingface.co/{base_model})."
