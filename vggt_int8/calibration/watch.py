"""Runs a network on calibration images and passes every layer's input to its observers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType

import torch
from torch import Tensor, nn

from vggt_int8.calibration.observers import CalibrationError, Observer
from vggt_int8.quant.storage import rotated
from vggt_int8.recipe import Scheme

_AT_ONCE = 1 << 22  # values of an input that are fp32, and rotated, at once

Observers = dict[str, tuple[Observer, ...]]


@torch.no_grad()
def observe(
    model: nn.Module,
    inputs: Sequence[Tensor],
    schemes: Mapping[str, Scheme],
    make: Callable[[str], Callable[[], Observer]],
    *,
    divisors: Mapping[str, Tensor] = MappingProxyType({}),
    run: Callable[[Tensor], object] | None = None,
    on_call: Callable[[int, int], None] | None = None,
) -> Observers:
    """Name of each linear -> its observers: for special tokens and for all others if its scheme separates them, or one.

    inputs: one per call of `model`, in the order in which observers see them.
    schemes: of the layers to observe, by name; only rotation and special tokens matter.
    make: for a name, a factory of its observers.
    divisors: name -> [K], by which a layer's inputs are divided first: factors that will be folded before it.
    run: calls `model` with an input; by default `model(input)`.
    on_call: called with (calls done, all calls).

    The model runs in evaluation mode, and its state is restored afterwards. Raises `CalibrationError`, naming the
    layer, if there is no input, a layer was not called, or its input is not finite or all zeros.
    """
    if not inputs:
        raise CalibrationError("no image was given to calibrate with: pass at least one")
    observers = {
        name: tuple(make(name)() for _ in range(2 if scheme.special_tokens else 1)) for name, scheme in schemes.items()
    }
    passes = max((observer.passes for own in observers.values() for observer in own), default=1)
    done = 0
    with _watched(model, schemes, observers, divisors), _evaluating(model):
        for number in range(passes):
            for own in observers.values():
                for observer in own:
                    observer.start(number)
            for given in inputs:
                (run or model)(given)
                done += 1
                if on_call is not None:
                    on_call(done, passes * len(inputs))
            if number == 0:
                for name, own in observers.items():
                    _check(name, own)
    return observers


def _check(name: str, observers: tuple[Observer, ...]) -> None:
    for kind, observer in zip(("special ", "patch ") if len(observers) == 2 else ("",), observers, strict=True):
        if observer.rows == 0:
            what = f"showed it no {kind}token" if kind else "never reached it"
            raise CalibrationError(
                f"{name}: the calibration images {what}, so there is no range: keep the layer, or choose activations = "
                "'dynamic' for it"
            )
        if observer.absmax == 0:
            raise CalibrationError(
                f"{name}: its {kind}inputs were nothing but zeros, so there is no range: calibrate with other images, "
                "or keep the layer"
            )


@contextmanager
def _watched(
    model: nn.Module, schemes: Mapping[str, Scheme], observers: Observers, divisors: Mapping[str, Tensor]
) -> Iterator[None]:
    """While the block runs, observers see the inputs of their layers."""

    def hook_of(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            try:
                _show(args[0].detach(), schemes[name], observers[name], divisors.get(name))
            except CalibrationError as error:
                raise CalibrationError(f"{name}: {error}") from error

        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(hook_of(name)) for name in schemes]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _show(x: Tensor, scheme: Scheme, observers: tuple[Observer, ...], divisor: Tensor | None) -> None:
    """x [..., P, K], special tokens first along P; divisor [K]."""
    x = x if x.ndim > 1 else x[None]
    rotation = scheme.rotation_of(x.shape[-1])
    kinds = (x,) if len(observers) == 1 else (x[..., : scheme.special_tokens, :], x[..., scheme.special_tokens :, :])
    for tokens, observer in zip(kinds, observers, strict=True):
        if not tokens.numel():
            continue
        for rows in tokens.reshape(-1, x.shape[-1]).split(max(1, _AT_ONCE // x.shape[-1])):
            given = rows.float() if divisor is None else rows.float() / divisor.to(rows.device, torch.float32)
            observer.add(rotated(given, rotation))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
