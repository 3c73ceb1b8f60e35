"""Whether the fused network may stand in for the plain one: nothing about a model may be passed over in silence.

The fused network reads the modules' tensors and does not call the modules. So hooks would not fire, modules of other
types and methods put on a module would not be called, offloaded weights would not be there, and a captured graph would
go on reading tensors that were replaced. Each call asks, in about a millisecond, whether anything of that has changed.
"""

import functools
from collections.abc import Iterable
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from vggt_int8.quant.attention import Int8Attention
from vggt_int8.quant.backends import PORTABLE
from vggt_int8.quant.linear import Int8Linear


class Watch:
    """What a model consists of: its modules, parameters, their memory, and the backends of its INT8 layers."""

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        self._tables: list[dict[str, Any]] = [t for m in modules for t in (m._modules, m._parameters)]
        self._members = self._current_members()
        self.parameters = list(model.parameters())
        self._addresses = [p.data_ptr() for p in self.parameters]
        self._int8 = [m for m in modules if isinstance(m, Int8Linear)]
        self._choosing = [m for m in modules if isinstance(m, Int8Linear | Int8Attention)]
        self._backends = [m.backend for m in self._choosing]
        self.int8_attention = any(isinstance(m, Int8Attention) for m in modules)
        submodules = modules[1:]
        self._hooks = [h for m in submodules for h in (m._forward_hooks, m._forward_pre_hooks)]
        self._names = [name for name, _ in model.named_modules()][1:]
        self._attributes = [vars(m) for m in submodules]
        foreign = ((name, type(m)) for name, m in zip(self._names, submodules, strict=True) if not _known(type(m)))
        self._foreign = next((f"{name} is a {kind.__module__}.{kind.__qualname__}" for name, kind in foreign), None)
        self.offloaded = [name for name, m in zip(self._names, submodules, strict=True) if "_hf_hook" in m.__dict__]

    def unchanged(self) -> bool:
        """Whether the model still consists of the same modules and the same memory."""
        members = self._current_members()
        return (
            len(members) == len(self._members)
            and all(map(is_, members, self._members))
            and self.same_memory()
            and [m.backend for m in self._choosing] == self._backends
        )

    def same_memory(self) -> bool:
        """Whether the parameters that were found still lie where they lay: what a captured graph reads exists."""
        return list(map(Tensor.data_ptr, self.parameters)) == self._addresses

    def hooked(self) -> str | None:
        """Name of a submodule with a forward hook, "every module" for global hooks, None if there are none."""
        if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
            return "every module"
        if not any(self._hooks):
            return None
        return self._names[next(i for i, hooks in enumerate(self._hooks) if hooks) // 2]

    @property
    def quantized(self) -> bool:
        """Whether the model has INT8 linears."""
        return bool(self._int8)

    @functools.cached_property
    def native(self) -> bool:
        """Whether the model has INT8 linears and all of them run on our own kernels, or on any backend."""
        names = {layer.resolved_backend(layer.weight.device.type).name for layer in self._int8}
        return "native" in names and names <= {"native", PORTABLE}

    def unsupported(self) -> str | None:
        """Why the fused network cannot stand in for a module of the model; None if it can for all."""
        if self._foreign is not None:
            return f"{self._foreign}, which it does not know"
        patched = next((i for i, attributes in enumerate(self._attributes) if "forward" in attributes), None)
        if patched is not None:
            return f"{self._names[patched]} has a forward method of its own"
        threshold = next((m.scheme.outlier_threshold for m in self._int8 if m.scheme.outlier_threshold), None)
        return None if threshold is None else f"outlier columns (threshold {threshold}) are not implemented"

    def needs_grad(self, inputs: Iterable[Tensor | None]) -> bool:
        if not torch.is_grad_enabled():
            return False
        return any(t.requires_grad for t in chain(self.parameters, inputs) if t is not None)

    @functools.cached_property
    def devices(self) -> set[torch.device]:
        return {p.device for p in self.parameters}

    def _current_members(self) -> list[object]:
        return list(chain.from_iterable(map(dict.values, self._tables)))


def _known(kind: type) -> bool:
    return kind.__module__.startswith(("torch.nn.", "vggt_int8."))
