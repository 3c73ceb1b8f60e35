"""GPTQ on calibration inputs: which layers it rounds, and how its matrices stay within a memory bound.

A layer's Gram matrix has K^2 values; those of VGGT-1B take 14 GB together. If necessary, the images pass through the
network several times, each time for as many layers as fit into `AT_ONCE`. All layers see the inputs of the
floating-point network.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor, nn

from vggt_int8.calibration.observers import Observer
from vggt_int8.calibration.scales import caller, first_names
from vggt_int8.calibration.watch import observe
from vggt_int8.model.vggt import VGGT
from vggt_int8.quant.gptq import round_by_inputs
from vggt_int8.quant.plan import LayerPlan
from vggt_int8.quant.smoothing import Fold
from vggt_int8.quant.storage import encode, rotated
from vggt_int8.recipe import Scheme

AT_ONCE = 2 << 30  # bytes of Gram matrices; a layer that needs more has its own pass


class Gram(Observer):
    """The sum of x^T x over all rows. matrix: [K, K] fp64."""

    matrix: Tensor

    def _see(self, x: Tensor) -> None:
        floats = x.double()
        product = floats.t() @ floats
        self.matrix = product if self.rows == len(x) else self.matrix.add_(product)

    def range(self) -> float:
        return self.absmax


def rounded_layers(model: nn.Module, plan: Mapping[str, LayerPlan]) -> dict[str, Scheme]:
    """The linears of a plan that GPTQ rounds, by name, each module once: those that calibration images reach.

    The track head of a VGGT runs with query points, which calibration images do not have, so it is rounded to nearest.
    """
    schemes = {}
    for name in first_names(model, {name: layer.scheme for name, layer in plan.items() if layer.scheme is not None}):
        scheme, untouched = plan[name].scheme, isinstance(model, VGGT) and name.startswith("track_head.")
        if scheme is not None and isinstance(model.get_submodule(name), nn.Linear) and not untouched:
            schemes[name] = replace(scheme, special_tokens=0)  # one matrix for tokens of all kinds
    return schemes


def round_weights(
    model: nn.Module,
    plan: Mapping[str, LayerPlan],
    inputs: Sequence[Tensor],
    *,
    folds: Mapping[str, Fold] = MappingProxyType({}),
    on_call: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """Name of each of the `rounded_layers` -> codes of its weight, int8 [N, K], under the scales of
    `quant.storage.encode`. The model, in floating point, is not changed.

    inputs: from `inputs_for`.
    folds: factors that will be folded into the layers before they are encoded.
    on_call: as in `observe`.

    Raises `CalibrationError` as `observe` does.
    """
    schemes = rounded_layers(model, plan)
    parts = list(_parts(model, schemes))
    run = caller(model, schemes)
    divisors = {name: fold.columns for name, fold in folds.items() if fold.columns is not None}
    codes: dict[str, Tensor] = {}
    for number, part in enumerate(parts):

        def show(done: int, calls: int, before: int = number) -> None:
            if on_call is not None:
                on_call(before * calls + done, len(parts) * calls)

        found = observe(model, inputs, part, lambda _: Gram, divisors=divisors, run=run, on_call=show)
        for name, scheme in part.items():
            (gram,) = found.pop(name)
            assert isinstance(gram, Gram)
            codes[name] = _codes(model.get_submodule(name), scheme, folds.get(name), gram.matrix)
    return codes


def _parts(model: nn.Module, schemes: Mapping[str, Scheme]) -> Iterator[dict[str, Scheme]]:
    """The layers in groups whose Gram matrices take at most `AT_ONCE` bytes."""
    part: dict[str, Scheme] = {}
    size = 0
    for name, scheme in schemes.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        own = 8 * layer.in_features**2
        if part and size + own > AT_ONCE:
            yield part
            part, size = {}, 0
        part[name] = scheme
        size += own
    if part:
        yield part


@torch.no_grad()
def _codes(layer: nn.Module, scheme: Scheme, fold: Fold | None, gram: Tensor) -> Tensor:
    assert isinstance(layer, nn.Linear)
    weight = layer.weight.detach() if fold is None else fold.apply("weight", layer.weight)
    rotation = scheme.rotation_of(layer.in_features)
    _, scale = encode(weight, 0, rotation)
    return round_by_inputs(rotated(weight, rotation), scale, gram)
