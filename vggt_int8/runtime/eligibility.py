"""Whether the fused network may stand in for the plain one, without changing what the model does.

The fused network reads the modules' tensors and does not call the modules. Hooks would not fire, modules of other types
and overridden methods would not be called, offloaded weights would be missing, and a captured graph would keep reading
replaced tensors. Every call checks for this, which takes about a millisecond.
"""

from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules import module as torch_module

from vggt_int8.kernels.checks import FLOATS
from vggt_int8.model.call import Call
from vggt_int8.model.network import Network
from vggt_int8.quant.layer import int8_layers
from vggt_int8.quant.linear import Int8Linear
from vggt_int8.runtime.linear import takes_codes


class Eligibility:
    """A snapshot of a model (modules, parameters and their addresses, backends of its INT8 layers), and what in it
    rules out the fused network. Valid as long as it is `unchanged`.
    """

    def __init__(self, model: Network) -> None:
        modules = list(model.modules())
        self._tables: list[dict[str, Any]] = [t for m in modules for t in (m._modules, m._parameters)]
        self._members = self._current_members()
        self._parameters = list(model.parameters())
        self._addresses = [p.data_ptr() for p in self._parameters]
        self._int8 = [m for m in modules if isinstance(m, Int8Linear)]
        self._choosing = [layer for _, layer in int8_layers(model)]
        self._backends = [m.backend for m in self._choosing]
        submodules = modules[1:]
        self._hooks = [h for m in submodules for h in (m._forward_hooks, m._forward_pre_hooks)]
        self._names = [name for name, _ in model.named_modules()][1:]
        self._attributes = [vars(m) for m in submodules]
        foreign = ((name, type(m)) for name, m in zip(self._names, submodules, strict=True) if not _known(type(m)))
        self._foreign = next((f"{name} is a {kind.__module__}.{kind.__qualname__}" for name, kind in foreign), None)
        self._offloaded = [name for name, m in zip(self._names, submodules, strict=True) if "_hf_hook" in m.__dict__]
        self._token = model.aggregator.camera_token
        self._devices = {p.device for p in self._parameters}
        blocks = tuple(f"{part}." for part in model.special_tokens)
        int8 = ((name, m) for name, m in zip(self._names, submodules, strict=True) if isinstance(m, Int8Linear))
        self._special_elsewhere = [n for n, m in int8 if m.special_tokens and not n.startswith(blocks)]
        self._unasked: dict[str, str | None] = {}  # by kind of device

    @staticmethod
    def ruled_out(model: Network, call: Call) -> str | None:
        """Why a call cannot run fused, whatever the model contains; None if the model decides."""
        device_type = call.images.device.type
        if model.training:
            return "the model is in training mode: call model.eval()"
        if torch.jit.is_tracing():
            return "a tracer records the network's own modules"
        if device_type not in ("cpu", "cuda"):
            return f"its kernels run on CPUs and CUDA GPUs, not on {device_type}"
        if torch.is_autocast_enabled(device_type):
            return "autocast is on: load the model in the dtype wanted instead"
        return None

    def why_not(self, call: Call, unasked: bool) -> str | None:
        """Why a call that is not ruled out must run on the network's own modules; None if it can run fused.

        unasked: include reasons that apply only when the fused network was not explicitly requested.
        """
        if self._needs_grad(call):
            return "gradients are needed: use torch.no_grad() or model.requires_grad_(False)"
        if (reason := self.unsupported()) is not None:
            return reason
        if len(self._devices | {call.images.device}) > 1:
            return f"weights and images lie on several devices: {', '.join(sorted(map(str, self._devices)))}"
        if (hooked := self._hooked()) is not None:
            return f"{hooked} has a forward hook"
        return self.unasked(call.images.device.type) if unasked else None

    def unsupported(self) -> str | None:
        """Why the fused network cannot run any call of this model; None if it can."""
        if self._token.dtype not in FLOATS:
            return f"its kernels compute in fp16, bf16 and fp32, not in {self._token.dtype}"
        if self._offloaded:
            return f"accelerate moves weights of {self._offloaded[0]} and others as they are needed"
        if self._foreign is not None:
            return f"{self._foreign}, which it does not know"
        patched = next((i for i, attributes in enumerate(self._attributes) if "forward" in attributes), None)
        if patched is not None:
            return f"{self._names[patched]} has a forward method of its own"
        if self._special_elsewhere:
            return f"{self._special_elsewhere[0]} has a static scale for special tokens, which only blocks know"
        threshold = next((m.scheme.outlier_threshold for m in self._int8 if m.scheme.outlier_threshold), None)
        return None if threshold is None else f"outlier columns (threshold {threshold}) are not implemented"

    def unasked(self, device_type: str) -> str | None:
        """Why a call on "cpu" or "cuda" does not run fused by default; None if the INT8 linears use our own kernels
        there. Weight-only ones may use the reference backend, which gives the same result.
        """
        if device_type not in self._unasked:
            names = {layer.resolved_backend(device_type).name for layer in self._int8}
            of_codes = {layer.resolved_backend(device_type).name for layer in self._int8 if takes_codes(layer)}
            known = names <= {"native", "reference"} and of_codes <= {"native"}
            reason = "the INT8 layers do not run on the native backend" if names else "the model has no INT8 linears"
            self._unasked[device_type] = None if known and "native" in names else reason
        return self._unasked[device_type]

    def unchanged(self) -> bool:
        """Whether the model still consists of the same modules, tensors and backends."""
        members = self._current_members()
        return (
            len(members) == len(self._members)
            and all(map(is_, members, self._members))
            and self.same_memory()
            and [m.backend for m in self._choosing] == self._backends
        )

    def same_memory(self) -> bool:
        """Whether the parameters still have the addresses that a captured graph reads."""
        return list(map(Tensor.data_ptr, self._parameters)) == self._addresses

    def _hooked(self) -> str | None:
        """Name of a submodule with a forward hook, "every module" for global hooks, None if there are none."""
        if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
            return "every module"
        if not any(self._hooks):
            return None
        return self._names[next(i for i, hooks in enumerate(self._hooks) if hooks) // 2]

    def _needs_grad(self, call: Call) -> bool:
        if not torch.is_grad_enabled():
            return False
        return any(t.requires_grad for t in chain(self._parameters, (call.images, call.query_points)) if t is not None)

    def _current_members(self) -> list[object]:
        return list(chain.from_iterable(map(dict.values, self._tables)))


def _known(kind: type) -> bool:
    return kind.__module__.startswith(("torch.nn.", "vggt_int8."))
