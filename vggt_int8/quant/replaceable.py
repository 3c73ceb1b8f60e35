"""Whether an INT8 layer can replace a layer, and what is carried over to it.

An INT8 layer does what a plain `nn.Linear`, `nn.Conv2d` or `nn.ConvTranspose2d` with its own weight does, or a linear
with a masked bias (`masked_bias`). A layer that does more, or whose weight others use, is kept, with a reason.
"""

import functools
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vggt_int8.quant.layer_types import WITH_WEIGHTS
from vggt_int8.quant.masked_bias import MASK, has_bias_mask, mask_problem
from vggt_int8.quant.readers import weight_readers
from vggt_int8.recipe import RecipeError

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
# Hooks see inputs, outputs and gradients, which an INT8 layer has, too.
_CALL_HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook"),
)


def every_name(
    model: nn.Module, prefix: str = "", above: tuple[nn.Module, ...] = ()
) -> Iterator[tuple[str, nn.Module]]:
    """Like `model.named_modules()`, but a module with several names is yielded once for each."""
    yield prefix, model
    for name, child in model._modules.items():
        if child is not None and child not in above:
            yield from every_name(child, f"{prefix}.{name}" if prefix else name, (*above, model))


def check_model(model: nn.Module) -> None:
    """Raise unless `model` is a module whose layers can be replaced: `TypeError`, or `RecipeError` for a wrapper."""
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise TypeError(f"quantize() takes a torch.nn.Module, not {what}")
    for name, module in model.named_modules():
        where = f"{name}, a {type(module).__name__}," if name else f"the model, a {type(module).__name__},"
        if any(base.__module__.startswith("torch.distributed.fsdp") for base in type(module).__mro__):
            raise RecipeError(f"{where} holds shards of its weights: quantize the model first, then wrap it")
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise RecipeError(f"{where} knows its parameters one by one: quantize the model first, then wrap it")
        if isinstance(module, torch.jit.ScriptModule) and not name:
            raise RecipeError(f"{where} is compiled already: quantize the module that it was made from")


class Keeping:
    """Tells for each layer of a model why it must be kept."""

    def __init__(self, model: nn.Module) -> None:
        self._readers = weight_readers(model)
        self._owners = tensor_owners(model)

    def reason(self, layer: nn.Module) -> str:
        """Why an INT8 layer cannot replace `layer`; empty if it can."""
        kind = type(layer).__name__
        if layer in self._readers:
            return f"{kind}: {self._readers[layer]} reads its weight itself"
        masks_bias = has_bias_mask(layer)
        if type(layer) not in WITH_WEIGHTS and not masks_bias:
            return f"{kind} is more than a {next(base.__name__ for base in WITH_WEIGHTS if isinstance(layer, base))}"
        if own := [k for k, value in vars(layer).items() if callable(value) and hasattr(type(layer), k)]:
            return f"it has its own {own[0]} in place of that of {kind}"
        weight = layer._parameters.get("weight")
        if weight is None:
            return "its weight is computed at each call (by weight_norm, pruning or the like): make it permanent first"
        if hooks := [key for key in _STATE_HOOKS if getattr(layer, key)]:
            return f"its {hooks[0].strip('_')} expect floats"
        buffers = layer._buffers.keys() - ({MASK} if masks_bias else set())
        if more := [*(layer._parameters.keys() - {"weight", "bias"}), *buffers, *layer._modules]:
            return f"it holds {more[0]!r} as well"
        reason = self._reason_of_weight(layer, weight)
        return mask_problem(layer) if masks_bias and not reason else reason  # type: ignore[arg-type]  # a Linear

    def _reason_of_weight(self, layer: nn.Module, weight: Tensor) -> str:
        if type(weight) not in (nn.Parameter, Tensor):
            return f"its weight is a {type(weight).__name__}"
        if weight.layout != torch.strided:
            return f"its weight is {weight.layout}"
        if weight.dtype not in _FLOATS:
            return f"its weight is {weight.dtype}"
        if weight.numel() == 0:
            return f"its weight {list(weight.shape)} is empty"
        if any(self._owners[tensor_address(p)] > 1 for p in layer._parameters.values() if p is not None):
            return "its weight or bias is also another module's (tied)"
        return ""


def carry_over(old: nn.Module, new: nn.Module) -> nn.Module:
    """Move hooks, whose handles keep working, and custom attributes from `old` to `new`. Returns `new`."""
    for key in _CALL_HOOKS:
        setattr(new, key, getattr(old, key))
    for key in vars(old).keys() - _attributes():
        setattr(new, key, vars(old)[key])
    return new


@functools.cache
def _attributes() -> frozenset[str]:
    """The attributes that a layer has initially."""
    layers = (nn.Linear(1, 1, device="meta"), nn.Conv2d(1, 1, 1, device="meta"))
    return frozenset(key for layer in layers for key in vars(layer))


def has_call_hooks(module: nn.Module) -> bool:
    """Whether the module has hooks that see its inputs, outputs or gradients."""
    return any(getattr(module, key) for key in _CALL_HOOKS)


def tensor_owners(model: nn.Module) -> Counter[object]:
    """Number of modules that hold a parameter, by its `tensor_address`."""
    parameters = (tensor for module in model.modules() for tensor in module._parameters.values())
    return Counter(tensor_address(tensor) for tensor in parameters if tensor is not None)


def tensor_address(tensor: Tensor) -> object:
    """A key that is equal for two parameters that are identical or share their storage's start."""
    plain = type(tensor) in (nn.Parameter, Tensor) and tensor.layout == torch.strided and not tensor.is_meta
    return (tensor.device, tensor.data_ptr()) if plain and tensor.numel() else id(tensor)
