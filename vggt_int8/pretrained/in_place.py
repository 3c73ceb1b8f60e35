"""`quantize`: a model that is there already, in place, whoever's it is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from torch import nn
from transformers.utils import logging

from vggt_int8.calibration import (
    Calibration,
    calibrate,
    channel_folds,
    inputs_for,
    round_weights,
    smoothing_folds,
)
from vggt_int8.interrupts import uninterrupted
from vggt_int8.model.network import Network
from vggt_int8.pretrained.checkpoint import CheckpointError, check_incoming_values
from vggt_int8.pretrained.quantizer import (
    VGGTInt8QuantizationConfig,
    VGGTInt8Quantizer,
    check_parameters,
    round_kept_parameters,
)
from vggt_int8.quant.attention import set_attention
from vggt_int8.quant.plan import LayerPlan, recipe_for
from vggt_int8.quant.quantize import HOW_TO_CALIBRATE, apply_plan, plan_folds, plan_module
from vggt_int8.quant.smoothing import Folds
from vggt_int8.recipe import Recipe, RecipeError, load_recipe

Module = TypeVar("Module", bound=nn.Module)


def quantize(
    model: Module,
    recipe: str | Path | Recipe = "int8_dynamic",
    backend: str = "auto",
    *,
    calibration: Any = None,
    calibration_seed: int = 0,
    on_call: Callable[[int, int], None] | None = None,
) -> Module:
    """Quantize a model in place and return it.

    This package's networks, `VGGT` and `VGGTOmega` too, can be saved afterwards and loaded as `VGGTInt8` or
    `VGGTOmegaInt8`; their kept parameters are rounded to fp16 values, in which they are stored. On any other module,
    the reference repository's `VGGT` included, only the layers that the recipe names change and, where it smooths,
    those before them. All is checked first, so an error leaves the model as it was; then layer after layer gives its
    floats back as its codes take their place (a layer a thread on a CPU), so that no second model exists, and Ctrl-C
    waits until that is done. Layers that must stay as they are (`vggt_int8.quant.quantize_module` says which) are
    warned of; `model.quantization_plan` has all, with the reasons.
    Adapters (peft's LoRA) come first, for peft wraps no layer that is INT8 already: merge them, or quantize with them
    in place, which turns the layers that they wrap into INT8; `exclude=[".*lora.*"]` leaves LoRA's own layers, still
    trainable, as floats. Layers under other adapters (DoRA, which reads their weights) are kept.

    calibration: images for a recipe with static scales, or one that smooths by what inputs show: folders, files,
        patterns, or tensors [S, 3, H, W] in [0, 1], one or a list; for a module that is no network of this package
        tensors, one for each call of it. Each folder or tensor is a scene. The recipe's `calibration_samples` of them
        are seen, in an order of their own: which, and what follows, depend on the images and `calibration_seed` alone
        (`vggt_int8.calibration.images`).
    on_call: called with (calls done, all calls) during calibration, in the place of a progress bar.

    Raises `TypeError` for what is no module, `RecipeError` if the recipe does not fit, or needs a calibration that is
    not given, or is given one that it does not need, `CalibrationError` for images or a network without ranges,
    `BackendError` if the backend cannot run it, `ValueError` naming the layer for weights with NaN or inf.
    """
    recipe = load_recipe(recipe)
    check_calibration(recipe, calibration)
    plan = plan_module(model, recipe, backend)
    recipe = recipe_for(model, recipe)
    if isinstance(model, Network):
        check_parameters(model, plan)
    folds, found = measured(model, plan, recipe, calibration, calibration_seed, on_call)
    install(model, plan, recipe, backend, folds, found)
    return model


def measured(
    model: nn.Module,
    plan: dict[str, LayerPlan],
    recipe: Recipe,
    calibration: Any = None,
    seed: int = 0,
    on_call: Callable[[int, int], None] | None = None,
) -> tuple[Folds, Calibration | None]:
    """What a recipe asks to be folded into layers, and static scales and codes of what is then folded; arguments as of
    `quantize`. The model is not changed."""
    if calibration is None:
        return plan_folds(model, plan, recipe), None
    inputs = inputs_for(model, calibration, recipe.calibration_samples, seed)
    strengths: dict[str, float] = {}
    with progress_of(on_call) as shown:
        if recipe.smoothing not in (0, "weights"):
            folds, strengths = smoothing_folds(model, plan, recipe, inputs, shown)
        elif recipe.observer == "per_channel":
            folds = channel_folds(model, plan, recipe, inputs, shown)
        else:
            folds = plan_folds(model, plan, recipe)
        found = calibrate(model, plan, recipe, inputs, folds=folds, strengths=strengths, seed=seed, on_call=shown)
        if recipe.rounding == "gptq":
            found = replace(found, codes=round_weights(model, plan, inputs, folds=folds, on_call=shown))
    return folds, found


def install(
    model: nn.Module,
    plan: dict[str, LayerPlan],
    recipe: Recipe,
    backend: str,
    folds: Folds,
    found: Calibration | None,
) -> None:
    """Make a model INT8 in place by what was measured; a `Network` can be saved then. Signals wait until it is."""
    with uninterrupted():
        apply_plan(model, plan, recipe, backend, folds, *(() if found is None else (found.scales, found.codes)))
        model.quantization_plan = plan  # type: ignore[assignment]  # any attribute but a tensor or module
        if isinstance(model, Network):
            round_kept_parameters(model)
            facts = None if found is None else found.facts
            quantization = VGGTInt8QuantizationConfig(recipe=recipe.to_dict(), backend=backend, calibration=facts)
            model.config = deepcopy(model.config)  # other models may have been made of the same one
            model.config.quantization_config = quantization
            model.hf_quantizer = VGGTInt8Quantizer(quantization, pre_quantized=True)
            model.register_load_state_dict_pre_hook(check_incoming_values)
            model.requires_grad_(False)
            set_attention(recipe, model)


def check_calibration(recipe: Recipe | None, calibration: Any) -> None:
    """Raise `RecipeError` unless calibration is given where a recipe needs it, and nowhere else."""
    if recipe is None:
        if calibration is not None:
            raise RecipeError("calibration belongs to a recipe that needs it: pass recipe= as well")
        return
    needed = recipe.needs_calibration
    if needed and calibration is None:
        static = "static" in recipe.activations_asked
        smooths = recipe.smoothing not in (0, "weights")
        why = "smooths by what inputs show" if smooths else "rounds weights by what inputs show"
        why = "computes with static scales, which are found on images" if static else why
        raise RecipeError(
            f"recipe {recipe.name!r} {why}: {HOW_TO_CALIBRATE}. A checkpoint that was calibrated needs neither"
        )
    if calibration is not None and not needed:
        raise RecipeError(
            f"recipe {recipe.name!r} needs no images, so calibration would have no effect: leave it out, or choose "
            "one that does, such as int8_static_rotated or int8_smooth_rotated"
        )


def calibrate_loaded(
    model: Any,
    recipe: Recipe | None,
    backend: str,
    calibration: Any,
    seed: int,
    on_call: Callable[[int, int], None] | None,
) -> None:
    """`quantize` for a model that `from_pretrained` has just loaded in floating point. Raises `CheckpointError` if it
    lies on several devices.
    """
    assert recipe is not None
    places = set((getattr(model, "hf_device_map", None) or {}).values())
    if len(places) > 1:
        raise CheckpointError(
            f"the model lies on several devices ({', '.join(sorted(map(str, places)))}), where it cannot be "
            "calibrated: load it onto one (device_map='cpu' takes any size), save_pretrained() the INT8 model, then "
            "load that"
        )
    quantize(model, recipe, backend, calibration=calibration, calibration_seed=seed, on_call=on_call)


@contextmanager
def progress_of(on_call: Callable[[int, int], None] | None) -> Iterator[Callable[[int, int], None]]:
    """`on_call`, or what draws a bar on stderr as transformers does while it loads, unless its bars are off."""
    if on_call is not None:
        yield on_call
        return
    shown = 0  # a bar that is off knows no number of its own
    with logging.tqdm(desc="Calibrating", total=None, leave=False) as bar:

        def show(done: int, total: int) -> None:
            nonlocal shown
            bar.total = total
            bar.update(done - shown)
            shown = done

        yield show
