"""`Int8Linear`: an `nn.Linear` stored as plain INT8 tensors and computed by an exchangeable backend."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from vggt_int8.kernels.reference import rotate, rotate_rows
from vggt_int8.kernels.weight_only import dequantize
from vggt_int8.quant.backends import Backend, auto_reason, backend_in_call, lacking, resolve
from vggt_int8.quant.layer import Choice
from vggt_int8.quant.masked_bias import added_bias
from vggt_int8.quant.storage import NO_FLOATS, Int8Storage, encode, to_fp16
from vggt_int8.recipe import Scheme

_POSITIVE = {1: "it must be a positive number", 2: "it must be two positive numbers: of special tokens, and of others"}


class Int8Linear(Int8Storage):
    """INT8 linear layer: `y = x W^T + b` for x [..., K] of any float dtype -> [..., N] in x's dtype.

    State: `weight` int8 [1, N, K] (`codes` is its [N, K] view), `weight_scale` fp32 [N, 1], `bias` fp16 [N] or None,
    and `input_scale` fp32 for static activations: [1], or [2] if `special_tokens` is not 0. The first `special_tokens`
    rows along x's second-to-last axis (a frame's camera and register tokens) then use the first scale, all others the
    second. These dtypes do not change under `.half()`, `.to(dtype)` and the like; the dtype of the computation is that
    of x, where float64 is computed in fp32.

    If `rotation`, a group size, is not 0, the codes are those of a weight with rotated rows, and inputs are rotated as
    well (`kernels.reference.rotate`), which changes nothing in exact arithmetic.

    `backend` is a name or "auto", resolved for the device of x at each call. Gradients reach x as if through the float
    layer with the same weights (straight-through); the layer itself is not trainable. Raises ValueError for a wrong K
    and TypeError if x is not floating point, as when a module casts it to the dtype of this layer's weight.
    """

    code_axes = 2
    scheme: Scheme
    input_scale: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        scheme: Scheme,
        backend: str = "auto",
        device: torch.device | str | None = None,
    ) -> None:
        """Allocate uninitialized tensors; use `from_linear` to quantize a layer."""
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.scheme, self.backend = scheme, backend
        self.rotation = scheme.rotation_of(in_features)
        self._allocate((out_features, in_features), (out_features, 1), bias, device)
        self.special_tokens = scheme.special_tokens
        static = torch.empty(scheme.input_scales, dtype=torch.float32, device=device)
        self.input_scale = self._parameter(static) if scheme.input_scales else None

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        activations: str = "dynamic",
        backend: str = "reference",
        *,
        input_scale: Tensor | Sequence[float] | float | None = None,
        outlier_threshold: float = 0.0,
        rotation: int = 0,
        special_tokens: int = 0,
    ) -> Self:
        """Quantize a linear layer, which is not changed.

        activations: "dynamic", "none" (weight-only) or "static".
        input_scale: for "static", the scale (absmax / 127) of the layer's (rotated) input: one positive number, or with
            `special_tokens` two, for these tokens and for all others.
        outlier_threshold, rotation, special_tokens: as in `Scheme`.

        Raises `ValueError` for NaN or inf in the layer, and if `input_scale` and `activations` do not match.
        """
        scheme = Scheme(activations, outlier_threshold, rotation, special_tokens)
        self = cls.unfilled(linear, scheme, backend)
        self._store(*encode(linear.weight.detach(), channel_axis=0, rotation=self.rotation))
        if (bias := added_bias(linear)) is not None:
            self.bias = self._parameter(to_fp16(bias.detach(), "bias"))
        if (activations == "static") != (input_scale is not None):
            raise ValueError(
                f"activations {activations!r} with input_scale {input_scale}: static needs one, others none"
            )
        if input_scale is not None:
            value = torch.as_tensor(input_scale, dtype=torch.float32, device=self.weight.device).reshape(-1)
            if len(value) != scheme.input_scales or not bool((value.isfinite() & (value > 0)).all()):
                raise ValueError(f"input_scale is {value.tolist()}; {_POSITIVE[scheme.input_scales]}")
            self.input_scale = self._parameter(value)
        return self.train(linear.training)

    @classmethod
    def of(cls, layer: nn.Linear, scheme: Scheme, backend: str, input_scale: Tensor | None = None) -> Self:
        return cls.from_linear(
            layer,
            scheme.activations,
            backend,
            outlier_threshold=scheme.outlier_threshold,
            rotation=scheme.rotation,
            special_tokens=scheme.special_tokens,
            input_scale=input_scale,
        )

    @classmethod
    def unfilled(cls, layer: nn.Linear, scheme: Scheme, backend: str) -> Self:
        bias = layer.bias is not None
        return cls(layer.in_features, layer.out_features, bias, scheme=scheme, backend=backend, device="meta")

    @classmethod
    def choose(cls, scheme: Scheme, backend: str, beside_codes: bool) -> Choice:
        return weight_only_choice(backend) if beside_codes else Choice(backend)

    @classmethod
    def check(cls, scheme: Scheme, backend: str, device_type: str) -> None:
        resolve(backend, scheme, device_type)

    def runs_on(self, device_type: str) -> str:
        return self.resolved_backend(device_type).name

    def reason(self, device_type: str) -> str:
        return auto_reason(self.scheme, device_type) if self.backend == "auto" else super().reason(device_type)

    def resolved_backend(self, device_type: str) -> Backend:
        """The backend that runs this layer on "cuda" or "cpu". Raises `BackendError` if none can."""
        return resolve(self.backend, self.scheme, device_type)

    def kernel(self, device_type: str) -> str:
        """Description of the kernel on that device, for the report."""
        return self.resolved_backend(device_type).kernel(self, device_type)

    def forward(self, x: Tensor) -> Tensor:
        device_type = x.device.type
        if not x.is_floating_point():
            raise TypeError(NO_FLOATS.format(dtype=x.dtype, layer=self))
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(f"x {list(x.shape)} must end in {self.in_features}, the inputs of {self}")
        if torch.is_autocast_enabled(device_type):
            # Like nn.Linear, in autocast's dtype; but operations inside that are written in fp32 stay in fp32.
            with torch.autocast(device_type, enabled=False):
                return self.forward(x.to(torch.get_autocast_dtype(device_type)))
        if x.dtype == torch.float64:  # not supported by the kernels; computed in fp32 on all backends
            return self.forward(x.float()).double()
        rows = x.reshape(-1, self.in_features)
        if rows.shape[0] == 0:
            return x.new_empty(*x.shape[:-1], self.out_features)
        backend = backend_in_call(self.backend, self.scheme, device_type)
        scale = self.row_scales(x.shape[-2] if x.ndim > 1 else 1, rows.shape[0])
        if not (rows.requires_grad and torch.is_grad_enabled()):
            y = self._product(backend, rows, scale)
        else:
            with torch.no_grad():
                y = self._product(backend, rows, scale)
            y = _StraightThrough.apply(rows, y, self.codes, self.weight_scale, self.rotation)
        return y.view(*x.shape[:-1], self.out_features)

    def row_scales(self, tokens: int, rows: int) -> Tensor | None:
        """The static scale of each row: [M, 1] if special tokens have their own, else [1]; None without static scales.

        tokens: per frame, P.
        rows: M, a multiple of P, frame by frame.
        """
        if self.input_scale is None or not self.special_tokens:
            return self.input_scale
        special = torch.arange(tokens, device=self.input_scale.device) < self.special_tokens
        of_frame = torch.where(special, self.input_scale[0], self.input_scale[1])
        return of_frame.repeat(rows // tokens).unsqueeze(1)

    def _product(self, backend: Backend, rows: Tensor, input_scale: Tensor | None) -> Tensor:
        if self.rotation and not backend.rotates:
            turned = rotate if self.scheme.activations != "none" else rotate_rows
            return backend.linear(turned(rows, self.rotation), self, input_scale).to(rows.dtype)
        return backend.linear(rows, self, input_scale)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.scheme.label}, backend={self.backend}"


def weight_only_choice(backend: str) -> Choice:
    """The backend that a weight-only linear requests beside layers with INT8 activations on `backend`."""
    lacks = None if backend == "auto" else lacking(backend, Scheme("none"))
    return Choice("reference", f"{backend}: {lacks}") if lacks else Choice(backend)


class _StraightThrough(torch.autograd.Function):
    """Connects y, the product of any backend, to x in autograd; rounding counts as the identity.

    y is computed beforehand: compiled by torch 2.11, a function whose forward ends in a cast to the dtype that it
    already has, as the products do, gets gradients of zero.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, codes: Tensor, scale: Tensor, rotation: int) -> Tensor:
        ctx.save_for_backward(codes, scale)
        ctx.rotation = rotation
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        codes, scale = ctx.saved_tensors
        grad = grad @ dequantize(codes, scale, grad.dtype)
        if ctx.rotation:  # which is its own inverse
            grad = rotate(grad, ctx.rotation).to(grad.dtype)
        return grad, None, None, None, None
