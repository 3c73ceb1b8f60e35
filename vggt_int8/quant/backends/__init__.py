"""Backends: different ways to compute one stored INT8 linear.

A backend is a view over the plain tensors of an `Int8Linear`; it converts scale conventions at its own edge and
stores nothing. `reference` is the definition. Each library has one file here, its only importer, which is loaded
when the backend is first used.
"""

import functools
import importlib
from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor

from vggt_int8.quiet import quiet_import
from vggt_int8.recipe import Scheme

BACKENDS = ("native", "torchao", "bitsandbytes", "reference")
# Why a library that calls `torch._int_mm` unchecked cannot be used on some CPUs.
SATURATES = "its integer product saturates on this CPU, which has no VNNI instructions"

# What "auto" tries, fastest first. On CUDA by measurement (`benchmarks/README.md`): the native kernels need Triton
# and compute capability 8.0; bitsandbytes' INT8 GEMM is fused with its scales, torchao's eager path makes several
# passes over the int32 result.
_PREFERENCE = {
    ("cpu", "none"): ("native",),
    ("cpu", "dynamic"): ("native",),
    ("cpu", "static"): ("native",),
    ("cpu", "llm_int8"): ("bitsandbytes", "reference"),
    ("cuda", "none"): ("native", "torchao", "reference"),
    ("cuda", "dynamic"): ("native", "bitsandbytes", "torchao", "reference"),
    ("cuda", "static"): ("native", "torchao", "reference"),
    ("cuda", "llm_int8"): ("bitsandbytes", "reference"),
}


class BackendError(RuntimeError):
    """A backend that does not exist, is not installed, or cannot run a layer. The message names the way out."""


class QuantizedLinear(Protocol):
    """The tensors a backend sees: see `Int8Linear`."""

    in_features: int
    out_features: int
    scheme: Scheme
    weight_scale: Tensor
    bias: Tensor | None
    rotation: int

    @property
    def codes(self) -> Tensor: ...


class Backend(ABC):
    """One way to compute an `Int8Linear`."""

    name: str
    rotates = False  # whether it rotates inputs itself, for layers that want that; else they arrive rotated

    @abstractmethod
    def unsupported(self, scheme: Scheme, device_type: str) -> str | None:
        """Why this backend cannot run the scheme on "cpu" or "cuda"; None if it can."""

    @abstractmethod
    def kernel(self, layer: QuantizedLinear, device_type: str) -> str:
        """What multiplies this layer, in words, for the report."""

    @abstractmethod
    def linear(self, x: Tensor, layer: QuantizedLinear, input_scale: Tensor | None) -> Tensor:
        """x [M, K] float, M >= 1 -> [M, N] in x's dtype.

        input_scale: fp32, None unless activations are static: of all rows, [1], or of each, [M, 1].
        """


def check_backend_name(name: str) -> None:
    """Raise `BackendError` unless `name` is "auto" or one of `BACKENDS`."""
    if name not in ("auto", *BACKENDS):
        raise BackendError(f"there is no backend {name!r}; choose 'auto' or one of {', '.join(BACKENDS)}")


@functools.cache
def get_backend(name: str) -> Backend:
    """The backend of that name. Raises `BackendError` if the library behind it cannot be imported."""
    check_backend_name(name)
    try:
        with quiet_import():
            module = importlib.import_module(f"{__name__}.{name}_backend")
    except ImportError as error:
        raise BackendError(f"backend {name!r} cannot be used here: {error}. Choose another backend.") from error
    return module.BACKEND


@functools.cache
def resolve(requested: str, scheme: Scheme, device_type: str) -> Backend:
    """The backend that runs `scheme` on "cpu" or "cuda".

    "auto" takes the first of the measured order that works on this machine. A named backend that cannot run the
    scheme raises `BackendError`; it is never replaced by another.
    """
    if requested != "auto":
        backend = get_backend(requested)
        if reason := backend.unsupported(scheme, device_type):
            raise BackendError(
                f"backend {requested!r} cannot run {scheme.label} on {device_type}: {reason}. "
                "Choose backend='auto' or another one."
            )
        return backend
    key = (device_type, "llm_int8" if scheme.outlier_threshold else scheme.activations)
    if key not in _PREFERENCE:
        raise BackendError(f"INT8 layers run on 'cpu' and 'cuda', not on {device_type!r}: move the input there")
    reasons = []
    for name in _PREFERENCE[key]:
        try:
            return resolve(name, scheme, device_type)
        except BackendError as error:
            reasons.append(str(error))
    raise BackendError("; ".join(reasons))


def lacking(name: str, scheme: Scheme) -> str | None:
    """Why a backend has nothing for a scheme on any device; None if it has on one."""
    reasons = [get_backend(name).unsupported(scheme, device_type) for device_type in ("cpu", "cuda")]
    return reasons[0] if all(reasons) else None


class _Loaded:
    """Backends by name, as attributes: torch.compile looks one up when it comes to it, unlike the items of a dict."""


def backend_in_call(requested: str, scheme: Scheme, device_type: str) -> Backend:
    """`resolve` for a layer's `forward`, of which compilers and exporters make a graph.

    torch.compile and torch.export choose and import while they trace, once, and the graph holds the result. A file for
    ONNX knows none of the libraries' operators, so it gets the definition, in ONNX's own operators.
    """
    if exports_onnx():
        requested = "reference"
    if torch.compiler.is_compiling():
        # In plain values: before torch 2.12 the compiler cannot hand a dataclass on.
        name = _load(requested, scheme.activations, scheme.outlier_threshold, scheme.rotation, device_type)
        backend: Backend = getattr(_Loaded, name)
        return backend
    return resolve(requested, scheme, device_type)


def exports_onnx() -> bool:
    """Whether `torch.onnx.export`, either of its two kinds, is looking on."""
    watched = torch.jit.is_tracing() or torch.compiler.is_exporting()
    return watched and torch.onnx.is_in_onnx_export()


@torch.compiler.assume_constant_result
def _load(requested: str, activations: str, outlier_threshold: float, rotation: int, device_type: str) -> str:
    """The name of the backend, which is an attribute of `_Loaded` from then on."""
    backend = resolve(requested, Scheme(activations, outlier_threshold, rotation), device_type)
    setattr(_Loaded, backend.name, backend)
    return backend.name


def auto_reason(scheme: Scheme, device_type: str) -> str:
    """Why "auto" resolves as it does on this machine, for the report."""
    key = (device_type, "llm_int8" if scheme.outlier_threshold else scheme.activations)
    chosen = resolve("auto", scheme, device_type).name
    skipped = _PREFERENCE[key][: _PREFERENCE[key].index(chosen)]
    return f"auto: {chosen}" + (f" ({', '.join(skipped)} cannot run here)" if skipped else "")
