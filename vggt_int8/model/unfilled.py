"""Networks whose weights come from elsewhere, built on the meta device.

PyTorch draws the random weights that every layer begins with there, too, where there is nothing to draw: two thirds of
the time that building takes.
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
    """A `with` block in which nothing is drawn for tensors on the meta device, in this thread."""

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
    """A network on the meta device, none of whose weights hold a value until they are loaded or assigned.

    Raises what `kind` raises for a config that does not fit.
    """
    with torch.device("meta"), NoInitialWeights():
        return kind(config)
