"""Dense heads on some of a scene's views in a training step.

The dense heads work on maps of every pixel, the cameras on one token a view. So the heads may be given a random part
of the views and leave time for more steps; which views follows from the step, as all else does.
"""

import random
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vggt_int8.model import VGGT
from vggt_int8.scenes import SceneBatch


class DenseViews:
    """The views that the dense heads see; a share of 1 leaves the network as it is.

    Installs itself on a network's dense heads, for training mode alone. The choice of views lies in a tensor that
    keeps its place, so that a recorded CUDA graph reads what was drawn last.
    """

    def __init__(self, network: VGGT, share: float, seed: int, device: torch.device) -> None:
        self.share, self.seed, self.device = share, seed, device
        self._views = 0
        self._chosen: dict[int, Tensor] = {}
        for head in (network.depth_head, network.point_head):
            if head is not None and share < 1:
                head.register_forward_pre_hook(self._narrow_tokens)

    def draw(self, step: int, views: int) -> None:
        """Choose for a step whose scenes have `views` views: `share` of them, rounded, and at least one."""
        if self.share == 1:
            return
        count = max(1, round(self.share * views))
        chosen = torch.tensor(sorted(random.Random(f"{self.seed}/{step}/dense").sample(range(views), count)))
        self._views = views
        if views not in self._chosen:
            self._chosen[views] = chosen.to(self.device)
        else:
            self._chosen[views].copy_(chosen)

    def narrow(self, batch: SceneBatch) -> SceneBatch:
        """The batch with depth, world points and validity [B, k, H, W, ...] of the k views drawn last.

        Cameras, images and tracks stay those of all views.
        """
        if self.share == 1:
            return batch
        chosen = self._chosen[self._views]
        maps = {name: getattr(batch, name).index_select(1, chosen) for name in ("depth", "world_points", "valid")}
        return replace(batch, **maps)

    def _narrow_tokens(self, head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not head.training:
            return None
        tokens, *rest = args
        chosen = self._chosen[self._views]
        return ({layer: values.index_select(1, chosen) for layer, values in tokens.items()}, *rest)
