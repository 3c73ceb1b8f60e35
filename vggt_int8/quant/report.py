"""Reports what every layer of a model is and what runs it, and how large a model is."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import nn

from vggt_int8.global_attention import GlobalAttention
from vggt_int8.quant.layer import Int8Layer
from vggt_int8.quant.plan import LayerPlan
from vggt_int8.quant.quantize import device_type_of


@runtime_checkable
class RunsFused(Protocol):
    """A model whose calls may use other kernels for its layers than the layers do as modules."""

    def fused_kernels(self, device_type: str) -> Mapping[str, str]:
        """Name of each layer -> description of its kernel in a fused call on "cpu" or "cuda"; layers that run as
        modules are left out.
        """

    def attention_kernels(self) -> tuple[str, ...]:
        """The attention kernels in the global blocks of the last call, as text; empty before the first call."""


@dataclass(frozen=True)
class LayerReport:
    """One module that owns parameters.

    scheme: "W8A8 dynamic", "W8A16", "LLM.int8()", ... or the dtype of a layer that is kept.
    backend: what computes it when the module is called ("pytorch" for kept layers).
    kernel: the kernel in a call of the model, which for a `VGGTInt8` may be fused (`runtime_report()` tells whether the
        last call was).
    bytes: size of its own parameters in memory.
    reason: why it is kept, or why this backend.
    """

    name: str
    type: str
    scheme: str
    backend: str
    kernel: str
    bytes: int
    reason: str


@dataclass(frozen=True)
class QuantizationReport:
    """Iterable over `LayerReport` rows in module order; prints as a summary.

    global_attention: the model's default global attention; None for a foreign module.
    attention_kernels: the kernels of global attention in the last call; the choice depends on the call's length.
    """

    rows: tuple[LayerReport, ...]
    global_attention: str | None = None
    attention_kernels: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[LayerReport]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def summary(self) -> str:
        """One line per kind of layer: how many, how large, which kernel."""
        count: Counter[tuple[str, str, str]] = Counter()
        size: Counter[tuple[str, str, str]] = Counter()
        for row in self.rows:
            key = (row.scheme, row.backend, row.kernel)
            count[key] += 1
            size[key] += row.bytes
        lines = [
            f"{_layers(number)}  {size[key] / 1e6:9.2f} MB  {key[0]:13s} {key[1]:13s} {key[2]}"
            for key, number in count.items()
        ]
        lines.append(f"{_layers(len(self.rows))}  {sum(size.values()) / 1e6:9.2f} MB  in all")
        lines += [f"global attention: {self.global_attention}"] * (self.global_attention is not None)
        lines += [f"attention of the last call: {', '.join(self.attention_kernels)}"] * bool(self.attention_kernels)
        return "\n".join(lines)

    __str__ = summary


def _layers(number: int) -> str:
    return f"{number:5d} {'layer ' if number == 1 else 'layers'}"


def quantization_report(
    model: nn.Module, plan: dict[str, LayerPlan] | None = None, device_type: str | None = None
) -> QuantizationReport:
    """Report every module of `model` that owns parameters.

    plan: the result of `quantize_module`, for the reasons of kept layers; by default the plan that `quantize` stored on
        the model.
    device_type: "cuda" or "cpu", the device to report for; by default the model's.
    """
    device_type = device_type or device_type_of(model)
    plan = plan or getattr(model, "quantization_plan", None) or {}
    fused = model.fused_kernels(device_type) if isinstance(model, RunsFused) else {}
    rows = []
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if own:
            size = sum(p.numel() * p.element_size() for p in own)
            rows.append(_row(name, module, own, size, plan, device_type, fused.get(name)))
    attention = getattr(model, "default_attention", None)
    looks = str(attention) if isinstance(attention, GlobalAttention) else None
    attended = model.attention_kernels() if isinstance(model, RunsFused) else ()
    return QuantizationReport(tuple(rows), looks, attended)


def _row(
    name: str,
    module: nn.Module,
    own: list[nn.Parameter],
    size: int,
    plan: dict[str, LayerPlan],
    device_type: str,
    fused: str | None,
) -> LayerReport:
    kind = type(module).__name__
    if isinstance(module, Int8Layer):
        return _int8_row(name, kind, module, size, device_type, fused)
    dtypes = "/".join(sorted({str(p.dtype).removeprefix("torch.") for p in own}))
    reason = plan[name].reason if name in plan else f"{kind} is not quantized"
    return LayerReport(name, kind, dtypes, "pytorch", kind, size, reason)


def _int8_row(name: str, kind: str, layer: Int8Layer, size: int, device_type: str, fused: str | None) -> LayerReport:
    kernel = fused or layer.kernel(device_type)
    return LayerReport(
        name, kind, layer.scheme.label, layer.runs_on(device_type), kernel, size, layer.reason(device_type)
    )


def estimate_model_size(model: nn.Module) -> dict[str, float]:
    """Size of a model's tensors in MB (1e6 bytes); each tensor is counted once.

    Returns `{"total_mb", "params_mb", "buffers_mb"}` and one `"<dtype>_mb"` per dtype, such as `"int8_mb"`. Uses only
    shapes and dtypes, so it also works on the meta device. Raises `TypeError` if `model` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"estimate_model_size() takes a torch.nn.Module, not a {type(model).__name__}")
    seen: set[int] = set()
    sizes = {"params_mb": 0.0, "buffers_mb": 0.0}
    dtypes: Counter[str] = Counter()
    for key, tensors in (("params_mb", model.parameters()), ("buffers_mb", model.buffers())):
        for tensor in tensors:
            if id(tensor) not in seen:
                seen.add(id(tensor))
                megabytes = tensor.numel() * tensor.element_size() / 1e6
                sizes[key] += megabytes
                dtypes[f"{str(tensor.dtype).removeprefix('torch.')}_mb"] += megabytes  # type: ignore[assignment]
    return {"total_mb": sum(sizes.values()), **sizes, **dtypes}
