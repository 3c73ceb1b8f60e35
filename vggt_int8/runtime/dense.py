"""The dense heads in channels last, some frames at a time, with few passes over their large maps.

Tokens [f, h * w, C] are a channels-last map already, so the 1x1 projections are linear layers and nothing is
transposed. A rectified shortcut is made by the convolution before it; sums and position embeddings go into tensors
that exist. What a head computes is defined in `vggt_int8.model.dpt_head`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggt_int8.model.dpt_head import DPT, MAX_ELEMENTS, UV_WEIGHT, DPTFeatures, DPTHead, FusionBlock, resize
from vggt_int8.model.tables import uv_table
from vggt_int8.runtime.aggregator import Halves
from vggt_int8.runtime.convolution import CONVOLUTIONS, FloatConv, float_conv, map_to_pixels, pixels_to_map, tuned
from vggt_int8.runtime.memory import parts


def predict(
    head: DPTHead, tokens: dict[int, Halves], image_size: tuple[int, int], at_once: int, on_host: bool
) -> tuple[Tensor, Tensor]:
    """Values [F, H, W, n] and confidence [F, H, W], fp32, of all frames; on the host if asked."""
    run = DenseCall(head, tokens, image_size)
    device = torch.device("cpu") if on_host else run.device
    values = torch.empty(run.frames, *image_size, run.outputs - 1, device=device)
    confidences = torch.empty(run.frames, *image_size, device=device)
    for part in run.parts(at_once):
        value, confidence = head.activate(map_to_pixels(run(part)))
        values[part] = value.to(device)
        confidences[part] = confidence.to(device)
    return values, confidences


def features(head: DPTFeatures, tokens: dict[int, Halves], image_size: tuple[int, int], at_once: int) -> Tensor:
    """Feature maps [F, C, H / stride, W / stride] of all frames."""
    run = DenseCall(head, tokens, image_size)
    return torch.cat([run(part) for part in run.parts(at_once)])


class DenseCall:
    """One head during one call: its convolutions as floats, and the tokens it reads."""

    def __init__(self, head: DPT, tokens: dict[int, Halves], image_size: tuple[int, int]) -> None:
        dtype = head.norm.weight.dtype
        self.head, self.image_size = head, image_size
        self.halves = [tokens[layer] for layer in head.layers]
        self.frames = len(self.halves[0].frame)
        self.device = head.norm.weight.device
        convs = (m for m in head.modules() if isinstance(m, CONVOLUTIONS))
        self.convs: dict[nn.Module, FloatConv] = {m: float_conv(m, dtype) for m in convs}

    @property
    def outputs(self) -> int:
        """Values a pixel, the confidence included."""
        return self._last_convs()[1].weight.shape[0]

    def parts(self, at_once: int) -> list[slice]:
        """The frames of each step: at most `at_once`, and no map larger than the upsampling kernel can count."""
        largest = MAX_ELEMENTS // (self.head.channels * self.image_size[0] * self.image_size[1])
        return list(parts(self.frames, max(1, min(at_once, largest))))

    def __call__(self, frames: slice) -> Tensor:
        """-> the head's map [f, n, H / stride, W / stride], channels last."""
        with tuned():
            return self._run(frames)

    def _run(self, frames: slice) -> Tensor:
        head, scratch, size = self.head, self.head.scratch, self.image_size
        maps = [self._level(i, frames) for i in range(4)]
        sizes = [(m.shape[2], m.shape[3]) for m in maps]
        sizes.insert(0, (2 * sizes[0][0], 2 * sizes[0][1]))
        rectify = (scratch.layer1_rn, scratch.layer2_rn, scratch.layer3_rn, scratch.layer4_rn)
        refine = (scratch.refinenet1, scratch.refinenet2, scratch.refinenet3, scratch.refinenet4)
        x = None
        for i in (3, 2, 1, 0):
            # All that follows reads this map rectified, its own shortcut included.
            finer = self.convs[rectify[i]].relu(maps.pop())
            x = resize(self._fuse(refine[i], x, finer), sizes[i])
        assert x is not None
        out = self.convs[scratch.output_conv1]
        if head.uv:  # a resize leaves a constant as it is, so the bias goes in with the position embedding
            x, bias = out._replace(bias=None)(x), out.bias
        else:
            x, bias = out(x), None
        x = resize(x, (size[0] // head.stride, size[1] // head.stride))
        if head.uv:
            add_uv_embedding_(x, size, bias)
        return self._predict(x) if isinstance(head, DPTHead) else x

    def _level(self, i: int, frames: slice) -> Tensor:
        """Level i from fine to coarse: tokens -> map [f, C_i, h_i, w_i]."""
        head, size = self.head, self.image_size
        grid = (size[0] // head.patch_size, size[1] // head.patch_size)
        x = self.halves[i].joined(slice(head.num_special, None), frames, self.device)
        x = F.layer_norm(x, head.norm.normalized_shape, head.norm.weight, head.norm.bias, head.norm.eps)
        x = self.convs[head.projects[i]](pixels_to_map(x.unflatten(1, grid)))
        if head.uv:
            add_uv_embedding_(x, size)
        resize_layer = head.resize_layers[i]
        return self.convs[resize_layer](x) if resize_layer in self.convs else x

    def _fuse(self, block: FusionBlock, coarser: Tensor | None, finer: Tensor) -> Tensor:
        """`FusionBlock` before its resize; `finer` comes rectified. Without a coarser map, `finer` is all there is."""
        conv = self.convs
        if coarser is not None:
            unit = block.resConfUnit1
            hidden = conv[unit.conv1].relu(finer)
            # The sum of map, shortcut and second convolution is only read rectified.
            finer = conv[unit.conv2].add_relu(hidden, coarser.add_(finer))
        unit = block.resConfUnit2
        x = conv[unit.conv2](conv[unit.conv1].relu(finer)).add_(finer)
        return conv[block.out_conv](x)

    def _predict(self, x: Tensor) -> Tensor:
        """The last two convolutions, [f, C, H, W] -> [f, n, H, W]."""
        first, last = self._last_convs()
        return last(first.relu(x))

    def _last_convs(self) -> tuple[FloatConv, FloatConv]:
        layers = self.head.scratch.output_conv2
        assert isinstance(layers, nn.Sequential)
        return self.convs[layers[0]], self.convs[layers[2]]


def add_uv_embedding_(x: Tensor, image_size: tuple[int, int], bias: Tensor | None = None) -> None:
    """`model.dpt_head.add_uv_embedding` in place, and a bias [C] with it. x [f, C, h, w]."""
    height, width = image_size
    half, (rows, columns) = x.shape[1] // 2, x.shape[2:]
    diagonal = (width**2 + height**2) ** 0.5
    u = UV_WEIGHT * uv_table(columns, width / diagonal, half, device=x.device).to(x.dtype)[:, None, :]
    v = UV_WEIGHT * uv_table(rows, height / diagonal, half, device=x.device).to(x.dtype)[:, :, None]
    if bias is not None:
        u, v = u + bias[:half, None, None], v + bias[half:, None, None]
    x[:, :half] += u
    x[:, half:] += v
