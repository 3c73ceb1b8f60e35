"""Fake-quantized layers for quantization-aware training: forward passes round exactly as inference will.

`fake_quantize` puts them into a float network where a plan wants INT8; `restore` replaces them by plain layers with the
trained parameters. In the forward pass, a linear with INT8 activations computes what its `Int8Linear` will: the same
codes and scales, from the same operators, multiplied as integers. In the backward pass, rounding counts as the identity
(straight-through), except that an input beyond a static scale gets no gradient, since its code is clamped; the gradient
of a static scale is the rounding error of its codes (Esser et al., "Learned Step Size Quantization", 2020).

torchao's own fake quantization does not fit: its symmetric scale is absmax / 127.5, so its codes differ from those of
our checkpoints, and per token it only runs asymmetric (0.18; a test reports when that changes).
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vggt_int8.kernels import ops
from vggt_int8.kernels.epilogue import Epilogue
from vggt_int8.kernels.reference import CODE_MAX, llm_int8_linear, quantize, rotate, scale_from_absmax
from vggt_int8.kernels.weight_only import dequantize
from vggt_int8.model.omega.constants import KeylessBiasLinear
from vggt_int8.quant.masked_bias import MASK, bias_mask, has_bias_mask, masked
from vggt_int8.quant.plan import LayerPlan
from vggt_int8.quant.quantize import replace_module
from vggt_int8.quant.soundness import SMALLEST_ABSMAX
from vggt_int8.recipe import RecipeError, Scheme

_WITHIN = 0.45  # largest distance, in steps, of a weight from its code: half a step, less a margin for training


def weight_codes(weight: Tensor, channel_axis: int = 0, rotation: int = 0) -> tuple[Tensor, Tensor]:
    """`storage.encode` without synchronizing with the device: the same codes and scales, but NaN becomes a NaN
    scale.
    """
    rows = rotate(weight, rotation) if rotation else weight.float()
    others = tuple(axis for axis in range(weight.ndim) if axis != channel_axis)
    absmax = rows.abs().amax(others, keepdim=True)
    scale = scale_from_absmax(torch.where(absmax < SMALLEST_ABSMAX, 0, absmax))
    return quantize(rows, scale), scale


def weight_for_codes(weight: Tensor, codes: Tensor, rotation: int = 0) -> Tensor:
    """The weight [N, K] closest to `weight` that `weight_codes` encodes as these codes, under the scales of `weight`.

    codes: int8 [N, K]. The largest weight of each row must have code 127 or -127, as from `gptq.round_by_inputs`.
    """
    rows = rotate(weight, rotation) if rotation else weight.float()
    scale = weight_codes(weight, rotation=rotation)[1]
    steps = (rows / scale).clamp(codes - _WITHIN, codes + _WITHIN).clamp_(-CODE_MAX, CODE_MAX)
    found = steps * scale
    return (rotate(found, rotation) if rotation else found).to(weight.dtype)  # a rotation undoes itself


class FakeInt8Linear(nn.Linear):
    """A linear layer with the products of an `Int8Linear` of the same weights: x [..., K] -> [..., N].

    weight, bias: fp32, the parameters of the layer that it stands in for.
    log_input_scale: for static activations, the natural logarithm of `input_scale`, so that one learning rate suits all
        layers; [1], or [2] if the scheme's special tokens, the first of each frame along axis -2, have their own scale.
    bias_mask: that of a `KeylessBiasLinear`, else None.

    Under autocast the result has autocast's dtype, while codes are computed from x in its own dtype.
    """

    log_input_scale: nn.Parameter | None
    bias_mask: Tensor | None

    def __init__(self, in_features: int, out_features: int, bias: bool, scheme: Scheme) -> None:
        super().__init__(in_features, out_features, bias, device="meta")
        self.scheme, self.rotation = scheme, scheme.rotation_of(in_features)
        self.log_input_scale = None
        self.register_buffer(MASK, None)

    @classmethod
    def of(cls, linear: nn.Linear, scheme: Scheme, input_scale: Tensor | None = None) -> Self:
        """With the parameters of `linear`. input_scale: as in `Int8Linear`, only for static activations."""
        self = cls(linear.in_features, linear.out_features, linear.bias is not None, scheme)
        self.weight, self.bias = linear.weight, linear.bias
        self.bias_mask = bias_mask(linear) if isinstance(linear, KeylessBiasLinear) else None
        if scheme.input_scales != (0 if input_scale is None else input_scale.numel()):
            raise ValueError(f"input_scale is {input_scale}, and {scheme.label} has {scheme.input_scales} of them")
        if input_scale is not None:
            self.log_input_scale = nn.Parameter(input_scale.detach().float().log().to(linear.weight.device))
        return self.train(linear.training)

    @property
    def input_scale(self) -> Tensor | None:
        """fp32, as it will be stored in the checkpoint."""
        return None if self.log_input_scale is None else self.log_input_scale.detach().exp()

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        rows = x.reshape(-1, self.in_features)
        row_scale = None
        if self.log_input_scale is not None:
            row_scale = scale_of_rows(self.log_input_scale.exp(), x.shape, self.scheme.special_tokens)
        way = _Way(self.rotation, self.scheme.outlier_threshold, dtype)
        bias = self.bias if self.bias_mask is None else masked(self.bias, self.bias_mask)
        y: Tensor = _Int8Product.apply(rows, self.weight, bias, row_scale, way)
        return y.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.scheme.label}"


def scale_of_rows(input_scale: Tensor, shape: torch.Size, special_tokens: int) -> Tensor:
    """The static scale [M, 1] of each row of an input [..., P, K]. input_scale: [1], or [2] for special tokens and
    others.
    """
    if not special_tokens:
        return input_scale.expand(shape[:-1].numel()).unsqueeze(1).contiguous()
    patches = torch.arange(shape[-2], device=input_scale.device) >= special_tokens
    return input_scale[patches.long()].expand(shape[:-1]).reshape(-1, 1)


class _Way(NamedTuple):
    rotation: int
    outlier_threshold: float
    dtype: torch.dtype  # of the result


class _Int8Product(torch.autograd.Function):
    """rows [M, K], weight [N, K], bias [N] or None, row_scale [M, 1] or None (dynamic) -> [M, N].

    Saves codes for the backward pass: exact in every dtype that multiplies them, at a quarter of the memory of floats.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, row_scale: Tensor | None, way: _Way
    ) -> Tensor:
        codes, scale = weight_codes(weight, rotation=way.rotation)
        bias = None if bias is None else bias.half()  # the stored dtype
        ctx.way, ctx.dtypes = way, (rows.dtype, weight.dtype)
        slope = None
        if way.outlier_threshold:
            y = llm_int8_linear(rows, codes, scale, bias, way.outlier_threshold, _product)
            x_codes, x_scale = _llm_int8_operand(rows, way.outlier_threshold)
        else:
            x_codes, x_scale = ops.quantize_rows(rows, row_scale, way.rotation)
            if row_scale is not None:
                slope = _slope_in_scale(rows, row_scale, x_codes, way.rotation)
            y = ops.int8_gemm(x_codes, x_scale, codes, scale, Epilogue(bias, way.dtype))
        ctx.save_for_backward(x_codes, x_scale, codes, scale, slope)
        return y if y.dtype == way.dtype else y.to(way.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_codes, x_scale, codes, scale, slope = ctx.saved_tensors
        rotation, (rows_dtype, weight_dtype) = ctx.way.rotation, ctx.dtypes
        wants_rows, wants_weight, wants_bias, wants_scale, _ = ctx.needs_input_grad
        grad_rows = grad_weight = grad_scale = None
        if wants_rows or wants_scale:
            grad_rows = (grad * scale.view(1, -1)).to(grad.dtype) @ codes.to(grad.dtype)
            if wants_scale:
                grad_scale = (grad_rows.float() * slope.float()).sum(1, keepdim=True)
            if slope is not None:
                grad_rows = grad_rows.masked_fill(slope.abs() > 0.5, 0)
            grad_rows = _turned(grad_rows, rotation).to(rows_dtype)
        if wants_weight:
            grad_weight = (grad * x_scale).to(grad.dtype).t() @ x_codes.to(grad.dtype)
            grad_weight = _turned(grad_weight, rotation).to(weight_dtype)
        grad_bias = grad.float().sum(0) if wants_bias else None
        return grad_rows, grad_weight, grad_bias, grad_scale, None


def _slope_in_scale(rows: Tensor, row_scale: Tensor, codes: Tensor, rotation: int) -> Tensor:
    """The derivative of codes * scale by a static scale: the rounding error within half a code, and beyond the range
    the code itself.
    """
    ratio = (rotate(rows, rotation) if rotation else rows.float()) / row_scale
    slope = codes - ratio
    return torch.where(slope.abs() <= 0.5, slope, codes).half()


def _llm_int8_operand(rows: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """What a weight is multiplied with under LLM.int8(): floats in outlier columns, rounded values elsewhere."""
    outlier = (rows.abs() >= threshold).any(dim=0)
    codes, scale = ops.quantize_rows(rows.masked_fill(outlier, 0), None, 0)
    return torch.where(outlier, rows.float(), codes * scale).to(rows.dtype), torch.ones_like(scale)


def _product(x_codes: Tensor, codes: Tensor) -> Tensor:
    """[M, K] x [N, K] -> [M, N] as floats: the integer product of the fast kernels, with scales of 1."""
    ones = torch.ones(len(x_codes), 1, device=codes.device), torch.ones(len(codes), 1, device=codes.device)
    return ops.int8_gemm(x_codes, ones[0], codes, ones[1], Epilogue(None, torch.float32))


def _turned(grad: Tensor, rotation: int) -> Tensor:
    """Apply a rotation, whose matrix is symmetric, to a gradient. A matrix product suffices, since no code depends on
    it.
    """
    if not rotation:
        return grad
    return (grad.unflatten(-1, (-1, rotation)) @ _hadamard(rotation, grad.device).to(grad.dtype)).flatten(-2)


@functools.cache
def _hadamard(order: int, device: torch.device) -> Tensor:
    return rotate(torch.eye(order, device=device), order)


class RoundedWeight(nn.Module):
    """A parametrization: float weight -> the floats that weight-only INT8 multiplies with; the gradient passes through.

    rotation: group size in which the weight's rows are rotated; the result is rotated back, which equals rotating the
        inputs instead, up to rounding.
    """

    def __init__(self, channel_axis: int, rotation: int) -> None:
        super().__init__()
        self.channel_axis, self.rotation = channel_axis, rotation

    def forward(self, weight: Tensor) -> Tensor:
        rounded: Tensor = _Rounded.apply(weight, self.channel_axis, self.rotation)
        return rounded


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, channel_axis: int, rotation: int) -> Tensor:
        rounded = dequantize(*weight_codes(weight, channel_axis, rotation), torch.float32)
        return _turned(rounded, rotation).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None


def fake_quantize(model: nn.Module, plan: Mapping[str, LayerPlan], scales: Mapping[str, Tensor] | None = None) -> None:
    """Make the layers of a plan compute as if they were INT8, in place; their parameters stay the same objects.

    scales: `input_scale` of every layer that the plan makes static, by name.

    Raises `RecipeError`, changing nothing, if the plan quantizes no layer or a scale is missing.
    """
    scales = scales or {}
    chosen = {name: layer for name, layer in plan.items() if layer.scheme is not None}
    if not chosen:
        raise RecipeError("the recipe quantizes no layer of this model, so there is nothing to train for")
    static = {name for name, p in chosen.items() if p.scheme is not None and p.scheme.input_scales}
    if missing := sorted(static - scales.keys()):
        raise RecipeError(f"{missing[0]} has no static scale, nor have {len(missing) - 1} others: calibrate them first")
    fakes: dict[nn.Module, nn.Module] = {}
    for name, layer in chosen.items():
        module = model.get_submodule(name)
        if module not in fakes:
            fakes[module] = _faked(module, layer.scheme, scales.get(name))
        replace_module(model, name, fakes[module])


def _faked(module: nn.Module, scheme: Scheme | None, input_scale: Tensor | None) -> nn.Module:
    if isinstance(module, nn.Linear) and scheme is not None and scheme.activations != "none":
        if has_bias_mask(module) and not isinstance(module, KeylessBiasLinear):
            raise RecipeError(f"a {type(module).__name__}, which masks its bias, cannot be trained under INT8 products")
        return FakeInt8Linear.of(module, scheme, input_scale if scheme.input_scales else None)
    axis = 1 if isinstance(module, nn.ConvTranspose2d) else 0
    rotation = scheme.rotation_of(module.in_features) if isinstance(module, nn.Linear) and scheme is not None else 0
    parametrize.register_parametrization(module, "weight", RoundedWeight(axis, rotation), unsafe=True)  # shapes stay
    return module


def fake_layers(model: nn.Module) -> Iterator[tuple[str, FakeInt8Linear]]:
    """The trainable linears with INT8 activations, by name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, FakeInt8Linear))


def restore(model: nn.Module) -> dict[str, Tensor]:
    """Undo `fake_quantize` in place: plain layers with the trained parameters. Returns the static scales by name."""
    scales: dict[str, Tensor] = {}
    for name, fake in list(fake_layers(model)):
        plain = _unfilled(fake)
        plain.weight, plain.bias = fake.weight, fake.bias
        replace_module(model, name, plain.train(fake.training))
        if fake.input_scale is not None:
            scales[name] = fake.input_scale
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
    return scales


def _unfilled(fake: FakeInt8Linear) -> nn.Linear:
    """The layer type that a fake layer stands in for, without parameters."""
    if fake.bias_mask is None:
        return nn.Linear(fake.in_features, fake.out_features, fake.bias is not None, device="meta")
    with torch.device("meta"):
        keyless = KeylessBiasLinear(fake.in_features, fake.out_features)
    keyless.bias_mask = fake.bias_mask
    return keyless
