"""Quantize a module in place: the layers that the recipe names become INT8 layers; nothing else changes."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from vggt_int8.interrupts import uninterrupted
from vggt_int8.kernels.cpu.threads import map_in_threads
from vggt_int8.listing import first_few
from vggt_int8.machine import threads
from vggt_int8.quant.backends import BackendError, check_backend_name
from vggt_int8.quant.layer import Choice, Int8Layer, int8_layers
from vggt_int8.quant.masked_bias import added_bias
from vggt_int8.quant.plan import LayerPlan, make_plan
from vggt_int8.quant.replaceable import carry_over, check_model
from vggt_int8.quant.seams import find_seams
from vggt_int8.quant.smoothing import Fold, Folds, estimated_folds, fold_, folded_linear, parameters_of
from vggt_int8.quant.storage import Int8Storage, all_finite, check_incoming, to_fp16
from vggt_int8.recipe import Recipe, RecipeError, Scheme, load_recipe

Item = TypeVar("Item")
Result = TypeVar("Result")
NO_FOLDS: Mapping[str, Fold] = MappingProxyType({})
NO_SCALES: Mapping[str, torch.Tensor] = MappingProxyType({})
NO_CODES: Mapping[str, torch.Tensor] = MappingProxyType({})
HOW_TO_CALIBRATE = (
    "pass calibration= (folders, files or tensors of images) to vggt_int8.quantize or VGGTInt8.from_pretrained, or "
    "--calibration to `vggt-int8 quantize`"
)
_LARGEST_FP32 = torch.finfo(torch.float32).max


def quantize_module(model: nn.Module, recipe: "str | Recipe", backend: str = "auto") -> dict[str, LayerPlan]:
    """Replace the layers of `model` that `recipe` quantizes by INT8 layers, in place.

    Only those layers change, and the modules before them if the recipe folds factors (`smoothing`); the dtype of the
    rest stays as it is. This works on the reference repository's own module, too, since the names agree. Everything is
    checked before the first layer changes, so an error leaves the model unchanged. Layers are replaced one after the
    other and free their floats; Ctrl-C waits until all are done (VGGT-1B on two cores: 5 s). A module with several
    names stays shared; hooks and attributes move to the INT8 layer. A layer is kept, with a warning and a reason in the
    plan, if an INT8 layer cannot replace it: subclasses, computed weights (weight_norm, pruning), weights that are
    shared with other modules (tied) or read by them (`nn.TransformerEncoderLayer`, `nn.MultiheadAttention`). Likewise,
    a layer is quantized without smoothing if nothing before it can absorb the factors.

    Returns the plan. Raises `TypeError` if `model` is not a module, `RecipeError` if the recipe does not fit the model
    or needs calibration (see `vggt_int8.quantize`), `BackendError` if the backend cannot run it, and `ValueError`,
    naming the layer, for weights with NaN or inf.
    """
    recipe = load_recipe(recipe)
    plan = plan_module(model, recipe, backend)
    apply_plan(model, plan, recipe, backend, plan_folds(model, plan, recipe))
    return plan


def plan_module(model: nn.Module, recipe: Recipe, backend: str = "auto") -> dict[str, LayerPlan]:
    """The plan for `model`, after every check that can fail; the model is not changed. Raises as `quantize_module`
    does.

    Emits one warning for the layers that the recipe quantizes but that must be kept.
    """
    check_model(model)
    if any(int8_layers(model)):
        raise RecipeError("the model is quantized already; load the floating-point checkpoint to use another recipe")
    plan = make_plan(model, recipe)
    for device_type in {device_type_of(model.get_submodule(name)) for name in plan} or {"cpu"}:
        check_backend(plan, recipe, backend, device_type)
    layers = [(layer, model.get_submodule(name)) for name, layer in plan.items() if layer.scheme]
    _for_each(lambda pair: _check_layer(*pair), layers, _on_cpu(module for _, module in layers))
    if kept := [layer for layer in plan.values() if layer.unable]:
        reasons = first_few(kept, spell=lambda layer: f"{layer.name} ({layer.reason})", between="; ")
        warnings.warn(f"recipe {recipe.name!r}: kept as they are: {reasons}", UserWarning, stacklevel=3)
    return plan


def plan_folds(model: nn.Module, plan: dict[str, LayerPlan], recipe: Recipe) -> Folds:
    """The factors that `recipe` folds into the layers of `model`, from its weights only; the model is not changed.

    Raises `RecipeError` as `find_seams` does, and for a recipe whose smoothing needs calibration images.
    """
    if not recipe.smoothing:
        return {}
    if recipe.smoothing != "weights":
        raise RecipeError(f"recipe {recipe.name!r} smooths by what inputs show: {HOW_TO_CALIBRATE}", "smoothing")
    return estimated_folds(find_seams(model, plan, recipe.name), parameters_of(model))


def apply_plan(
    model: nn.Module,
    plan: dict[str, LayerPlan],
    recipe: Recipe,
    backend: str = "auto",
    folds: Mapping[str, Fold] = NO_FOLDS,
    input_scales: Mapping[str, torch.Tensor] = NO_SCALES,
    codes: Mapping[str, torch.Tensor] = NO_CODES,
) -> None:
    """Replace the layers of a plan made by `plan_module`, one after the other, so that no second model exists.

    folds: as from `plan_folds`; applied while layers are encoded, and in place to other modules.
    input_scales: of every layer with static activations, by name, as in `Int8Linear`.
    codes: int8 [N, K], by name, for layers whose weights are not rounded to nearest.

    Raises `RecipeError`, changing nothing, if a scale is missing, or if all codes are for a recipe that rounds by
    inputs.

    Each layer's floats are freed as its INT8 layer takes its place. The largest layers come first, as many as are
    converted concurrently, and are replaced only when all of them exist: if memory suffices for them, it suffices for
    the rest, whose conversion frees more than it needs. Running out of memory therefore leaves the model unchanged.
    Signals are deferred until all is done.
    """
    _check_scales(plan, recipe, input_scales)
    if recipe.rounding != "nearest" and not codes:
        raise RecipeError(
            f"recipe {recipe.name!r} rounds weights by the inputs of their layers, which calibration shows: "
            f"{HOW_TO_CALIBRATE}"
        )
    jobs = _conversions(model, plan, recipe, backend, folds, input_scales, codes)
    becoming = {name for job in jobs for name in job.names}
    in_place = {name: fold for name, fold in folds.items() if name not in becoming}
    on_cpu = _on_cpu([model.get_submodule(job.names[0]) for job in jobs])
    first, rest = (jobs[: threads()], jobs[threads() :]) if on_cpu else (jobs[:1], jobs[1:])
    done: list[_Conversion] = []

    def convert(job: _Conversion) -> nn.Module:
        return job.new(model.get_submodule(job.names[0]))

    def replace(job: _Conversion, new: nn.Module) -> None:
        _replace(model, job.names, new)
        done.append(job)

    with uninterrupted():
        try:
            converted = _for_each(convert, first, on_cpu)
            fold_(model, in_place)
            for job, new in zip(first, converted, strict=True):
                replace(job, new)
            _for_each(lambda job: replace(job, convert(job)), rest, on_cpu)
        except BaseException as error:
            if done:
                error.add_note(f"{len(done)} of {len(jobs)} layers are INT8 now: load the model anew before it is used")
            raise
        model.register_load_state_dict_pre_hook(check_incoming)


def prepare_module(model: nn.Module, recipe: Recipe, backend: str = "auto") -> dict[str, LayerPlan]:
    """Replace the layers by uninitialized INT8 layers on the meta device, ready to be loaded. Returns the plan."""
    plan = make_plan(model, recipe)
    for job in _conversions(model, plan, recipe, backend):
        _replace(model, job.names, job.unfilled(model.get_submodule(job.names[0])))
    model.register_load_state_dict_pre_hook(check_incoming)
    return plan


class _Conversion(NamedTuple):
    """One layer to be quantized, under all its names. Holds no module, so that replaced modules are freed."""

    names: list[str]
    becomes: type[Int8Layer]
    scheme: Scheme
    choice: Choice
    size: int
    fold: Fold | None
    input_scale: torch.Tensor | None
    codes: torch.Tensor | None

    def new(self, layer: nn.Module) -> nn.Module:
        if self.fold is not None:
            assert isinstance(layer, nn.Linear)
            layer = folded_linear(layer, self.fold)
        made = self.becomes.of(layer, self.scheme, self.choice.backend, self.input_scale)
        if self.codes is not None:
            assert isinstance(made, Int8Storage)
            made.replace_codes(self.codes)
        return self._module(made)

    def unfilled(self, layer: nn.Module) -> nn.Module:
        return self._module(self.becomes.unfilled(layer, self.scheme, self.choice.backend))

    def _module(self, layer: Int8Layer) -> nn.Module:
        layer.ask(self.choice)
        assert isinstance(layer, nn.Module)
        return layer


def _conversions(
    model: nn.Module,
    plan: dict[str, LayerPlan],
    recipe: Recipe,
    backend: str,
    folds: Mapping[str, Fold] = NO_FOLDS,
    input_scales: Mapping[str, torch.Tensor] = NO_SCALES,
    codes: Mapping[str, torch.Tensor] = NO_CODES,
) -> list[_Conversion]:
    """The conversions of a plan, largest layers first."""
    found: dict[nn.Module, _Conversion] = {}
    for name, layer in plan.items():
        if layer.scheme is not None and layer.becomes is not None:
            module = model.get_submodule(name)
            size = sum(parameter.numel() for parameter in module.parameters(recurse=False))
            choice = layer_choice(layer.becomes, layer.scheme, recipe, backend)
            found_of = folds.get(name), input_scales.get(name), codes.get(name)
            job = _Conversion([], layer.becomes, layer.scheme, choice, size, *found_of)
            found.setdefault(module, job).names.append(name)
    return sorted(found.values(), key=lambda job: job.size, reverse=True)


def _replace(model: nn.Module, names: Sequence[str], new: nn.Module) -> None:
    """Put `new` in all places of one module; its hooks and attributes move to `new`."""
    carry_over(model.get_submodule(names[0]), new)
    for name in names:
        replace_module(model, name, new)


def _on_cpu(layers: Iterable[nn.Module]) -> bool:
    return all(parameter.device.type == "cpu" for layer in layers for parameter in layer.parameters())


def _for_each(work: Callable[[Item], Result], items: Sequence[Item], on_cpu: bool) -> list[Result]:
    """`work` of each item: concurrently on a CPU, else one by one on the current stream."""
    return map_in_threads(work, items) if on_cpu else [work(item) for item in items]


def layer_choice(kind: type[Int8Layer], scheme: Scheme, recipe: Recipe, backend: str) -> Choice:
    """The backend that an INT8 layer requests in a model with backend `backend`."""
    return kind.choose(scheme, backend, _beside_codes(scheme, recipe))


def _beside_codes(scheme: Scheme, recipe: Recipe) -> bool:
    """Whether a layer is weight-only in a recipe for INT8 activations."""
    return isinstance(scheme, Scheme) and scheme.activations == "none" and recipe.activations != "none"


def check_backend(plan: dict[str, LayerPlan], recipe: Recipe, backend: str, device_type: str) -> None:
    """Raise `BackendError` if `backend` cannot run the plan on "cpu" or "cuda", or runs none of its layers."""
    check_backend_name(backend)
    asked = False
    for kind, scheme in {(layer.becomes, layer.scheme) for layer in plan.values()}:
        if kind is not None and scheme is not None:
            choice = layer_choice(kind, scheme, recipe, backend)
            kind.check(scheme, choice.backend, device_type)
            asked = asked or choice.backend == backend or not _beside_codes(scheme, recipe)
    if backend != "auto" and not asked:
        raise BackendError(f"recipe {recipe.name!r} has no layer for backend {backend!r}: leave backend='auto'")


def device_type_of(model: nn.Module) -> str:
    """Device type of the first parameter that is not on the meta device; "cpu" if there is none."""
    types = (p.device.type for p in model.parameters() if p.device.type != "meta")
    return next(types, "cpu")


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` at the dotted path `name`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _check_scales(plan: dict[str, LayerPlan], recipe: Recipe, input_scales: Mapping[str, torch.Tensor]) -> None:
    static = (name for name, p in plan.items() if isinstance(p.scheme, Scheme) and p.scheme.activations == "static")
    if missing := [name for name in static if name not in input_scales]:
        raise RecipeError(
            f"recipe {recipe.name!r} needs static scales of {len(missing)} layers, such as {missing[0]!r}, which "
            f"calibration finds: {HOW_TO_CALIBRATE}"
        )


def _check_layer(plan: LayerPlan, layer: nn.Module) -> None:
    name, scheme = plan.name, plan.scheme
    if not name:
        raise RecipeError(
            f"the model is itself a {type(layer).__name__}, which cannot be replaced in place: put it into a module, "
            "such as nn.Sequential, or use Int8Linear.from_linear"
        )
    if any(parameter.is_meta for parameter in layer.parameters()):
        raise ValueError(
            f"{name}: its weight is on the meta device, without values: load or materialize the model's weights first"
        )
    try:
        if plan.becomes is not None:
            plan.becomes.unfilled(layer, scheme, "auto")
        for key, parameter in layer.named_parameters(recurse=False):
            values = parameter.detach()
            if key == "bias" and isinstance(layer, nn.Linear) and (added := added_bias(layer)) is not None:
                values = added.detach()
            if not all_finite(values):
                raise ValueError(f"the {key} holds NaN or inf")
            if key == "bias":
                to_fp16(values, key)
            elif parameter.dtype == torch.float64 and (largest := parameter.abs().max().item()) > _LARGEST_FP32:
                raise ValueError(f"the {key} holds {largest:g}, which an fp32 scale cannot hold")
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def stored_dtype(name: str, tensor: torch.Tensor) -> torch.dtype:
    """The dtype in which the checkpoint format stores a tensor: int8 codes, fp32 scales, fp16 for everything else."""
    if name.endswith((".weight_scale", ".input_scale")) or not tensor.is_floating_point():
        return tensor.dtype
    return torch.float16
