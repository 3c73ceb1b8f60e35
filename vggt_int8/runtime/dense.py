"""The dense heads in channels last, some frames at a time, with few passes over their large maps.

Tokens [f, h * w, C] are already a channels-last map, so the 1x1 projections are linear layers and nothing is
transposed. ReLU on a shortcut is fused into the preceding convolution, everything that is added to a resized map is
fused into the resize, and the last convolution writes the outputs. `vggt_int8.model.dpt_head` defines what a head
computes.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggt_int8.kernels import ops
from vggt_int8.model.dpt_head import MAX_ELEMENTS, UV_WEIGHT, DPTFeatures, DPTHead, FusionBlock, Pyramid
from vggt_int8.model.tables import constant_table, uv_table
from vggt_int8.quant.conv import Int8Conv2d, Int8ConvTranspose2d
from vggt_int8.runtime.convolution import (
    CONVOLUTIONS,
    FloatConv,
    IntegerConv,
    call_conv,
    float_conv,
    kernel,
    map_to_pixels,
    pixels_to_map,
)
from vggt_int8.runtime.kept import Halves
from vggt_int8.runtime.maps import DeviceMaps, HostMaps
from vggt_int8.runtime.memory import parts


def predict(
    head: DPTHead, tokens: dict[int, Halves], image_size: tuple[int, int], at_once: int, on_host: bool
) -> tuple[Tensor, Tensor]:
    """Values [F, H, W, n] and confidence [F, H, W], fp32, of all frames; in host memory if `on_host`."""
    if on_host:
        return predict_together([head], tokens, image_size, at_once, on_host, forget=False)[0]
    run = MapCall(head, tokens, image_size)
    values, confidences = run.new_maps(run.frames)
    for part in run.parts(at_once):
        run.predict_(part, values[part], confidences[part])
    return values, confidences


def predict_together(
    heads: Sequence[DPTHead],
    tokens: dict[int, Halves],
    image_size: tuple[int, int],
    at_once: int,
    on_host: bool,
    forget: bool,
) -> list[tuple[Tensor, Tensor]]:
    """`predict` for several heads in turn. forget: free tokens as soon as all heads have read them.

    Maps on a GPU are made in parts, too, and concatenated once the tokens are freed.
    """
    calls = [MapCall(head, tokens, image_size) for head in heads]
    frames, device = calls[0].frames, calls[0].device
    stores = [(HostMaps if on_host else DeviceMaps)(frames, device) for _ in calls]
    for part in parts(frames, min(call.most_frames(at_once) for call in calls)):
        for call, store in zip(calls, stores, strict=True):
            maps = call.new_maps(part.stop - part.start)
            call.predict_(part, *maps)
            store.add(part, maps)
        if forget:
            for halves in tokens.values():
                halves.forget(part.stop)
    return [store.whole() for store in stores]


def features(head: DPTFeatures, tokens: dict[int, Halves], image_size: tuple[int, int], at_once: int) -> Tensor:
    """Feature maps [F, C, H / stride, W / stride] of all frames."""
    run = DenseCall(head, tokens, image_size)
    return torch.cat([run(part) for part in run.parts(at_once)])


def kernels(head: Pyramid, device_type: str) -> dict[nn.Module, str]:
    """INT8 convolution -> description of the kernel that runs it on "cpu" or "cuda"."""
    convs = [m for m in head.modules() if isinstance(m, Int8Conv2d | Int8ConvTranspose2d)]
    found: dict[nn.Module, str] = {m: kernel(m, head.norm.weight.dtype, device_type) for m in convs}
    layers = getattr(head.scratch, "output_conv2", None)
    if isinstance(layers, nn.Sequential):
        found.pop(layers[2], None)  # decoded on every device, as in the module itself
    return found


class DenseCall:
    """One head during one call: its convolutions, ready to run, and the tokens it reads."""

    head: Any

    def __init__(self, head: Pyramid, tokens: dict[int, Halves], image_size: tuple[int, int]) -> None:
        dtype = head.norm.weight.dtype
        self.head, self.image_size = head, image_size
        self.halves = [tokens[layer] for layer in head.layers]
        self.frames = self.halves[0].frame.count
        self.device = head.norm.weight.device
        convs = (m for m in head.modules() if isinstance(m, CONVOLUTIONS))
        self.convs: dict[nn.Module, FloatConv | IntegerConv] = {m: call_conv(m, dtype) for m in convs}
        scratch = head.scratch
        for block in (scratch.refinenet1, scratch.refinenet2, scratch.refinenet3, scratch.refinenet4):
            self._move_bias(block.resConfUnit2.conv2, block.out_conv)

    def _move_bias(self, conv: nn.Module, linear: nn.Module) -> None:
        """Fold the bias of a convolution into the 1x1 convolution after it, where it costs no pass over the map."""
        first, second = self.convs[conv], self.convs[linear]
        if first.bias is not None and isinstance(second, FloatConv):  # IntegerConv adds it while writing the map
            bias = F.linear(first.bias, second.weight.flatten(1), second.bias)
            self.convs |= {conv: first._replace(bias=None), linear: second._replace(bias=bias)}

    def most_frames(self, at_once: int) -> int:
        """Frames per step: at most `at_once`, and few enough for 32-bit indices into the largest map."""
        largest = MAX_ELEMENTS // (self.head.channels * self.image_size[0] * self.image_size[1])
        return max(1, min(at_once, largest))

    def parts(self, at_once: int) -> list[slice]:
        """The frames of each step."""
        return list(parts(self.frames, self.most_frames(at_once)))

    def __call__(self, frames: slice) -> Tensor:
        """The head's feature map [f, C, H / stride, W / stride], channels last."""
        head, scratch, (height, width) = self.head, self.head.scratch, self.image_size
        maps = [self.level(i, frames) for i in range(4)]
        full_size = 2 * maps[0].shape[2], 2 * maps[0].shape[3]
        rectify = (scratch.layer1_rn, scratch.layer2_rn, scratch.layer3_rn, scratch.layer4_rn)
        refine = (scratch.refinenet1, scratch.refinenet2, scratch.refinenet3, scratch.refinenet4)
        x = None
        for i in (3, 2, 1, 0):
            # Everything after this reads the map after its ReLU, including its own shortcut.
            x = self.fuse(refine[i], x, self.convs[rectify[i]].relu(maps.pop()))
        assert x is not None
        x = self.resize(x, full_size)
        out = self.convs[scratch.output_conv1]
        # Resizing keeps constants, so the bias can be added after it. The wider map (34 MB a frame at 392 x 518) must
        # not stay alive meanwhile.
        x = out._replace(bias=None)(x)
        size = height // head.stride, width // head.stride
        return self.resize(x, size, embed=head.uv, bias=out.bias)

    def level(self, i: int, frames: slice) -> Tensor:
        """Level i from fine to coarse: tokens -> map [f, C_i, h_i, w_i]."""
        head, size = self.head, self.image_size
        grid = (size[0] // head.patch_size, size[1] // head.patch_size)
        first, second = self.halves[i].of(frames, self.device)
        x = ops.layer_norm_halves(first, second, head.num_special, head.norm.weight, head.norm.bias, head.norm.eps)
        x = self.convs[head.projects[i]](pixels_to_map(x.unflatten(1, grid)))
        if getattr(head, "uv", True):
            x = self.resize(x, grid, embed=True)
        resize_layer = head.resize_layers[i]
        return self.convs[resize_layer](x) if resize_layer in self.convs else x

    def fuse(self, block: FusionBlock, coarser: Tensor | None, finer: Tensor) -> Tensor:
        """`FusionBlock` before its resize. `finer` has passed its ReLU; `coarser` is None at the coarsest level."""
        conv = self.convs
        if coarser is not None:
            unit = block.resConfUnit1
            hidden = conv[unit.conv1].relu(finer)
            # The sum of map, shortcut and second convolution is only read after a ReLU.
            shortcut = self.resize(coarser, (finer.shape[2], finer.shape[3]), addend=finer)
            finer = conv[unit.conv2].add_relu(hidden, shortcut)
        unit = block.resConfUnit2
        x = conv[unit.conv2].add(conv[unit.conv1].relu(finer), finer)
        return conv[block.out_conv](x)

    def resize(
        self,
        x: Tensor,
        size: tuple[int, int],
        embed: bool = False,
        bias: Tensor | None = None,
        addend: Tensor | None = None,
    ) -> Tensor:
        """x [f, C, h, w] -> [f, C, *size], plus the position embedding, a bias [C] and another map, each optional."""
        columns = rows = None
        if embed:
            height, width = self.image_size
            diagonal, half = (width**2 + height**2) ** 0.5, x.shape[1] // 2
            columns = position_table(size[1], width / diagonal, half, device=x.device)
            rows = position_table(size[0], height / diagonal, half, device=x.device)
        other = None if addend is None else map_to_pixels(addend)
        return pixels_to_map(ops.resize(map_to_pixels(x), *size, columns, rows, bias, other))


class MapCall(DenseCall):
    """A depth or point head, including its last layers."""

    def __init__(self, head: DPTHead, tokens: dict[int, Halves], image_size: tuple[int, int]) -> None:
        super().__init__(head, tokens, image_size)
        layers = head.scratch.output_conv2
        assert isinstance(layers, nn.Sequential)
        self.hidden, self.last = self.convs[layers[0]], float_conv(layers[2], head.norm.weight.dtype)
        self.inverse_log = head.activation == "inv_log"

    def new_maps(self, frames: int) -> tuple[Tensor, Tensor]:
        """Uninitialized values [f, H, W, n] and confidence [f, H, W], fp32."""
        sizes = (frames, *self.image_size)
        values = torch.empty(*sizes, len(self.last.weight) - 1, dtype=torch.float32, device=self.device)
        return values, torch.empty(sizes, dtype=torch.float32, device=self.device)

    def predict_(self, part: slice, values: Tensor, confidence: Tensor) -> None:
        """Write the maps of the frames `part` into `values` and `confidence`."""
        pixels = map_to_pixels(self.hidden.relu(self(part)))
        ops.predict_(pixels, self.last.weight.flatten(1), self.last.bias, self.inverse_log, values, confidence)


@constant_table
def position_table(size: int, span: float, channels: int, *, device: torch.device) -> Tensor:
    """[size, channels]: what `model.dpt_head.add_uv_embedding` adds along one axis of an image."""
    return UV_WEIGHT * uv_table(size, span, channels, device=device).T.contiguous()
