"""VGGT-Ω's depth head in channels last: maps at 4 x 4 pixels per patch, and both predictions by one product.

`vggt_int8.model.omega.dense_head` defines what it computes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggt_int8.model.dpt_head import FusionBlock
from vggt_int8.model.omega.dense_head import OmegaDenseHead
from vggt_int8.quant.conv import Int8Conv2d
from vggt_int8.runtime.convolution import float_conv, map_to_pixels
from vggt_int8.runtime.dense import DenseCall
from vggt_int8.runtime.kept import Halves


def predict(
    head: OmegaDenseHead, tokens: dict[int, Halves], image_size: tuple[int, int], at_once: int, on_host: bool
) -> tuple[Tensor, Tensor]:
    """Depth [F, H, W, 1] and confidence [F, H, W], fp32, of all frames; in host memory if `on_host`."""
    run = OmegaDenseCall(head, tokens, image_size)
    device = torch.device("cpu") if on_host else run.device
    depth = torch.empty(run.frames, *image_size, 1, dtype=torch.float32, device=device)
    confidence = torch.empty(run.frames, *image_size, dtype=torch.float32, device=device)
    weight, bias = _both(head)
    for part in run.parts(at_once):
        values = F.linear(map_to_pixels(run(part)), weight, bias).movedim(-1, 1).float()  # an fp32 island: exponentials
        maps = F.pixel_shuffle(values, head.shuffle).exp()
        depth[part, ..., 0], confidence[part] = maps[:, 0], 1 + maps[:, 1]
        for halves in tokens.values():
            halves.forget(part.stop)  # no other head reads them
    return depth, confidence


def _both(head: OmegaDenseHead) -> tuple[Tensor, Tensor]:
    """Weight [2 n, C] and bias [2 n] of both last convolutions, depth's first."""
    dtype = head.norm.weight.dtype
    first, second = (float_conv(conv, dtype) for conv in (head.proj, head.proj_conf))
    assert first.bias is not None
    assert second.bias is not None
    weight = torch.cat([first.weight, second.weight]).flatten(1)
    return weight, torch.cat([first.bias, second.bias])


def decoded(head: OmegaDenseHead) -> set[nn.Module]:
    """INT8 convolutions whose weights are decoded on every device."""
    return {conv for conv in (head.proj, head.proj_conf) if isinstance(conv, Int8Conv2d)}


class OmegaDenseCall(DenseCall):
    """One head during one call."""

    head: OmegaDenseHead

    def __call__(self, frames: slice) -> Tensor:
        """The head's feature map [f, C, 4 h, 4 w] for h x w patches, channels last."""
        scratch = self.head.scratch
        maps = [self.level(i, frames) for i in range(4)]
        size = maps[0].shape[2], maps[0].shape[3]
        rectify = (scratch.layer1_rn, scratch.layer2_rn, scratch.layer3_rn, scratch.layer4_rn)
        refine = (scratch.refinenet1, scratch.refinenet2, scratch.refinenet3, scratch.refinenet4)
        x = None
        for i in (3, 2, 1, 0):
            x = self.fuse(refine[i], x, self.convs[rectify[i]](maps.pop()))
        assert x is not None
        return self.resize(x, size, embed=True)

    def fuse(self, block: FusionBlock, coarser: Tensor | None, finer: Tensor) -> Tensor:
        """`FusionBlock` before its resize. Shortcuts carry the values before the ReLU."""
        conv = self.convs
        if coarser is not None:
            unit = block.resConfUnit1
            hidden = conv[unit.conv1].relu(finer.relu())
            shortcut = self.resize(coarser, (finer.shape[2], finer.shape[3]), addend=finer)
            finer = conv[unit.conv2].add(hidden, shortcut)
        unit = block.resConfUnit2
        x = conv[unit.conv2].add(conv[unit.conv1].relu(finer.relu()), finer)
        return conv[block.out_conv](x)
