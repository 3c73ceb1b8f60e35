"""Weight-only INT8 convolutions. They run alike under every backend: decode the weight, then convolve in floating
point.
"""

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggt_int8.kernels.weight_only import dequantize
from vggt_int8.quant.backends import resolve
from vggt_int8.quant.layer import Choice
from vggt_int8.quant.storage import NO_FLOATS, Int8Storage, encode, to_fp16
from vggt_int8.recipe import Scheme


class _Int8Conv(Int8Storage):
    """Base of both convolutions: the stored tensors, and the geometry of the float layer they replace."""

    padding: str | tuple[int, ...]
    code_axes = 4
    scheme = Scheme("none")

    def __init__(
        self, conv: nn.Conv2d | nn.ConvTranspose2d, device: torch.device | str | None = None, backend: str = "auto"
    ) -> None:
        """Copy the geometry of `conv` and allocate uninitialized tensors; use `from_conv` to quantize."""
        super().__init__()
        self.backend = backend
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size, self.stride, self.padding = conv.kernel_size, conv.stride, conv.padding
        self.padding_mode = conv.padding_mode
        self.output_padding, self.dilation, self.groups = conv.output_padding, conv.dilation, conv.groups
        scale_shape = [1] * conv.weight.ndim
        scale_shape[self.channel_axis] = conv.weight.shape[self.channel_axis]
        self._allocate(tuple(conv.weight.shape), tuple(scale_shape), False, device)
        if conv.bias is not None:
            self.bias = self._parameter(torch.empty(conv.bias.shape, dtype=torch.float16, device=device))

    @classmethod
    def from_conv(cls, conv: nn.Conv2d | nn.ConvTranspose2d) -> Self:
        """Quantize a convolution, which is not changed. Raises `ValueError` for NaN or inf in its weight."""
        return cls.of(conv, cls.scheme, "auto")

    @classmethod
    def of(
        cls,
        layer: nn.Conv2d | nn.ConvTranspose2d,
        scheme: Scheme,
        backend: str,
        input_scale: Tensor | None = None,
    ) -> Self:
        self = cls.unfilled(layer, scheme, backend)
        self._fill(layer)
        return self

    @classmethod
    def unfilled(cls, layer: nn.Conv2d | nn.ConvTranspose2d, scheme: Scheme, backend: str) -> Self:
        return cls(layer, "meta", backend)

    @classmethod
    def narrowed(cls, scheme: Scheme) -> Scheme:
        return cls.scheme

    @classmethod
    def choose(cls, scheme: Scheme, backend: str, beside_codes: bool) -> Choice:
        return Choice("reference" if beside_codes else backend)

    @classmethod
    def check(cls, scheme: Scheme, backend: str, device_type: str) -> None:
        resolve(backend, scheme, device_type)

    def runs_on(self, device_type: str) -> str:
        return "reference"

    def reason(self, device_type: str) -> str:
        return "convolutions run alike under every backend"

    def _fill(self, conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
        self._store(*encode(conv.weight.detach(), self.channel_axis))
        if conv.bias is not None:
            self.bias = self._parameter(to_fp16(conv.bias.detach(), "bias"))
        self.train(conv.training)

    def _floats(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if not x.is_floating_point():
            raise TypeError(NO_FLOATS.format(dtype=x.dtype, layer=self))
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return dequantize(self.codes, self.weight_scale, x.dtype), bias

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"


class Int8Conv2d(_Int8Conv):
    """`nn.Conv2d` with int8 weights, one fp32 scale per output channel: `weight_scale` [O, 1, 1, 1]."""

    def kernel(self, device_type: str) -> str:
        return "dequantize + conv2d"

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self._floats(x)
        if self.padding_mode != "zeros":
            padded = F.pad(x, self._pad_widths(), mode=self.padding_mode)
            return F.conv2d(padded, weight, bias, self.stride, 0, self.dilation, self.groups)
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def _pad_widths(self) -> list[int]:
        """Left, right, top, bottom, as `F.pad` takes them."""
        if isinstance(self.padding, str):  # "same", or "valid", which is none
            both = [
                d * (k - 1) * (self.padding == "same") for d, k in zip(self.dilation, self.kernel_size, strict=True)
            ]
            return [width for total in reversed(both) for width in (total // 2, total - total // 2)]
        return [width for width in reversed(self.padding) for _ in range(2)]


class Int8ConvTranspose2d(_Int8Conv):
    """`nn.ConvTranspose2d` with int8 weights, one fp32 scale per output channel: `weight_scale` [1, O, 1, 1]."""

    channel_axis = 1
    padding: tuple[int, ...]

    def kernel(self, device_type: str) -> str:
        return "dequantize + conv_transpose2d"

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """`nn.ConvTranspose2d.forward`. output_size: [H, W] of the result, to choose among the sizes that the stride
        allows.
        """
        weight, bias = self._floats(x)
        padding = self.output_padding if output_size is None else self._output_padding(x, output_size)
        return F.conv_transpose2d(x, weight, bias, self.stride, self.padding, padding, self.groups, self.dilation)

    def _output_padding(self, x: Tensor, output_size: Sequence[int]) -> tuple[int, ...]:
        sides = tuple(output_size)[-2:]
        smallest = [
            (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1
            for size, stride, padding, dilation, kernel in zip(
                x.shape[-2:], self.stride, self.padding, self.dilation, self.kernel_size, strict=True
            )
        ]
        largest = [low + max(pair) - 1 for low, *pair in zip(smallest, self.stride, self.dilation, strict=True)]
        if not all(low <= side <= high for low, side, high in zip(smallest, sides, largest, strict=True)):
            raise ValueError(f"output_size {list(output_size)} must lie between {smallest} and {largest}")
        return tuple(side - low for low, side in zip(smallest, sides, strict=True))
