"""From a plan and images to static scales, and to the facts about them that a checkpoint stores."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from vggt_int8.calibration import images as chosen_images
from vggt_int8.calibration.observers import CalibrationError, Observer, PerChannel, observer_for
from vggt_int8.calibration.watch import observe
from vggt_int8.kernels.reference import scale_from_absmax
from vggt_int8.model.network import Network
from vggt_int8.plain_data import shown
from vggt_int8.quant.plan import LayerPlan
from vggt_int8.quant.seams import find_seams
from vggt_int8.quant.smoothing import Fold, Folds, add_seam, column_sizes, estimated_folds, factors, parameters_of
from vggt_int8.recipe import Recipe, Scheme


@dataclass(frozen=True)
class Calibration:
    """The result of a calibration.

    scales: of each static layer, [2] (special tokens, others) or [1] fp32, as `Int8Linear.input_scale`.
    facts: plain data for `config.json`: observer, seed, number of images and calls, sha256 of the images' pixels, the
        ranges of each layer (127 times its scales), and the strength of smoothing before each layer.
    codes: of each linear whose weight is not rounded to nearest, int8 [N, K].
    """

    scales: dict[str, Tensor]
    facts: dict[str, Any]
    codes: dict[str, Tensor] = field(default_factory=dict)


def facts_problem(facts: Any) -> str | None:
    """What is wrong with `Calibration.facts` read from a file; None if nothing. Unknown entries are ignored."""
    if not isinstance(facts, dict):
        return f"it is {shown(facts)}"
    kinds = {"observer": str, "seed": int, "images": int, "calls": int, "sha256": list, "ranges": dict}
    for key, kind in kinds.items():
        if type(facts.get(key)) is not kind:
            return f"its {key} is {shown(facts.get(key))}"
    if not all(isinstance(digest, str) for digest in facts["sha256"]):
        return "its sha256 is no list of texts"
    for name, ranges in facts["ranges"].items():
        numbers = isinstance(ranges, list) and all(isinstance(r, int | float) and 0 < r < inf for r in ranges)
        if not numbers or len(ranges) not in (1, 2):
            return f"its range of {shown(name)} is {shown(ranges)}"
    strengths = facts.get("smoothing", {})
    if not isinstance(strengths, dict) or not all(
        isinstance(s, int | float) and 0 <= s <= 1 for s in strengths.values()
    ):
        return f"its smoothing is {shown(strengths)}"
    return None


def static_layers(plan: Mapping[str, LayerPlan]) -> dict[str, Scheme]:
    """The layers of a plan that need a calibrated scale, by name."""
    schemes = {name: layer.scheme for name, layer in plan.items() if isinstance(layer.scheme, Scheme)}
    return {name: scheme for name, scheme in schemes.items() if scheme.activations == "static"}


def calibrate(
    model: nn.Module,
    plan: Mapping[str, LayerPlan],
    recipe: Recipe,
    inputs: Sequence[Tensor],
    *,
    folds: Mapping[str, Fold] = MappingProxyType({}),
    strengths: Mapping[str, float] = MappingProxyType({}),
    seed: int = 0,
    on_call: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Find the scales of a plan's static layers; the model, in floating point, is not changed.

    inputs: from `inputs_for`.
    folds: factors that will be folded into the layers before they are encoded.
    strengths, seed: of smoothing, and of the choice of inputs, for the facts.

    Raises `CalibrationError`.
    """
    schemes = static_layers(plan)
    once = first_names(model, schemes)  # a module under several names is watched once
    divisors = {name: fold.columns for name, fold in folds.items() if fold.columns is not None}

    def maker(name: str) -> Callable[[], Observer]:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        weight = layer.weight.detach()
        fold = folds.get(name, Fold())
        rotation = schemes[name].rotation_of(layer.in_features)
        return observer_for(recipe.observer, lambda: fold.apply("weight", weight), rotation)

    watched = {name: schemes[name] for name in once}
    run = caller(model, once)
    found = observe(model, inputs, watched, maker, divisors=divisors, run=run, on_call=on_call) if once else {}
    ranges = {name: [observer.range() for observer in found[first]] for name, first in _all_names(once).items()}
    is_ours = isinstance(model, Network)
    facts = {
        "observer": recipe.observer,
        "seed": seed,
        "images": sum(len(given) for given in inputs) if is_ours else len(inputs),
        "calls": len(inputs),
        "sha256": [chosen_images.content_hash(i) for given in inputs for i in (given if is_ours else [given])],
        "ranges": ranges,
        **({"smoothing": dict(strengths)} if strengths else {}),
    }
    return Calibration({name: scale_from_absmax(torch.tensor(own)) for name, own in ranges.items()}, facts)


def inputs_for(model: nn.Module, images: Any, samples: int, seed: int = 0) -> list[Tensor]:
    """The inputs of the calibration calls of `model`, in order: at most `samples` of `images`.

    images: as in `images.find_scenes`, whose errors are raised; for a module that is not a network of this package,
        tensors, one per call.
    seed: determines the choice if there are more.
    """
    if not isinstance(model, Network):
        return chosen_images.choose_inputs(images, samples, seed)
    scenes = chosen_images.find_scenes(images)
    inputs = [chosen_images.read(chosen, model) for chosen in chosen_images.choose(scenes, samples, seed)]
    chosen_images.check_contents(inputs)
    return inputs


def channel_folds(
    model: nn.Module,
    plan: Mapping[str, LayerPlan],
    recipe: Recipe,
    inputs: Sequence[Tensor],
    on_call: Callable[[int, int], None] | None = None,
) -> Folds:
    """For the observer `per_channel`: factors that give every channel of a static layer's input the same range, where
    they can be folded into the module that writes it (`quant/seams.py`: not before fc2). Other layers get the factors
    of the recipe's smoothing.
    """
    static, tensor_of = static_layers(plan), parameters_of(model)
    seams = find_seams(model, plan, recipe.name)
    folds = estimated_folds([s for s in seams if s.reader not in static], tensor_of) if recipe.smoothing else {}
    seams = [seam for seam in seams if seam.reader in static]
    watched = {seam.reader: Scheme("static") for seam in seams}
    found = observe(model, inputs, watched, lambda name: PerChannel, run=caller(model, watched), on_call=on_call)
    for seam in seams:
        (observer,) = found[seam.reader]
        assert isinstance(observer, PerChannel)
        assert observer.channels is not None
        columns = column_sizes(tensor_of(f"{seam.reader}.weight"))
        add_seam(folds, seam, factors(observer.channels, columns, strength=1.0), tensor_of)
    return folds


def caller(model: nn.Module, names: Collection[str]) -> Callable[[Tensor], object]:
    """A function that calls the model with an input, moved to its device. For this package's networks it only runs the
    heads that have one of these layers, or a cheap one.
    """
    place = next((p.device for p in model.parameters()), torch.device("cpu"))
    heads = {"heads": _heads(model, names)} if isinstance(model, Network) else {}
    return lambda given: model(given.to(place), **heads)


def first_names(model: nn.Module, schemes: Collection[str]) -> dict[str, list[str]]:
    """First name of each module -> all its names."""
    names: dict[nn.Module, list[str]] = {}
    for name in schemes:
        names.setdefault(model.get_submodule(name), []).append(name)
    return {own[0]: own for own in names.values()}


def _all_names(once: Mapping[str, list[str]]) -> dict[str, str]:
    return {name: first for first, own in once.items() for name in own}


def _heads(model: Network, names: Collection[str]) -> tuple[str, ...]:
    """The heads that must run so that these layers are called; a cheap one if there are none."""
    present = model.present_heads
    asked = [head for head in present if any(name.startswith(f"{model.head_modules[head]}.") for name in names)]
    if "track" in asked:
        raise CalibrationError(
            "the track head runs with query points alone, which calibration images do not have: choose "
            "track_head = 'dynamic' (or 'weight_only' or 'keep') in the recipe's groups"
        )
    return tuple(asked or present[:1])
