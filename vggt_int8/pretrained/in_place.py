"""`quantize`: a model that is there already, in place, whoever's it is."""

from copy import deepcopy
from pathlib import Path
from typing import TypeVar

from torch import nn

from vggt_int8.interrupts import uninterrupted
from vggt_int8.model.vggt import VGGT
from vggt_int8.pretrained.checkpoint import check_incoming_values
from vggt_int8.pretrained.quantizer import (
    VGGTInt8QuantizationConfig,
    VGGTInt8Quantizer,
    check_parameters,
    round_kept_parameters,
)
from vggt_int8.quant.plan import recipe_for
from vggt_int8.quant.quantize import apply_plan, plan_folds, plan_module
from vggt_int8.recipe import Recipe, load_recipe

Module = TypeVar("Module", bound=nn.Module)


def quantize(model: Module, recipe: str | Path | Recipe = "int8_dynamic", backend: str = "auto") -> Module:
    """Quantize a model in place and return it.

    A `VGGTInt8`, or this package's `VGGT`, can be saved afterwards and loaded as `VGGTInt8`; its kept parameters are
    rounded to fp16 values, in which they are stored. On any other module, the reference repository's `VGGT` included,
    only the layers that the recipe names change. All is checked first, so an error leaves the model as it was; then
    layer after layer gives its floats back as its codes take their place (a layer a thread on a CPU), so that no second
    model exists, and Ctrl-C waits until that is done. Layers that must stay as they are
    (`vggt_int8.quant.quantize_module` says which) are warned of; `model.quantization_plan` has all, with the reasons.
    Adapters (peft's LoRA) come first, for peft wraps no layer that is INT8 already: merge them, or quantize with them
    in place, which turns the layers that they wrap into INT8; `exclude=[".*lora.*"]` leaves LoRA's own layers, still
    trainable, as floats. Layers under other adapters (DoRA, which reads their weights) are kept.

    Raises `TypeError` for what is no module, `RecipeError` if the recipe does not fit, `BackendError` if the backend
    cannot run it, `ValueError` naming the layer for weights with NaN or inf.
    """
    recipe = load_recipe(recipe)
    plan = plan_module(model, recipe, backend)
    recipe = recipe_for(model, recipe)
    folds = plan_folds(model, plan, recipe)
    if isinstance(model, VGGT):
        check_parameters(model, plan)
    with uninterrupted():
        apply_plan(model, plan, recipe, backend, folds)
        model.quantization_plan = plan  # type: ignore[assignment]  # any attribute but a tensor or module
        if isinstance(model, VGGT):
            round_kept_parameters(model)
            quantization = VGGTInt8QuantizationConfig(recipe=recipe.to_dict(), backend=backend)
            model.config = deepcopy(model.config)  # other models may have been made of the same one
            model.config.quantization_config = quantization
            model.hf_quantizer = VGGTInt8Quantizer(quantization, pre_quantized=True)
            model.register_load_state_dict_pre_hook(check_incoming_values)
            model.requires_grad_(False)
    return model
