"""Dense prediction heads: tokens of four layers -> one feature map -> depth or points with confidence.

Source of the architecture: Ranftl et al., "Vision Transformers for Dense Prediction" (2021). Module names (`projects`,
`scratch.refinenet1`, …) are those of the public checkpoint.
"""

from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggt_int8.model.config import VGGTConfig
from vggt_int8.model.resize import resize
from vggt_int8.model.tables import uv_table

UV_WEIGHT = 0.1  # of the position embedding that is added to feature maps
OUTPUT_CHANNELS = 32  # before the last 1x1 convolution
MAX_ELEMENTS = 2**31 - 1  # of one feature map tensor: upsampling kernels count with 32-bit integers


def conv3x3(in_channels: int, out_channels: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=bias)


def add_uv_embedding(x: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Add a position embedding to a map [F, C, h, w]: x in the first half of the channels, y in the second.

    The axes keep the image's aspect ratio; the corners of the image lie on the unit circle.
    """
    height, width = image_size
    channels, (rows, columns) = x.shape[1], x.shape[2:]
    diagonal = (width**2 + height**2) ** 0.5
    u = uv_table(columns, width / diagonal, channels // 2, device=x.device)[:, None, :].expand(-1, rows, -1)
    v = uv_table(rows, height / diagonal, channels // 2, device=x.device)[:, :, None].expand(-1, -1, columns)
    return x + UV_WEIGHT * torch.cat([u.to(x.dtype), v.to(x.dtype)])


class PlainResidualUnit(nn.Module):
    """Two convolutions with a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, channels)
        self.conv2 = conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(F.relu(x))

    def branch(self, x: Tensor) -> Tensor:
        """x: the input after its ReLU."""
        return self.conv2(F.relu(self.conv1(x)))


class ResidualUnit(PlainResidualUnit):
    """The unit of VGGT, whose shortcut carries the input after its ReLU, as the checkpoint was trained."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        return x + self.branch(x)


class FusionBlock(nn.Module):
    """Adds the next finer map, if there is one, refines the sum, and resizes it to `size`."""

    def __init__(self, channels: int, unit: type[PlainResidualUnit] = ResidualUnit, *, has_finer: bool = True) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(channels, channels, kernel_size=1)
        if has_finer:
            self.resConfUnit1 = unit(channels)
        self.resConfUnit2 = unit(channels)

    def forward(self, x: Tensor, size: tuple[int, int], finer: Tensor | None = None) -> Tensor:
        if finer is not None:
            x = x + self.resConfUnit1(finer)
        # A 1x1 convolution and a resize commute; this order is four times cheaper.
        return resize(self.out_conv(self.resConfUnit2(x)), size)


class Fusion(nn.Module):
    """Fuses four maps of `in_channels`, from coarse to fine, into one of `channels` at the finest map's size."""

    def __init__(self, in_channels: list[int], channels: int, unit: type[PlainResidualUnit]) -> None:
        super().__init__()
        self.layer1_rn = conv3x3(in_channels[0], channels, bias=False)
        self.layer2_rn = conv3x3(in_channels[1], channels, bias=False)
        self.layer3_rn = conv3x3(in_channels[2], channels, bias=False)
        self.layer4_rn = conv3x3(in_channels[3], channels, bias=False)
        self.refinenet1 = FusionBlock(channels, unit)
        self.refinenet2 = FusionBlock(channels, unit)
        self.refinenet3 = FusionBlock(channels, unit)
        self.refinenet4 = FusionBlock(channels, unit, has_finer=False)

    def forward(self, map1: Tensor, map2: Tensor, map3: Tensor, map4: Tensor) -> Tensor:
        return self.fuse([map1, map2, map3, map4], (map1.shape[2], map1.shape[3]))

    def fuse(self, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Maps from fine to coarse -> [F, channels, *size]."""
        map1, map2, map3, map4 = maps
        x = self.refinenet4(self.layer4_rn(map4), map3.shape[2:])
        x = self.refinenet3(x, map2.shape[2:], self.layer3_rn(map3))
        x = self.refinenet2(x, map1.shape[2:], self.layer2_rn(map2))
        return self.refinenet1(x, size, self.layer1_rn(map1))


class Scratch(Fusion):
    """Fuses four maps into one of `out_channels` at twice the finest map's size.

    `output_conv2` comes after the resize to full size, if the head predicts `num_outputs` values a pixel.
    """

    def __init__(self, in_channels: list[int], channels: int, out_channels: int, num_outputs: int | None) -> None:
        super().__init__(in_channels, channels, ResidualUnit)
        self.output_conv1 = conv3x3(channels, out_channels)
        self.output_conv2: nn.Module = nn.Identity()
        if num_outputs is not None:
            self.output_conv2 = nn.Sequential(
                conv3x3(out_channels, OUTPUT_CHANNELS),
                nn.ReLU(),
                nn.Conv2d(OUTPUT_CHANNELS, num_outputs, kernel_size=1),
            )

    def forward(self, map1: Tensor, map2: Tensor, map3: Tensor, map4: Tensor) -> Tensor:
        x = self.fuse([map1, map2, map3, map4], (2 * map1.shape[2], 2 * map1.shape[3]))
        return self.output_conv1(x)


class DenseSizes(Protocol):
    """The config fields that a dense head reads; see `VGGTConfig`."""

    patch_size: int
    embed_dim: int
    num_register_tokens: int
    dpt_out_channels: list[int]
    dpt_layers: list[int]


class Pyramid(nn.Module):
    """Tokens of four layers -> four maps per frame, from fine to coarse, some frames at a time.

    channels: of the largest map computed from them.
    """

    scratch: Fusion

    def __init__(self, config: DenseSizes, channels: int) -> None:
        super().__init__()
        dim, widths = 2 * config.embed_dim, config.dpt_out_channels
        self.layers = tuple(config.dpt_layers)
        self.patch_size, self.num_special = config.patch_size, 1 + config.num_register_tokens
        self.channels = channels
        self.norm = nn.LayerNorm(dim)
        self.projects = nn.ModuleList(nn.Conv2d(dim, width, kernel_size=1) for width in widths)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(widths[0], widths[0], kernel_size=4, stride=4),
                nn.ConvTranspose2d(widths[1], widths[1], kernel_size=2, stride=2),
                nn.Identity(),
                nn.Conv2d(widths[3], widths[3], kernel_size=3, stride=2, padding=1),
            ]
        )

    def frame_chunks(
        self, tokens: dict[int, Tensor], image_size: tuple[int, int], size: int | None
    ) -> list[list[Tensor]]:
        """Patch tokens [B, s, P, 2C] of the four layers, for chunks of at most `size` frames (None: all)."""
        batch, frames = tokens[self.layers[0]].shape[:2]
        largest = MAX_ELEMENTS // (batch * self.channels * image_size[0] * image_size[1])
        size = max(1, min(frames if size is None else size, largest))
        patches = [tokens[layer][:, :, self.num_special :] for layer in self.layers]
        return [[x[:, start : start + size] for x in patches] for start in range(0, frames, size)]

    def maps(self, patches: list[Tensor], image_size: tuple[int, int], uv: bool) -> list[Tensor]:
        """Four tensors [B, s, P, 2C] -> four maps [B * s, ...]. uv: add position embeddings."""
        height, width = image_size
        grid = (height // self.patch_size, width // self.patch_size)
        maps = []
        for x, project, resize_layer in zip(patches, self.projects, self.resize_layers, strict=True):
            x = project(self.norm(x.flatten(0, 1)).transpose(1, 2).unflatten(-1, grid))
            maps.append(resize_layer(add_uv_embedding(x, image_size) if uv else x))
        return maps


class DPT(Pyramid):
    """Tokens -> one map per frame, some frames at a time.

    stride: image pixels per map pixel.
    uv: add position embeddings.
    num_outputs: channels of the map if it is a prediction; None for features of `out_channels`.
    """

    scratch: Scratch

    def __init__(
        self,
        config: VGGTConfig,
        channels: int,
        out_channels: int,
        stride: int,
        uv: bool,
        num_outputs: int | None = None,
    ) -> None:
        super().__init__(config, channels)
        self.stride, self.uv = stride, uv
        self.scratch = Scratch(config.dpt_out_channels, channels, out_channels, num_outputs)

    def run_chunk(self, patches: list[Tensor], image_size: tuple[int, int]) -> Tensor:
        """Four tensors [B, s, P, 2C] -> [B, s, map channels, H / stride, W / stride]."""
        height, width = image_size
        maps = self.maps(patches, image_size, self.uv)
        x = resize(self.scratch(*maps), (height // self.stride, width // self.stride))
        x = self.scratch.output_conv2(add_uv_embedding(x, image_size) if self.uv else x)
        return x.unflatten(0, patches[0].shape[:2])


class DPTFeatures(DPT):
    """Feature maps [B, S, channels, H/2, W/2] for the track head."""

    def __init__(self, config: VGGTConfig) -> None:
        channels = config.track_features
        super().__init__(config, channels, out_channels=channels, stride=2, uv=bool(config.track_uv_embedding))

    def forward(self, tokens: dict[int, Tensor], image_size: tuple[int, int], chunk: int | None) -> Tensor:
        chunks = self.frame_chunks(tokens, image_size, chunk)
        return torch.cat([self.run_chunk(patches, image_size) for patches in chunks], dim=1)


class DPTHead(DPT):
    """Values [B, S, H, W, num_values] and confidence [B, S, H, W] (above 1), both fp32.

    activation: "exp" for depth; "inv_log", sign(x) * (exp(|x|) - 1), for coordinates of either sign.
    """

    def __init__(self, config: VGGTConfig, num_values: int, activation: Literal["exp", "inv_log"]) -> None:
        channels = config.dpt_features
        super().__init__(config, channels, channels // 2, stride=1, uv=True, num_outputs=num_values + 1)
        self.activation = activation

    def forward(
        self, tokens: dict[int, Tensor], image_size: tuple[int, int], chunk: int | None
    ) -> tuple[Tensor, Tensor]:
        values, confidences = [], []
        for patches in self.frame_chunks(tokens, image_size, chunk):
            value, confidence = self.activate(self.run_chunk(patches, image_size).movedim(2, -1))
            values.append(value)
            confidences.append(confidence)
        return torch.cat(values, dim=1), torch.cat(confidences, dim=1)

    def activate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[..., num_values + 1] -> [..., num_values], [...]. An fp32 island: exponentials leave fp16's range."""
        value, confidence = x[..., :-1].float(), x[..., -1].float()
        value = value.exp() if self.activation == "exp" else _inverse_log(value)
        return value, 1 + confidence.exp()


def _inverse_log(x: Tensor) -> Tensor:
    """sign(x) (exp(|x|) - 1), without cancellation for small x."""
    if torch.jit.is_tracing() and torch.onnx.is_in_onnx_export():  # ONNX has no expm1
        return (x / 2).tanh() * (x.abs().exp() + 1)
    return x.sign() * x.abs().expm1()
