"""Backends: different ways to compute a stored INT8 linear.

A backend is a view over the plain tensors of an `Int8Linear`: it converts scale conventions internally and stores
nothing. `reference` is the definition. Each library is imported by exactly one file here, when the backend is first
used.
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
# Why a library that calls `torch._int_mm` without checks cannot be used on some CPUs.
SATURATES = "its integer product saturates on this CPU, which has no VNNI instructions"

# The order in which "auto" tries backends, fastest first. On CUDA it is measured (`benchmarks/README.md`): the native
# kernels need Triton and compute capability 8.0; bitsandbytes fuses its INT8 GEMM with the scales, while torchao's
# eager path makes several passes over the int32 result.
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
    """A backend that does not exist, is not installed, or cannot run a layer. The message says what to do."""


class QuantizedLinear(Protocol):
    """The tensors of an `Int8Linear` that a backend reads."""

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
    rotates = False  # whether `linear` rotates inputs itself; else they arrive rotated

    @abstractmethod
    def unsupported(self, scheme: Scheme, device_type: str) -> str | None:
        """Why this backend cannot run the scheme on "cpu" or "cuda"; None if it can."""

    @abstractmethod
    def kernel(self, layer: QuantizedLinear, device_type: str) -> str:
        """Description of the kernel that runs this layer, for the report."""

    @abstractmethod
    def linear(self, x: Tensor, layer: QuantizedLinear, input_scale: Tensor | None) -> Tensor:
        """x [M, K] float, M >= 1 -> [M, N] in x's dtype.

        input_scale: fp32, only for static activations: [1] for all rows, or [M, 1]; else None.
        """


def check_backend_name(name: str) -> None:
    """Raise `BackendError` unless `name` is "auto" or one of `BACKENDS`."""
    if name not in ("auto", *BACKENDS):
        raise BackendError(f"there is no backend {name!r}; choose 'auto' or one of {', '.join(BACKENDS)}")


@functools.cache
def get_backend(name: str) -> Backend:
    """The backend of that name. Raises `BackendError` if its library cannot be imported."""
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

    "auto" takes the first of the measured order that works on this machine. A named backend that cannot run the scheme
    raises `BackendError`; it is never replaced by another.
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
    """Why a backend supports a scheme on no device; None if it supports it on one."""
    reasons = [get_backend(name).unsupported(scheme, device_type) for device_type in ("cpu", "cuda")]
    return reasons[0] if all(reasons) else None


class _Loaded:
    """Backends by name, as attributes: unlike items of a dict, torch.compile resolves them when it reaches them."""


def backend_in_call(requested: str, scheme: Scheme, device_type: str) -> Backend:
    """`resolve` for use in a layer's `forward`, which compilers and exporters trace.

    torch.compile and torch.export resolve and import once, while tracing, and the graph keeps the result. An ONNX file
    does not have the libraries' operators, so it gets the reference backend, in ONNX's own operators.
    """
    if exports_onnx():
        requested = "reference"
    if torch.compiler.is_compiling():
        # As plain values: before torch 2.12 the compiler cannot pass a dataclass.
        name = _load(requested, scheme.activations, scheme.outlier_threshold, scheme.rotation, device_type)
        backend: Backend = getattr(_Loaded, name)
        return backend
    return resolve(requested, scheme, device_type)


def exports_onnx() -> bool:
    """Whether this runs inside `torch.onnx.export`, in either of its modes."""
    watched = torch.jit.is_tracing() or torch.compiler.is_exporting()
    return watched and torch.onnx.is_in_onnx_export()


@torch.compiler.assume_constant_result
def _load(requested: str, activations: str, outlier_threshold: float, rotation: int, device_type: str) -> str:
    """Make the backend an attribute of `_Loaded` and return its name."""
    backend = resolve(requested, Scheme(activations, outlier_threshold, rotation), device_type)
    setattr(_Loaded, backend.name, backend)
    return backend.name


def auto_reason(scheme: Scheme, device_type: str) -> str:
    """Why "auto" resolves as it does on this machine, for the report."""
    key = (device_type, "llm_int8" if scheme.outlier_threshold else scheme.activations)
    chosen = resolve("auto", scheme, device_type).name
    skipped = _PREFERENCE[key][: _PREFERENCE[key].index(chosen)]
    return f"auto: {chosen}" + (f" ({', '.join(skipped)} cannot run here)" if skipped else "")
