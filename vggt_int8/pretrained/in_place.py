"""`quantize`: quantizes an existing model in place, of this package or not."""

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
from vggt_int8.plain_data import shown
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

    This package's networks, including plain `VGGT` and `VGGTOmega`, can then be saved and loaded as `VGGTInt8` or
    `VGGTOmegaInt8`; their kept parameters are rounded to fp16, the stored dtype. In any other module, including the
    reference repository's `VGGT`, only the layers that the recipe names change, and with smoothing those before them.

    Everything is checked first, so an error leaves the model unchanged. Then each layer frees its floats as its codes
    take their place (one layer per thread on a CPU), so no second model exists, and Ctrl-C waits until that is done. A
    warning lists layers that must be kept (see `vggt_int8.quant.quantize_module`); `model.quantization_plan` has all
    layers, with reasons.

    peft cannot wrap layers that are already INT8, so apply adapters (LoRA) first: merge them, or quantize with them in
    place, which turns the wrapped layers into INT8; `exclude=[".*lora.*"]` leaves LoRA's own layers as trainable
    floats. Layers under adapters that read their weights (DoRA) are kept.

    calibration: images for a recipe with static scales, GPTQ, or smoothing by inputs: folders, files, patterns, or
        tensors [S, 3, H, W] in [0, 1], one or a list; for a module that is not a network of this package, tensors, one
        per call. Each folder or tensor is a scene. The recipe's `calibration_samples` of them are used. Their choice,
        and the result, depend only on the images and `calibration_seed`, not on their order
        (`vggt_int8.calibration.images`).
    on_call: called with (calls done, all calls) during calibration, instead of a progress bar.

    Raises `TypeError` if `model` is not a module; `RecipeError` if the recipe does not fit, or if calibration is
    missing or unneeded; `CalibrationError` for images or a network without ranges; `BackendError` if the backend cannot
    run it; `ValueError`, naming the layer, for weights with NaN or inf.
    """
    recipe = load_recipe(recipe)
    check_calibration(recipe, calibration, calibration_seed)
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
    """The folds that a recipe asks for, and static scales and codes of the folded layers; arguments as in `quantize`.
    The model is not changed.
    """
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
    """Make a model INT8 in place from the results of `measured`; a `Network` can then be saved. Signals are deferred
    until that is done.
    """
    with uninterrupted():
        apply_plan(model, plan, recipe, backend, folds, *(() if found is None else (found.scales, found.codes)))
        model.quantization_plan = plan  # type: ignore[assignment]  # any attribute but a tensor or module
        if isinstance(model, Network):
            round_kept_parameters(model)
            facts = None if found is None else found.facts
            quantization = VGGTInt8QuantizationConfig(recipe=recipe.to_dict(), backend=backend, calibration=facts)
            model.config = deepcopy(model.config)  # other models may share it
            model.config.quantization_config = quantization
            model.hf_quantizer = VGGTInt8Quantizer(quantization, pre_quantized=True)
            model.register_load_state_dict_pre_hook(check_incoming_values)
            model.requires_grad_(False)
            set_attention(recipe, model)


def check_calibration(recipe: Recipe | None, calibration: Any, seed: int = 0) -> None:
    """Raise `RecipeError` if calibration is missing for a recipe that needs it, or given for one that does not, and
    ValueError for a seed that is no integer of 64 bits."""
    if type(seed) is not int or not -(2**63) <= seed < 2**63:
        raise ValueError(f"calibration_seed is {shown(seed)}; it must be an integer of 64 bits")
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
    is on several devices.
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
    """`on_call`, or else a function that draws a progress bar on stderr like transformers does while loading, unless
    its bars are disabled.
    """
    if on_call is not None:
        yield on_call
        return
    shown = 0  # a disabled bar does not count
    with logging.tqdm(desc="Calibrating", total=None, leave=False) as bar:

        def show(done: int, total: int) -> None:
            nonlocal shown
            bar.total = total
            bar.update(done - shown)
            shown = done

        yield show
