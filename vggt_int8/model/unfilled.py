"""Builds networks on the meta device, for weights that come from elsewhere.

Even on the meta device PyTorch calls the random initializers of every layer, which takes two thirds of the build time.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from vggt_int8.model.network_config import NetworkConfig

Config = TypeVar("Config", bound=NetworkConfig)
Kind = TypeVar("Kind", bound=nn.Module)

_DRAW = {"kaiming_uniform_", "uniform_", "normal_"}  # of `torch.nn.init`, and of tensors


class NoInitialWeights(TorchFunctionMode):
    """A context in which random initializers skip tensors on the meta device, in this thread."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", None) in _DRAW:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


def unfilled(kind: Callable[[Config], Kind], config: Config) -> Kind:
    """A network on the meta device, whose weights have no values until they are loaded or assigned.

    Raises what `kind` raises for an invalid config.
    """
    with torch.device("meta"), NoInitialWeights():
        return kind(config)
